"""The layers of the built-in models, from a table in the package, without importing Keras.

python -m transforms.models.layer_tables    # writes the table anew, after a change of Keras' version
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.text import size_text
from transforms.models.architectures import ARCHITECTURES, Architecture, get_architecture, nearest
from transforms.models.keras_import import import_keras
from transforms.models.keras_internals import is_channels_first
from transforms.models.own_model import OwnModel

TABLE = Path(__file__).with_name("layer_tables.json.gz")
"""Keras' version, and for each model its layers at the default and at the native size."""


@dataclass(frozen=True)
class LayerInfo:
    """One layer.

    Attributes:
        name: what `--layer` takes.
        type: its class in Keras.
        output_shape: without the batch axis; None where it depends on the image.
        dimension: length of the pooled vector; None where the output is neither a feature map nor a vector.
        parameters: how many numbers it has; 0 for a layer without weights.
    """

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    dimension: int | None
    parameters: int


def list_layers(
    architecture: Architecture | OwnModel, image_size: tuple[int, int] | None, cache: Path | None = None
) -> list[LayerInfo]:
    """A model's layers from input to output; the classifier's too where `image_size` is the default size.

    Args:
        architecture: which model.
        image_size: (height, width) in pixels, or None for any.
        cache: a folder where the layers at other sizes than the table's are kept; None for none.
    """
    if isinstance(architecture, OwnModel):
        return list(build_layers(architecture, image_size))
    known = known_layers(architecture.name, image_size)
    if known is not None:
        return known
    path = cache and cache / f"layers-keras-{_keras_version()}-{architecture.name}-{size_text(image_size)}.json"
    if path:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _from_json(json.loads(path.read_bytes()))
    layers = list(build_layers(architecture, image_size))
    if path:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
            storage.publish(str(path), json.dumps(_to_json(layers)).encode())
    return layers


def known_layers(model: str, image_size: tuple[int, int] | None) -> list[LayerInfo] | None:
    """The layers of a built-in model, from the table; None where it has none for this size or this version of Keras."""
    table = _table()
    if table["keras"] != _keras_version():
        return None
    default = image_size == get_architecture(model).default_image_size
    if image_size is not None and not default:
        return None
    layers = table["models"][model]["default" if default else "native"]
    return None if layers is None else _from_json(layers)


def check_layer_names(model: str, names: Sequence[str], flag: str) -> None:
    """Refuse a name that no layer of a built-in model has, without loading Keras; passes where that is not known.

    Args:
        model: name in `keras.applications`.
        names: of layers.
        flag: that gave them, for the message.

    Raises:
        ImagebeamError: naming the nearest layers.
    """
    layers = known_layers(model, get_architecture(model).default_image_size)
    if layers is None:
        return
    known = [layer.name for layer in layers]
    for name in names:
        if name not in known:
            raise ImagebeamError(
                f"{model} has no such layer. Received: {flag}={name!r}. {nearest(name, known)} "
                f"'imagebeam layers --model {model}' lists them all."
            )


def build_layers(architecture: Architecture | OwnModel, image_size: tuple[int, int] | None) -> Iterator[LayerInfo]:
    """`list_layers` by building the model, in seconds."""
    import_keras()
    import keras

    if isinstance(architecture, OwnModel):
        model = architecture.build(image_size)
    else:
        # Shapes need no weights, and up to 350 million of them would be drawn at random.
        with keras.StatelessScope(initialize_variables=False):
            model = architecture.build(image_size, include_top=image_size == architecture.default_image_size)
    for layer in model.layers:
        output = layer.output  # of some layers of one's own, several
        shape = tuple(output.shape[1:]) if hasattr(output, "shape") else ()
        dimension = None
        if len(shape) in (1, 2, 3):
            dimension = shape[0 if len(shape) > 1 and is_channels_first(output) else -1]
        yield LayerInfo(layer.name, type(layer).__name__, shape, dimension, layer.count_params())


def build_table() -> dict[str, Any]:
    """The table, from the installed Keras; takes minutes."""
    models = {}
    for name in ARCHITECTURES:
        architecture = get_architecture(name)
        native = list(build_layers(architecture, None)) if architecture.takes_any_size else None
        models[name] = {
            "default": _to_json(build_layers(architecture, architecture.default_image_size)),
            "native": native and _to_json(native),
        }
    return {"keras": _keras_version(), "models": models}


@functools.cache
def _table() -> dict[str, Any]:
    try:
        with gzip.open(TABLE) as file:
            table: dict[str, Any] = json.load(file)
    except FileNotFoundError:  # while it is being made
        return {"keras": None, "models": {}}
    return table


def _keras_version() -> str:
    return importlib.metadata.version("keras")


def _to_json(layers: Iterable[LayerInfo]) -> list[list[Any]]:
    return [[layer.name, layer.type, list(layer.output_shape), layer.dimension, layer.parameters] for layer in layers]


def _from_json(layers: Sequence[Sequence[Any]]) -> list[LayerInfo]:
    return [LayerInfo(name, kind, tuple(shape), *numbers) for name, kind, shape, *numbers in layers]


if __name__ == "__main__":
    TABLE.write_bytes(gzip.compress(json.dumps(build_table(), separators=(",", ":")).encode(), mtime=0))
