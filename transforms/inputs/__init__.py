"""List, inspect and plan an input."""
