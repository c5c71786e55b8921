"""A trained classifier: heads, the exact solver, fine-tuning, `fit` with checkpoints, metrics."""
