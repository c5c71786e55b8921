"""Weights from Keras, a seed or a file: read without executing anything, and matched with the model."""
