"""A trained classifier's predictions, and their evaluation."""
