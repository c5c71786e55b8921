"""Compile a Keras model's call on each of Keras' backends."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.core.spec import Precision
from transforms.models.engines.prediction import fill_up
from transforms.models.keras_import import import_keras, pinned_keras

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)

Vectors = dict[str, np.ndarray]

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "OOM when allocating")
"""What the backends' errors say when the device has no room: XLA, PyTorch, TensorFlow."""


class CompiledModel:
    """The fastest right call that the backend has for a model of images; safe to call from several threads.

    Two threads keep a device busy: while it computes one batch, the other thread's is copied to it or back.

    At float32 a GPU computes in float32: TensorFloat-32, which Nvidia's GPUs use for convolutions where nobody says
    otherwise, keeps 10 bits of the mantissa's 23.

    A batch for which the device has no memory is embedded in halves, and so is every batch after it.

    Args:
        model: Keras model, uint8 RGB [n, height, width, 3] -> float32 [n, dimension], or a dict of them.
        precision: it computes in.
    """

    def __init__(self, model: keras.Model, precision: Precision) -> None:
        import keras

        makers: dict[str, Callable[[keras.Model, Precision], _Call]] = {"jax": _JaxCall, "torch": _TorchCall}
        self._call: _Call = makers.get(keras.backend.backend(), _KerasCall)(model, precision)
        self._lock = threading.Lock()
        self._most: int | None = None

    def __call__(self, images: np.ndarray) -> Vectors:
        """Embed one batch: uint8 [n, height, width, 3] -> column name -> float32 [n, dimension]."""
        most = self._most or len(images)
        if len(images) > most:
            return _joined([self(images[start : start + most]) for start in range(0, len(images), most)])
        try:
            vectors = self._call.finish(self._begin(images))
        except Exception as error:
            if len(images) == 1 or not _is_out_of_memory(error):
                raise
            half = (len(images) + 1) // 2
            self._most = min(self._most or half, half)
            _log.warning("%d images do not fit into the device's memory: %d at a time from now on", len(images), half)
            return self(images)
        named = vectors if isinstance(vectors, dict) else {"embedding": vectors}
        for found in named.values():
            if len(found) != len(images):  # One vector would be taken for that of every image.
                raise ValueError(f"the model gives {len(found)} vectors for {len(images)} images")
        return named

    def _begin(self, images: np.ndarray) -> Any:
        with self._lock, pinned_keras():  # Keras' tracing is not re-entrant
            return self._call.begin(images)


def has_gpu() -> bool:
    """Whether Keras' backend sees a GPU, or another accelerator."""
    import_keras()
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return bool(jax.default_backend() != "cpu")
    if backend == "torch":
        import torch

        return bool(torch.cuda.is_available())
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _joined(pieces: list[Vectors]) -> Vectors:
    return {column: np.concatenate([piece[column] for piece in pieces]) for column in pieces[0]}


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


class _Call:
    """One backend's way: `begin` returns as soon as it can, one thread at a time; `finish` waits, in any number."""

    def begin(self, images: np.ndarray) -> Any:
        """Give the device a batch."""
        raise NotImplementedError

    def finish(self, begun: Any) -> np.ndarray | Vectors:
        """Wait for its vectors."""
        raise NotImplementedError


class _KerasCall(_Call):
    """TensorFlow's: Keras' own compiled `predict_on_batch`."""

    def __init__(self, model: keras.Model, precision: Precision) -> None:
        self._model = model
        if precision == Precision.FLOAT32 and has_gpu():
            import tensorflow as tf

            tf.config.experimental.enable_tensor_float_32_execution(enabled=False)

    def begin(self, images: np.ndarray) -> Any:
        return self._model.predict_on_batch(images)

    def finish(self, begun: Any) -> np.ndarray | Vectors:
        vectors: np.ndarray | Vectors = begun
        return vectors


class _JaxCall(_Call):
    """JAX's: one program for each shape, with the weights on the device; it runs while Python goes on.

    A smaller batch than one before is filled up to its size, so that the last of a unit needs no program of its own.
    """

    def __init__(self, model: keras.Model, precision: Precision) -> None:
        import jax

        self._variables = jax.device_put(
            ([one.value for one in model.trainable_variables], [one.value for one in model.non_trainable_variables])
        )
        self._matmul = "highest" if precision == Precision.FLOAT32 else None
        self._sizes: dict[tuple[int, ...], set[int]] = {}

        def call(variables: Any, images: Any) -> Any:
            vectors, _ = model.stateless_call(*variables, images, training=False)
            return vectors

        self._program = jax.jit(call)

    def begin(self, images: np.ndarray) -> Any:
        import jax

        count = len(images)
        sizes = self._sizes.setdefault(images.shape[1:], set())
        size = min((known for known in sizes if known >= count), default=count)
        if size > count:
            images = fill_up(images, size)
        with jax.default_matmul_precision(self._matmul):
            begun = self._program(self._variables, images)
        jax.tree.map(lambda vectors: vectors.copy_to_host_async(), begun)
        return begun, count, size, sizes

    def finish(self, begun: Any) -> np.ndarray | Vectors:
        vectors, count, size, sizes = begun
        found: np.ndarray | Vectors
        if isinstance(vectors, dict):
            found = {column: np.asarray(values)[:count] for column, values in vectors.items()}
        else:
            found = np.asarray(vectors)[:count]
        sizes.add(size)  # not one that the device has no memory for
        return found


class _TorchCall(_Call):
    """PyTorch's: eager, in inference mode; copies to a GPU go from pinned memory, beside its work."""

    def __init__(self, model: keras.Model, precision: Precision) -> None:
        self._model = model
        self._strict = precision == Precision.FLOAT32
        self._cuda = has_gpu()

    def begin(self, images: np.ndarray) -> Any:
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(images))
        with torch.inference_mode(), self._exact():
            if self._cuda:
                batch = batch.pin_memory().to("cuda", non_blocking=True)
            return self._model(batch, training=False)

    def finish(self, begun: Any) -> np.ndarray | Vectors:
        if isinstance(begun, dict):
            return {column: values.cpu().numpy() for column, values in begun.items()}
        vectors: np.ndarray = begun.cpu().numpy()
        return vectors

    @contextlib.contextmanager
    def _exact(self) -> Iterator[None]:
        """At float32 no TensorFloat-32, which PyTorch allows convolutions by default."""
        import torch

        if not (self._cuda and self._strict):
            yield
            return
        settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [one.allow_tf32 for one in settings]
        for one in settings:
            one.allow_tf32 = False
        try:
            yield
        finally:
            for one, value in zip(settings, before, strict=True):
                one.allow_tf32 = value
