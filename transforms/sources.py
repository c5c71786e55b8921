"""Where training's vectors come from: a matrix where they fit, Parquet row groups through a shuffle pool where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from sklearn.preprocessing import StandardScaler

from transforms.dataset import EmbeddingSet, RowGroup
from transforms.row_index import RowIndex
from transforms.splits import Split

Block = tuple[np.ndarray, np.ndarray]
"""Vectors, float32 [n, dimension], and the numbers of their rows, int64 [n]."""

_BLOCK_ROWS = 4096
"""Rows handed to tf.data at once: the price of crossing from Python into its threads is paid once a block."""

_BYTES = np.dtype(np.float32).itemsize


class Source(Protocol):
    """The vectors of one split."""

    @property
    def rows(self) -> int:
        """How many there are."""

    @property
    def dimension(self) -> int:
        """Length of each."""

    def blocks(self, order: np.random.Generator | None) -> Iterator[Block]:
        """All rows once: shuffled by `order`, or as stored where it is None.

        Blocks are copies: TensorFlow takes an aligned array as it is, and computes in place in what it was given.
        """


@dataclass(frozen=True)
class MatrixSource:
    """Vectors held in memory.

    Attributes:
        vectors: float32 [n, dimension].
        numbers: of their rows, int64 [n].
    """

    vectors: np.ndarray
    numbers: np.ndarray

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.numbers)

    @property
    def dimension(self) -> int:
        """Length of each."""
        return int(self.vectors.shape[1])

    def blocks(self, order: np.random.Generator | None) -> Iterator[Block]:
        """All rows once; every order is equally likely."""
        places = np.arange(self.rows) if order is None else order.permutation(self.rows)
        for start in range(0, self.rows, _BLOCK_ROWS):
            chosen = places[start : start + _BLOCK_ROWS]
            yield self.vectors[chosen], self.numbers[chosen]


@dataclass(frozen=True)
class StreamSource:
    """Vectors read from Parquet anew in each epoch.

    Row groups are read in random order, and their rows shuffled in a pool: rows of one group stay within
    `pool_rows` of each other.

    Attributes:
        embeddings: what is read.
        index: which rows.
        split: likewise.
        pool_rows: rows shuffled among each other at once.
    """

    embeddings: EmbeddingSet
    index: RowIndex
    split: Split
    pool_rows: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.index.rows(self.split))

    @property
    def dimension(self) -> int:
        """Length of each."""
        return self.embeddings.dimension

    def blocks(self, order: np.random.Generator | None) -> Iterator[Block]:
        """All rows once."""
        groups = [group for group in self.embeddings.groups if len(self.index.chosen(group, self.split))]
        if order is None:
            return self._read(groups)
        shuffled = self._read([groups[place] for place in order.permutation(len(groups))])
        return _shuffled(shuffled, self.embeddings.dimension, min(self.pool_rows, self.rows), order)

    def _read(self, groups: Sequence[RowGroup]) -> Iterator[Block]:
        for group, table in self.embeddings.read(groups, [self.embeddings.column]):
            chosen = self.index.chosen(group, self.split)
            yield self.embeddings.vectors(group, table)[chosen], group.start + chosen


def _shuffled(blocks: Iterable[Block], dimension: int, pool_rows: int, order: np.random.Generator) -> Iterator[Block]:
    vectors = np.empty((pool_rows, dimension), np.float32)
    numbers = np.empty(pool_rows, np.int64)
    held = 0
    for more_vectors, more_numbers in blocks:
        taken = 0
        while taken < len(more_numbers):
            count = min(len(more_numbers) - taken, pool_rows - held)
            vectors[held : held + count] = more_vectors[taken : taken + count]
            numbers[held : held + count] = more_numbers[taken : taken + count]
            held, taken = held + count, taken + count
            if held == pool_rows:
                yield from MatrixSource(vectors, numbers).blocks(order)
                held = 0
    yield from MatrixSource(vectors[:held], numbers[:held]).blocks(order)


@dataclass(frozen=True)
class Sources:
    """What training reads.

    Attributes:
        train: the training rows.
        validation: the validation rows; None where there are none.
        mean: of the training vectors, float32 [dimension].
        variance: likewise; as `moments` gives them.
    """

    train: Source
    validation: Source | None
    mean: np.ndarray
    variance: np.ndarray


def open_sources(embeddings: EmbeddingSet, index: RowIndex, max_memory_mb: int) -> Sources:
    """Read all rows once: check every vector, measure the training rows, hold what fits in `max_memory_mb`.

    Held are training and validation rows, or the validation rows alone if they take less than half of it. What is not
    held is read anew in each epoch, and shuffled in a pool of a quarter of it.

    Raises:
        ImagebeamError: for a vector of another length, or with NaN or infinity in it.
    """
    row_bytes = embeddings.dimension * _BYTES
    budget = max_memory_mb * 2**20
    pool_rows = max(1, budget // 4 // row_bytes)
    held = {
        split: MatrixSource(np.empty((len(rows), embeddings.dimension), np.float32), rows)
        for split, rows in _choose_held(index, budget // row_bytes).items()
    }
    filled = dict.fromkeys(held, 0)
    scaler = StandardScaler()
    for group, table in embeddings.read(embeddings.groups, [embeddings.column]):
        vectors = embeddings.vectors(group, table)
        if len(train := index.chosen(group, Split.TRAIN)):
            scaler.partial_fit(vectors[train])
        for split, source in held.items():
            chosen = index.chosen(group, split)
            source.vectors[filled[split] : filled[split] + len(chosen)] = vectors[chosen]
            filled[split] += len(chosen)
    sources = {split: held.get(split) or StreamSource(embeddings, index, split, pool_rows) for split in Split}
    validation = sources[Split.VALIDATION] if sources[Split.VALIDATION].rows else None
    return Sources(sources[Split.TRAIN], validation, *moments(scaler))


def moments(scaler: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, float32 [dimension]; the variance is 1 where a value never changes, so that one can divide."""
    return scaler.mean_.astype(np.float32), np.square(scaler.scale_).astype(np.float32)


