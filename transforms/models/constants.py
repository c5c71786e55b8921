"""Turn weights that a cloned model would lose into constants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras


def with_constant_normalization(model: keras.Model) -> keras.Model:
    """The same function, `Normalization` layers with weights replaced by a `Rescaling` of constants.

    Mean and variance have an effect only once `finalize_state()` is called, which neither `set_weights` nor
    `clone_model` does: a copy of an EfficientNet would subtract nothing and divide by one. Settings of the layer would
    survive that, but not an export to ONNX, which takes the tensors it makes of them for inputs.

    Args:
        model: functional; a backbone may stand in it as one layer.

    Returns:
        A copy, or the model itself where it has no such layer.
    """
    import keras

    layers = dict(_layers(model))
    if not any(map(_is_adapted, layers.values())):
        return model

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not _is_adapted(layer):
            return type(layer).from_config(layer.get_config())
        mean, deviation = (
            np.asarray(layer.adapt_mean),
            np.maximum(np.sqrt(layer.adapt_variance), keras.config.epsilon()),
        )
        return keras.layers.Rescaling(1 / deviation, -mean / deviation, dtype=layer.dtype_policy, name=layer.name)

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    copies = dict(_layers(clone))
    for place, layer in layers.items():
        if layer.weights and not _is_adapted(layer):
            copies[place].set_weights(layer.get_weights())
    return clone


def _layers(model: keras.Model) -> Iterator[tuple[tuple[str, ...], keras.layers.Layer]]:
    """The layers of a model, and of models among them, behind their names from the outermost model on."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from (((layer.name, *place), inner) for place, inner in _layers(layer))
        else:
            yield (layer.name,), layer


def _is_adapted(layer: keras.layers.Layer) -> bool:
    """Whether it is a `Normalization` of the last axis, one way, that learned its mean and variance."""
    import keras

    if not isinstance(layer, keras.layers.Normalization) or not layer.weights or layer.invert:
        return False
    return layer.axis in ((-1,), (len(layer.output.shape) - 1,))
