"""What a shard format offers: cut into record ranges, read a range, look at its columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from transforms.types import ReadOptions, Record, WorkUnit


@dataclass(frozen=True, slots=True)
class Cut:
    """A record range of a shard: its first index, its length, and the (decompressed) byte offset it starts at."""

    start: int
    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RecordError:
    """One record that cannot be read, while the next ones can."""

    key: str
    error_type: str
    message: str


class ShardError(OSError):
    """The rest of a shard cannot be read. `index` is that of the first record that is lost."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class ShardReader(Protocol):
    """A module for one shard format."""

    def cut(self, stream: BinaryIO, size: int, rows_per_unit: int) -> Iterator[Cut]:
        """Ranges of at most `rows_per_unit` records, in order, covering the shard.

        Raises:
            ShardError: after the ranges that can be read, if the rest cannot.
        """

    def read(self, stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | RecordError]:
        """The unit's records in order.

        Raises:
            OSError, EOFError, ValueError: if the rest of the unit cannot be read.
        """

    def check_columns(self, stream: BinaryIO, options: ReadOptions) -> ReadOptions:
        """The options, with the types of kept columns filled in.

        Raises:
            ImagebeamError: if the shard has no such column, naming those it has.
        """
