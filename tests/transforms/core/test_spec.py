import dataclasses
from typing import Any

import pytest

from transforms.core.errors import ImagebeamError
from transforms.core.spec import (
    Calibration,
    EmbedderSpec,
    Interpolation,
    JpegDecode,
    Pooling,
    Precision,
    Preprocessing,
    ResizeMode,
)

SPEC = EmbedderSpec("VGG16", "ab" * 32, layers=("block4_pool",), image_size=(48, 48))

OTHERS: dict[str, Any] = {
    "model": "VGG19",
    "weights_sha256": "cd" * 32,
    "layers": ("block5_pool",),
    "pooling": Pooling.MAX,
    "image_size": None,
    "interpolation": Interpolation.NEAREST,
    "resize_mode": ResizeMode.PAD,
    "precision": Precision.BFLOAT16,
    "color_policy": "another",
    "graph_sha256": "ef" * 32,
    "preprocessing": Preprocessing.TORCH,
    "jpeg_decode": JpegDecode.SCALED,
    "calibration": Calibration("12" * 32, "34" * 32),
    "dicom_frame": "middle",
}


def test_json_round_trip():
    assert EmbedderSpec.from_json(SPEC.to_json()) == SPEC
    native = dataclasses.replace(SPEC, image_size=None)
    assert EmbedderSpec.from_json(native.to_json()) == native


def test_the_fingerprint_is_stable():
    # Computed once by hand: sha256sum of the canonical JSON. A change here makes every stored embedding foreign.
    canonical = (
        '{"color_policy":"imagebeam-2","graph_sha256":"","image_size":[48,48],"interpolation":"bilinear","layers":["block4_pool"],'
        '"model":"VGG16","pooling":"avg","precision":"float32","resize_mode":"stretch","weights_sha256":"'
        + "ab" * 32
        + '"}'
    )
    assert SPEC.to_json() == canonical
    assert SPEC.fingerprint == "f5668277c0d367eb903cbe5078b7558fba2b2357b1d3f8149028f2a7b90f6eab"


def test_every_field_has_another_value_to_test():
    assert set(OTHERS) == {field.name for field in dataclasses.fields(EmbedderSpec)}


@pytest.mark.parametrize("name", list(OTHERS))
def test_each_field_changes_the_fingerprint_and_is_named(name):
    other = dataclasses.replace(SPEC, **{name: OTHERS[name]})
    assert other.fingerprint != SPEC.fingerprint
    (difference,) = SPEC.differences(other)
    assert difference.startswith(f"{name}: ")


def test_an_unknown_field_is_refused():
    with pytest.raises(ImagebeamError, match="does not know: flavour"):
        EmbedderSpec.from_dict({**SPEC.to_dict(), "flavour": "vanilla"})
