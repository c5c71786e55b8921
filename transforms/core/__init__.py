"""Types, errors and options that every other package uses; no I/O, no Keras, no Beam."""
