"""What a shard format offers: cut into record ranges, read a range, tell its columns."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from transforms.core.types import Failure, Record, Stage
from transforms.inputs.columns import as_label, convert
from transforms.inputs.types import ReadOptions, WorkUnit
from transforms.storage import ReplacedError


@dataclass(frozen=True, slots=True)
class Cut:
    """A record range of a shard.

    Attributes:
        start: index of its first record.
        count: records.
        offset: byte offset of the first record in the decompressed shard; 0 where the format needs none.
        error: why none of these records can be read.
    """

    start: int
    count: int
    offset: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record starts, and why it cannot be read if it cannot."""

    offset: int
    error: str | None = None


class RecordError(Exception):
    """One record that is of no use, while the next ones are.

    Attributes:
        error_type: short stable name: ``corrupt``, ``no_image``, ``bad_value``.
    """

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(error_type, message)
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return self.message


class ShardReader(Protocol):
    """A module for one shard format."""

    def cut(self, stream: BinaryIO, rows_per_unit: int) -> Iterator[Cut]:
        """Ranges of at most `rows_per_unit` records, in order, that cover the shard.

        What follows the last record that can be found is one record with an error.
        """

    def read(self, stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure]:
        """The unit's records in order; raises anything if the rest of the unit cannot be read."""

    def columns(self, stream: BinaryIO) -> dict[str, pa.DataType]:
        """The columns, of the first few records where the format has no schema; none of an empty shard."""


def cut_at(places: Iterable[Place], rows_per_unit: int) -> Iterator[Cut]:
    """Group the places of consecutive records; if finding them fails, the next record has the error."""
    start = index = 0
    first: Place | None = None
    failed: str | None = None
    rest = iter(places)
    while failed is None:
        try:
            place = next(rest, None)
        except Exception as error:
            failed, place = explain(error), None
        if first is not None and (place is None or index - start == rows_per_unit or place.error != first.error):
            yield Cut(start, index - start, first.offset, first.error)
            start, first = index, None
        if place is None:
            break
        first = first or place
        index += 1
    if failed is not None:
        yield Cut(index, 1, error=failed)


def make_record(
    key: str, uri: str, data: Any, label: Any, values: Mapping[str, Any], options: ReadOptions
) -> Record | Failure:
    """A record of what a shard holds; a failure where the label or a kept value does not fit."""
    try:
        return Record(key, uri, data, as_label(label), convert(values, options))
    except ValueError as error:
        return failure(key, uri, RecordError("bad_value", str(error)))


def failure(key: str, uri: str, error: Exception | str) -> Failure:
    """The failure of one record, from an exception or from what `explain` made of one."""
    error_type, _, message = (error if isinstance(error, str) else explain(error)).partition(": ")
    return Failure(key, uri, Stage.READ, error_type, message)


def explain(error: Exception) -> str:
    """What to report of an exception: "error_type: message"."""
    message = str(error) or type(error).__name__
    if isinstance(error, RecordError):
        return f"{error.error_type}: {message}"
    if isinstance(error, ReplacedError):
        return f"replaced: {message}"
    if isinstance(error, FileNotFoundError):
        return f"missing: {message}"
    if isinstance(error, EOFError):
        return f"truncated: {message}"
    if isinstance(error, pa.ArrowException | tarfile.TarError | zlib.error | UnicodeError):
        return f"corrupt: {message}"
    if isinstance(error, OSError):
        return f"unreadable: {message}"
    return f"corrupt: {type(error).__name__}: {message}"
