"""Embeddings to a trained classifier: rows, splits, the head, fine-tuning, metrics and checkpoints."""
