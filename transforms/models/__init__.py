"""Keras models: architectures, weights, the embedder, and its staged copy that workers load."""
