"""Imagebeam's jobs, one module each; `imagebeam <job>` runs them."""
