"""The table of layers that ships with the package, against Keras itself."""

import importlib.metadata
import json

import pytest

from transforms.core.errors import ImagebeamError
from transforms.models import layer_tables
from transforms.models.architectures import ARCHITECTURES, get_architecture
from transforms.models.layer_tables import LayerInfo, build_layers, check_layer_names, known_layers, list_layers

SMALL = "MobileNetV3Small"


def test_tables_cover_every_model_of_the_installed_keras():
    table = layer_tables._table()
    assert table["keras"] == importlib.metadata.version("keras"), "run python -m transforms.models.layer_tables"
    assert set(table["models"]) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "name", [SMALL, "VGG16", *(pytest.param(name, marks=pytest.mark.parity) for name in ARCHITECTURES)]
)
def test_tables_equal_what_keras_builds(name):
    architecture = get_architecture(name)
    for size in (architecture.default_image_size, *([None] if architecture.takes_any_size else [])):
        assert known_layers(name, size) == list(build_layers(architecture, size))


def test_other_keras_versions_build_the_model(monkeypatch):
    monkeypatch.setattr(layer_tables, "_keras_version", lambda: "99.0")
    monkeypatch.setattr(layer_tables, "build_layers", lambda *_: iter([LayerInfo("x", "Dense", (None, 3), 3, 12)]))
    assert known_layers(SMALL, None) is None
    check_layer_names(SMALL, ["no such layer"], "layer")  # not known, so not refused
    assert list_layers(get_architecture(SMALL), None) == [LayerInfo("x", "Dense", (None, 3), 3, 12)]


def test_other_sizes_are_built_once(monkeypatch, tmp_path):
    calls = []

    def build(architecture, size):
        calls.append(size)
        return iter([LayerInfo("x", "Dense", (None, 3), 3, 12)])

    monkeypatch.setattr(layer_tables, "build_layers", build)
    for _ in range(2):
        layers = list_layers(get_architecture(SMALL), (48, 64), tmp_path / "cache")
        assert layers == [LayerInfo("x", "Dense", (None, 3), 3, 12)]
    assert calls == [(48, 64)]
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text(json.dumps([["damaged"]]))
    assert len(list_layers(get_architecture(SMALL), (48, 64), tmp_path / "cache")) == 1
    (tmp_path / "file").write_text("")
    assert len(list_layers(get_architecture(SMALL), (48, 64), tmp_path / "file")) == 1


def test_an_unknown_layer_is_refused_with_the_nearest():
    check_layer_names("VGG16", ["block4_pool", "fc1"], "layer")
    with pytest.raises(ImagebeamError, match=r"layer='block4_pol'.*block4_pool"):
        check_layer_names("VGG16", ["block4_pol"], "layer")
