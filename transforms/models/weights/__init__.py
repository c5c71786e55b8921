"""Load weights from Keras, a seed or a file, without executing code from the file."""
