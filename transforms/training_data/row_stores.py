"""Read vectors that do not fit in memory, from Parquet or a faster local copy."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from transforms.core.errors import ImagebeamError, JobError
from transforms.training_data.embeddings import EmbeddingSet
from transforms.training_data.row_index import RowIndex
from transforms.training_data.splits import Split

Block = tuple[np.ndarray, np.ndarray]
"""Vectors, float32 [n, dimension], and the numbers of their rows, int64 [n]."""

_PIECE_BYTES = 256 << 10
"""Read at once from a local copy, at most: enough for a disk to be quick."""

_PIECES_IN_A_POOL = 64
"""At least: a shuffle mixes rows of so many places."""


class RowStore(Protocol):
    """The vectors of one split, in pieces that are read at once. A piece goes by its number."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    @property
    def piece_rows(self) -> Sequence[int]:
        """Rows of each piece, at least 1."""

    def read(self, pieces: Sequence[int]) -> Block:
        """Rows of pieces, in the order given; in arrays of their own. Safe to call from several threads."""


class ParquetRows:
    """A split read from the parts themselves, a row group at a time."""

    def __init__(self, embeddings: EmbeddingSet, index: RowIndex, split: Split) -> None:
        counts = [len(index.chosen(group, split)) for group in embeddings.groups]
        self.dimension = embeddings.dimension
        self.piece_rows = [count for count in counts if count]
        self._groups = [group for group, count in zip(embeddings.groups, counts, strict=True) if count]
        self._embeddings, self._index, self._split = embeddings, index, split

    def read(self, pieces: Sequence[int]) -> Block:
        """As `RowStore.read`.

        Raises:
            JobError: if a part cannot be read, or is damaged.
        """
        rows = sum(self.piece_rows[piece] for piece in pieces)
        vectors, numbers = np.empty((rows, self.dimension), np.float32), np.empty(rows, np.int64)
        filled = 0
        groups = [self._groups[piece] for piece in pieces]
        for group, table in self._embeddings.read(groups, [self._embeddings.column]):
            chosen = self._index.chosen(group, self._split)
            taken = slice(filled, filled + len(chosen))
            vectors[taken], numbers[taken] = self._embeddings.vectors(group, table)[chosen], group.start + chosen
            filled += len(chosen)
        return vectors, numbers


class LocalCopy:
    """A split's vectors as they are in memory, in a file without a name: it is gone with the process, however it ends.

    Args:
        numbers: of the rows, int64 [n], in the order in which they will be added.
        dimension: length of the vectors.
        pool_rows: rows that will be shuffled among each other.

    Raises:
        ImagebeamError: if the disk has no room.
    """

    def __init__(self, numbers: np.ndarray, dimension: int, pool_rows: int) -> None:
        self.dimension = dimension
        self._numbers = numbers
        self._row_bytes = dimension * np.dtype(np.float32).itemsize
        most = max(1, min(_PIECE_BYTES // self._row_bytes, pool_rows // _PIECES_IN_A_POOL))
        self._starts = range(0, len(numbers), most)
        self.piece_rows = [min(most, len(numbers) - start) for start in self._starts]
        folder, needed = tempfile.gettempdir(), len(numbers) * self._row_bytes
        if (free := shutil.disk_usage(folder).free) < needed:
            raise ImagebeamError(
                f"The copy of the vectors that do not fit in memory needs {needed / 1e9:.1f} GB; {folder} has "
                f"{free / 1e9:.1f} GB free. Set TMPDIR to another disk, raise --max_memory_mb, or read Parquet in "
                "every epoch with --no_local_copy."
            )
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the copy is
        weakref.finalize(self, self._file.close)

    def add(self, vectors: np.ndarray) -> None:
        """Append float32 vectors [m, dimension]."""
        self._file.write(np.ascontiguousarray(vectors).data)

    def close_for_writing(self) -> None:
        """All rows are added."""
        self._file.flush()

    def read(self, pieces: Sequence[int]) -> Block:
        """As `RowStore.read`."""
        rows = sum(self.piece_rows[piece] for piece in pieces)
        vectors, numbers = np.empty((rows, self.dimension), np.float32), np.empty(rows, np.int64)
        filled = 0
        for piece in pieces:
            start, count = self._starts[piece], self.piece_rows[piece]
            taken = slice(filled, filled + count)
            numbers[taken] = self._numbers[start : start + count]
            if (
                os.preadv(self._file.fileno(), [vectors[taken].data], start * self._row_bytes)
                != count * self._row_bytes
            ):
                raise JobError("The local copy of the vectors ended early: its disk is full or broken.")
            filled += count
        return vectors, numbers
