"""A digest of a Keras model's graph, without weights, precision and input size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transforms.core.spec import canonical_json

if TYPE_CHECKING:
    import keras

_NOT_COMPUTED = {"name", "dtype", "trainable", "build_config", "module", "registered_name", "seed", "seed_generator"}
"""Keys of a layer's configuration that do not change its result in inference."""

_SHAPES = {"batch_shape", "shape", "batch_input_shape"}

_TRAINING_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def graph_sha256(model: keras.Model) -> str:
    """SHA-256 over the layers, their settings and their connections.

    Equal for models that differ only in layer names, weights, dtype policy, input size or what applies while training.
    Settings that are None are left out, so that an option that a later version of Keras adds changes nothing.
    """
    return hashlib.sha256(canonical_json(_simplify(model.get_config(), {})).encode()).hexdigest()


def _simplify(value: Any, numbers: Mapping[str, int]) -> Any:
    """A configuration without what does not matter; layers are referred to by number instead of by name."""
    if isinstance(value, list | tuple):
        return [_simplify(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    layers = value.get("layers")
    if isinstance(layers, list):
        numbers = {layer.get("name") or layer["config"]["name"]: number for number, layer in enumerate(layers)}
    return {
        key: _renumber(item, numbers)
        if key in ("keras_history", "input_layers", "output_layers")
        else _simplify(item, numbers)
        for key, item in value.items()
        if item is not None and key not in _NOT_COMPUTED | _SHAPES and not key.endswith(_TRAINING_ENDINGS)
    }


def _renumber(value: Any, numbers: Mapping[str, int]) -> Any:
    if isinstance(value, list | tuple):
        return [_renumber(item, numbers) for item in value]
    if isinstance(value, dict):
        return {key: _renumber(item, numbers) for key, item in value.items()}
    return numbers[value] if isinstance(value, str) else value
