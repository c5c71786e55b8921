"""Types, errors and options used by every other package. No I/O, no Keras, no Beam."""
