"""What the compiled call does when the device has no memory for a batch; the backends are tried in test_embedder.py."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from transforms.core.spec import Precision
from transforms.models.engines import compiled
from transforms.models.engines.compiled import CompiledModel

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


class SmallDevice(compiled._Call):
    """Computes channel means of at most `room` images at once."""

    room = 4

    def __init__(self, model, precision):
        self.sizes = []

    def begin(self, images):
        self.sizes.append(len(images))
        return images

    def finish(self, begun):
        if len(begun) > self.room:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.06GiB.")
        return begun.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(compiled, "_KerasCall", SmallDevice)
    return CompiledModel(SimpleNamespace(), Precision.FLOAT32)


def test_a_batch_too_large_for_the_device_is_halved_and_the_size_kept(model, caplog):
    with caplog.at_level(logging.WARNING):
        found = model(IMAGES)["embedding"]
    np.testing.assert_allclose(found, IMAGES.mean(axis=(1, 2)), rtol=1e-6)
    assert model._call.sizes == [10, 5, 3, 2, 3, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "10 images do not fit into the device's memory: 5 at a time from now on",
        "5 images do not fit into the device's memory: 3 at a time from now on",
    ]
    model._call.sizes.clear()
    np.testing.assert_allclose(model(IMAGES)["embedding"], IMAGES.mean(axis=(1, 2)), rtol=1e-6)
    assert model._call.sizes == [3, 3, 3, 1]


def test_one_image_too_large_is_an_error(model, monkeypatch):
    monkeypatch.setattr(SmallDevice, "room", 0)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        model(IMAGES)


def test_other_errors_are_not_tried_again(model, monkeypatch):
    def fails(self, begun):
        raise ValueError("the shapes do not fit")

    monkeypatch.setattr(SmallDevice, "finish", fails)
    with pytest.raises(ValueError, match="shapes"):
        model(IMAGES)
    assert model._call.sizes == [10]