def _choose_held(index: RowIndex, budget: int) -> dict[Split, np.ndarray]:
    """The splits that fit in `budget` rows, with the numbers of their rows."""
    rows = {split: index.rows(split) for split in (Split.TRAIN, Split.VALIDATION)}
    if sum(map(len, rows.values())) <= budget:
        return rows
    validation = rows[Split.VALIDATION]
    return {Split.VALIDATION: validation} if len(validation) <= budget // 2 else {}


class EpochOrder:
    """The order of an epoch's rows: a function of the seed and the epoch, so that a resumed run repeats it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch is next, from 0."""
        self._epoch = epoch

    def generator(self) -> np.random.Generator:
        """A fresh generator for the epoch."""
        return np.random.default_rng([self._seed, self._epoch])


def to_dataset(
    source: Source, targets: Callable[[np.ndarray], np.ndarray], batch_size: int, order: EpochOrder | None = None
) -> Any:
    """A source as a `tf.data.Dataset` of batches, the last of which may be smaller.

    Args:
        source: vectors and numbers of their rows.
        targets: row numbers [n] -> targets [n, ...], such as `RowIndex.targets`.
        batch_size: rows.
        order: shuffle, in the order of its epoch; None to keep the rows as stored.

    Returns:
        Dataset of (float32 [batch_size, dimension], targets).
    """
    import tensorflow as tf

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for vectors, rows in source.blocks(order.generator() if order is not None else None):
            yield vectors, targets(rows)

    none = targets(np.empty(0, np.int64))
    signature = (
        tf.TensorSpec((None, source.dimension), tf.float32),
        tf.TensorSpec((None, *none.shape[1:]), none.dtype),
    )
    return (
        tf.data.Dataset.from_generator(blocks, output_signature=signature)
        .rebatch(batch_size)
        .apply(tf.data.experimental.assert_cardinality(-(-source.rows // batch_size)))
        .prefetch(tf.data.AUTOTUNE)
    )
