"""What needs tensorflow-io, which works with TensorFlow 2.16 alone."""

import importlib.util

import pytest

REASON = "tensorflow-io goes with TensorFlow 2.16 alone: `make test-tfio`"


def needs_tensorflow_io() -> list[pytest.MarkDecorator]:
    """Skip the module whose `pytestmark` this is, where there is no tensorflow-io: once, not test by test."""
    if importlib.util.find_spec("tensorflow_io") is None:
        pytest.skip(REASON, allow_module_level=True)
    return []
