"""Inference engines: Keras on each of its backends, OpenVINO, int8, and the trial that chooses one."""
