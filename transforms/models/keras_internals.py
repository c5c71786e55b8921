"""The private names of Keras that Imagebeam uses, all in this module.

`setup.py` bounds Keras' version for them, and tests/transforms/models/test_keras_internals.py fails when one moves.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import random
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_seeding = threading.Lock()


@contextlib.contextmanager
def fresh_layer_names() -> Iterator[None]:
    """Number the layers made inside as in a new process.

    Keras numbers the layers that its applications leave unnamed ("activation_12") by a counter of the process, so that
    a second model of one kind would have other names; but names are what `--layer` takes. `keras.utils.clear_session`
    would reset the counter too, and with it the names in a model the caller is about to compose.
    """
    with own_name_scopes(), _replaced("object_name_uids", collections.defaultdict(int)):
        yield


def own_name_scopes() -> contextlib.AbstractContextManager[None]:
    """No scope that the caller has open names what is made inside, and none stays open in this thread.

    Keras 3.15 leaves open those around a layer whose name TensorFlow refuses: the paths of all weights made later, by
    which a file's are matched, would begin with the failed model's name.
    """
    return _replaced("name_scope_stack", [])


@contextlib.contextmanager
def _replaced(name: str, value: Any) -> Iterator[None]:
    """Another value for one of Keras' attributes of the thread."""
    from keras.src.backend.common import global_state

    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give the layers made inside the weights that `keras.utils.set_random_seed(seed)` would give them.

    That function seeds Python's `random`, from which Keras draws a seed for every initializer; but so do other threads
    draw from it meanwhile (client libraries for their back-off), and the weights of a seed, and so the fingerprint,
    would be others now and then.
    """
    from keras.src.random import seed_generator

    with _seeding:
        shared = seed_generator.python_random
        seed_generator.python_random = random.Random(seed)
        try:
            yield
        finally:
            seed_generator.python_random = shared


def outputs_in(model: keras.Model, name: str) -> list[list[Any]]:
    """The Keras tensors that a layer of a functional model gives in it, for each of its calls there, the first first.

    Of a layer that is a model itself `layer.output` is a tensor of that model's own graph, which nothing connects with
    the inputs of this one; and of a layer that another model calls too it may be the other's.
    """
    layer = model.get_layer(name)
    nodes = (node for _, level in sorted(model._nodes_by_depth.items(), reverse=True) for node in level)
    return [list(node.output_tensors) for node in nodes if node.operation is layer]


_REORDERING = ("Permute", "Transpose", "Moveaxis", "Swapaxes")
"""Operations behind which the channels may be elsewhere, whatever the shapes."""


def is_channels_first(feature_map: Any) -> bool:
    """Whether a Keras tensor has its channels before its places: [n, channels, height, width].

    Its shape does not tell. The layer that made it does, or else the nearest one before it that has a data format, as
    long as what lies between keeps the shape, as activations and normalisations do.
    """
    while True:
        operation, node, output = feature_map._keras_history
        if inner := getattr(operation, "outputs", None):  # a model within the model
            feature_map = inner[output]
            continue
        if (data_format := getattr(operation, "data_format", None)) is not None:
            return bool(data_format == "channels_first")
        before = [
            tensor for tensor in operation._inbound_nodes[node].input_tensors if tensor.shape == feature_map.shape
        ]
        if not before or type(operation).__name__ in _REORDERING:
            return False
        feature_map = before[0]


def published_efficientnet_md5(name: str) -> tuple[str, str]:
    """MD5 of the ImageNet files that Keras publishes for an EfficientNetB0 to B7: (with the top, without).

    Args:
        name: such as "EfficientNetB0".
    """
    module = importlib.import_module("keras.src.applications.efficientnet")
    with_top, without = module.WEIGHTS_HASHES[name.removeprefix("EfficientNet").lower()]
    return with_top, without
