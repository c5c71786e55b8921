"""Batches for `model.fit`: a tf.data pipeline where TensorFlow computes, a `keras.utils.PyDataset` elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.training_data.vector_sources import EpochOrder, Source

if TYPE_CHECKING:
    from transforms.training_data.numpy_dataset import Arrays

_BATCHES_AHEAD = 32
"""Batches of vectors that wait: a fixed number, where TensorFlow's own choice takes memory as it likes."""


def vector_batches(
    source: Source, targets: Callable[[np.ndarray], np.ndarray], batch_size: int, order: EpochOrder | None = None
) -> Any:
    """A source as a dataset of batches, the last of which may be smaller.

    Args:
        source: vectors and numbers of their rows.
        targets: row numbers [n] -> targets [n, ...], such as `RowIndex.targets`.
        batch_size: rows.
        order: shuffle, in the order of its epoch; None to keep the rows as stored.

    Returns:
        What `to_dataset` gives, of (float32 [batch_size, dimension], targets).
    """

    def blocks() -> Iterator[Arrays]:
        for vectors, rows in source.blocks(order.generator() if order is not None else None):
            yield vectors, targets(rows)

    example = np.empty((0, source.dimension), np.float32), targets(np.empty(0, np.int64))
    return to_dataset(blocks, example, source.rows, batch_size, _BATCHES_AHEAD)


def to_dataset(
    blocks: Callable[[], Iterator[Arrays]], example: Arrays, rows: int, batch_size: int, batches_ahead: int
) -> Any:
    """Blocks of any number of rows as a dataset of batches for Keras, read in a thread while the model computes.

    Args:
        blocks: all rows once; called for every epoch.
        example: arrays without rows, of the blocks' other sizes and dtypes.
        rows: of all blocks.
        batch_size: rows of a batch; the last may be smaller.
        batches_ahead: batches that wait for the model at most, for TensorFlow.

    Returns:
        A `tf.data.Dataset` on Keras' TensorFlow backend, else a `keras.utils.PyDataset`; `len` gives its batches.
    """
    import keras

    if keras.backend.backend() == "tensorflow":
        return _tensorflow_dataset(blocks, example, rows, batch_size, batches_ahead)
    from transforms.training_data.numpy_dataset import NumpyDataset

    return NumpyDataset(blocks, rows, batch_size)


def _tensorflow_dataset(
    blocks: Callable[[], Iterator[Arrays]], example: Arrays, rows: int, batch_size: int, batches_ahead: int
) -> Any:
    import tensorflow as tf

    signature = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in example)
    # TensorFlow keeps a generator until the process ends, which must not keep the vectors: the dataset does.
    lent = weakref.proxy(blocks)
    dataset = (
        tf.data.Dataset.from_generator(lambda: lent(), output_signature=signature)
        .rebatch(batch_size)
        .apply(tf.data.experimental.assert_cardinality(-(-rows // batch_size)))
        .prefetch(batches_ahead)
    )
    dataset.blocks = blocks
    return dataset
