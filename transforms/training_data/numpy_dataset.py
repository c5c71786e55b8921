"""Batches in plain NumPy, for Keras' backends other than TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import keras
import numpy as np

from transforms.core.batching import decode_pool, map_ahead

Arrays = tuple[np.ndarray, ...]
"""Inputs and targets: arrays of as many rows each."""

_BLOCKS_AHEAD = 1
"""Blocks that wait while batches are cut from another."""


class NumpyDataset(keras.utils.PyDataset):  # type: ignore[misc] # Keras has no types
    """Blocks of any number of rows, read one ahead of the model, as batches of equal numbers.

    Batches come in sequence, as Keras asks for them with one worker and `shuffle=False`; number 0 begins anew.

    Args:
        blocks: all rows once; called for every epoch.
        rows: of all blocks.
        batch_size: rows of a batch; the last may be smaller.
    """

    def __init__(self, blocks: Callable[[], Iterable[Arrays]], rows: int, batch_size: int) -> None:
        super().__init__()
        self._blocks = blocks
        self._batches = -(-rows // batch_size)
        self._batch_size = batch_size
        self._next = 0
        self._running: Generator[Arrays, None, None] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._batches

    def __getitem__(self, index: int) -> Arrays:
        """The next batch.

        Raises:
            ValueError: for any other, or where the blocks hold other rows than was said.
        """
        if index == 0:
            self._stop()
            self._running = self._read()
        if self._running is None or index != self._next:
            raise ValueError(f"Batches are read in sequence. Received: batch {index} after {self._next - 1}.")
        batch = next(self._running, None)
        if batch is None:
            raise ValueError(f"There are {index} batches, fewer than the {self._batches} of so many rows.")
        self._next = index + 1
        if self._next == self._batches:
            if next(self._running, None) is not None:
                raise ValueError(f"There are more batches than the {self._batches} of so many rows.")
            self._stop()
        return batch

    def _read(self) -> Generator[Arrays, None, None]:
        blocks = map_ahead(lambda block: block, self._blocks(), decode_pool(), _BLOCKS_AHEAD)
        return rebatch(blocks, self._batch_size)

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
        self._running = None
        self._next = 0


def rebatch(blocks: Iterable[Arrays], batch_size: int) -> Generator[Arrays, None, None]:
    """The rows of blocks of any size, in order, `batch_size` at a time; the last batch may be smaller.

    A batch that lies in one block is a view of it.
    """
    pieces: list[Arrays] = []
    missing = batch_size
    for block in blocks:
        start, rows = 0, len(block[0])
        while start < rows:
            stop = min(start + missing, rows)
            pieces.append(tuple(array[start:stop] for array in block))
            missing -= stop - start
            start = stop
            if not missing:
                yield _join(pieces)
                pieces, missing = [], batch_size
    if pieces:
        yield _join(pieces)


def _join(pieces: list[Arrays]) -> Arrays:
    return pieces[0] if len(pieces) == 1 else tuple(map(np.concatenate, zip(*pieces, strict=True)))
