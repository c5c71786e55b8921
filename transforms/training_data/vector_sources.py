"""Sources of training vectors: a matrix in memory, or a shuffled stream from disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from transforms.training_data.embeddings import EmbeddingSet, ahead
from transforms.training_data.row_index import RowIndex
from transforms.training_data.row_stores import Block, LocalCopy, ParquetRows, RowStore
from transforms.training_data.splits import Split

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler

_BLOCK_BYTES = 16 << 20
"""Vectors handed on at once: the price of crossing from Python into tf.data's threads is paid once a block."""

_ALIGNMENT = 64
"""Bytes; Eigen's, and so TensorFlow's."""

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

        Blocks are copies: TensorFlow may compute in place in an array it was given.
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
        most = max(1, _BLOCK_BYTES // (self.dimension * _BYTES))
        for start in range(0, self.rows, most):
            chosen = places[start : start + most]
            vectors = _aligned((len(chosen), self.dimension))
            np.take(self.vectors, chosen, axis=0, out=vectors, mode="clip")  # "raise" would buffer the output
            yield vectors, self.numbers[chosen]


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    """An empty float32 array that TensorFlow takes over as it is: it copies what does not start at such an address."""
    size = shape[0] * shape[1] * _BYTES
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(np.float32).reshape(shape)


@dataclass(frozen=True)
class StreamSource:
    """Vectors read from disk in each epoch, prefetched.

    Pieces of the store are read in random order, and their rows shuffled in pools.

    Attributes:
        store: where they are.
        pool_rows: rows shuffled among each other at once, a piece more or less.
    """

    store: RowStore
    pool_rows: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(self.store.piece_rows)

    @property
    def dimension(self) -> int:
        """Length of each."""
        return self.store.dimension

    def blocks(self, order: np.random.Generator | None) -> Iterator[Block]:
        """All rows once."""
        pieces = range(len(self.store.piece_rows)) if order is None else order.permutation(len(self.store.piece_rows))
        for vectors, numbers in ahead(self.store.read, self._pools(pieces), 1):
            yield from MatrixSource(vectors, numbers).blocks(order)

    def _pools(self, pieces: Iterable[int]) -> Iterator[list[int]]:
        pool: list[int] = []
        rows = 0
        for piece in pieces:
            pool.append(piece)
            rows += self.store.piece_rows[piece]
            if rows >= self.pool_rows:
                yield pool
                pool, rows = [], 0
        if pool:
            yield pool


@dataclass(frozen=True)
class Sources:
    """What training reads.

    Attributes:
        train: the training rows.
        validation: the validation rows; None where there are none.
        mean: of the training vectors, float32 [dimension].
        deviation: likewise; as `moments` gives them.
    """

    train: Source
    validation: Source | None
    mean: np.ndarray
    deviation: np.ndarray


def open_sources(embeddings: EmbeddingSet, index: RowIndex, max_memory_mb: int, *, local_copy: bool = True) -> Sources:
    """Read all rows once: check every vector, measure the training rows, hold what fits in `max_memory_mb`.

    Held are training and validation rows, or the validation rows alone if they take less than half of it. What is not
    held is copied to a file, or read from Parquet in every epoch; up to three pools of an eighth of it are in memory.

    Args:
        embeddings: what is read.
        index: splits of the rows.
        max_memory_mb: MiB.
        local_copy: whether to make that copy.

    Raises:
        ImagebeamError: for a vector of another length, or with NaN or infinity in it; if the disk has no room.
    """
    row_bytes = embeddings.dimension * _BYTES
    budget = max_memory_mb * 2**20 // row_bytes
    rows = {split: index.rows(split) for split in (Split.TRAIN, Split.VALIDATION)}
    held = {
        split: MatrixSource(np.empty((len(rows[split]), embeddings.dimension), np.float32), rows[split])
        for split in _choose_held(rows, budget)
    }
    pool_rows = max(1, budget // 8)
    rest = [split for split in rows if split not in held]
    copies = {split: LocalCopy(rows[split], embeddings.dimension, pool_rows) for split in rest} if local_copy else {}
    scaler = _read_once(embeddings, index, held, copies)
    sources: dict[Split, Source] = dict(held)
    for split in rest:
        sources[split] = StreamSource(copies.get(split) or ParquetRows(embeddings, index, split), pool_rows)
    validation = sources[Split.VALIDATION] if len(rows[Split.VALIDATION]) else None
    return Sources(sources[Split.TRAIN], validation, *moments(scaler))


def _choose_held(rows: Mapping[Split, np.ndarray], budget: int) -> list[Split]:
    """The splits that fit in `budget` rows."""
    if sum(map(len, rows.values())) <= budget:
        return list(rows)
    return [Split.VALIDATION] if len(rows[Split.VALIDATION]) <= budget // 2 else []


def _read_once(
    embeddings: EmbeddingSet, index: RowIndex, held: Mapping[Split, MatrixSource], copies: Mapping[Split, LocalCopy]
) -> StandardScaler:
    """Fill what is held and what is copied, and measure the training rows."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    filled = dict.fromkeys(held, 0)
    for group, table in embeddings.read(embeddings.groups, [embeddings.column]):
        vectors = embeddings.vectors(group, table)
        chosen = {split: index.chosen(group, split) for split in Split}
        if len(chosen[Split.TRAIN]):
            scaler.partial_fit(vectors[chosen[Split.TRAIN]])
        for split, source in held.items():
            source.vectors[filled[split] : filled[split] + len(chosen[split])] = vectors[chosen[split]]
            filled[split] += len(chosen[split])
        for split, copy in copies.items():
            copy.add(vectors[chosen[split]])
    for copy in copies.values():
        copy.close_for_writing()
    return scaler


def moments(scaler: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 [dimension]. One can divide: it is 1 where a value never changes.

    It is no less than the smallest normal float32, since TensorFlow takes smaller numbers for zero.
    """
    return scaler.mean_.astype(np.float32), np.maximum(scaler.scale_, np.finfo(np.float32).tiny).astype(np.float32)


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
