"""Data for training: labelled rows, splits, vectors or pixels, and batches."""
