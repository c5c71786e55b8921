"""The interface of shard readers: cut a shard, read a slice, list its columns."""

from __future__ import annotations

import dataclasses
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeVar

import pyarrow as pa

from transforms.core.errors import ColumnTypeError, FailureError, ImagebeamError, StopError
from transforms.core.text import printable, storable
from transforms.core.types import Failure, Record, Stage
from transforms.readers.columns import label_and_extras
from transforms.readers.folders import class_folder
from transforms.readers.options import ReadOptions
from transforms.readers.units import Shard, ShardSlice
from transforms.storage import ReplacedError

T = TypeVar("T")

MISSING = "missing"
"""The error type of a file that is not there."""

NAMES_KEPT = 5
"""Names of what is left out, for each kind."""


_LABEL_CHARACTERS = 10_000

_ANOTHER_TYPE = "Write the column as another type, or leave it out of the file"


@dataclass
class LeftOut:
    """What is passed over without being a record: how much of each kind, and the first few names."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        known = self.names.setdefault(kind, [])
        if len(known) < NAMES_KEPT:
            known.append(name)


@dataclass(frozen=True, slots=True)
class Cut:
    """A record range of a shard.

    Attributes:
        start: index of its first record.
        count: records.
        offset: byte offset of the first record in the decompressed shard; 0 where the format needs none.
        errors: (index in the shard, "error_type: message") of records that are of no use.
        failed: why the rest of the shard cannot be read; the range is then one record that stands for it, and `offset`
            is where the rest begins.
        entry: see `ShardSlice`; None where reading can begin at the first record.
    """

    start: int
    count: int
    offset: int = 0
    errors: tuple[tuple[int, str], ...] = ()
    failed: Exception | None = None
    entry: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record starts and ends in the decompressed shard, and why it is of no use if it is not."""

    offset: int
    end: int
    error: str | None = None


class RecordError(FailureError):
    """One record that is of no use, while the next ones are; ``corrupt``, ``no_image``, ``bad_value``, ..."""


@dataclass(frozen=True, slots=True)
class SampleLimits:
    """How far into a file its records are looked at for the types of columns.

    Attributes:
        records: at most.
        bytes: of the stored file that are passed, read or not.
    """

    records: int
    bytes: int


_ALL_SAMPLED = 64
"""Records at the beginning of a shard that are looked at one by one; behind them, half as many of each doubling."""


def is_sampled(index: int) -> bool:
    """Whether a record whose content is costly to read is one of a sample."""
    return index < _ALL_SAMPLED or index % (1 << (index.bit_length() - _ALL_SAMPLED.bit_length() + 1)) == 0


class ShardReader(Protocol):
    """A module for one shard format."""

    def is_compressed(self, head: bytes) -> bool:
        """Whether a file is inflated to be read; told by its first `compression.HEAD_BYTES`."""

    def cut(self, stream: BinaryIO, rows_per_unit: int, options: ReadOptions, left_out: LeftOut) -> Iterator[Cut]:
        """Ranges of at most `rows_per_unit` records, in order, that cover the shard.

        What is no record is counted in `left_out`. What follows the last record that can be found is a range of one
        record with `failed` set.
        """

    def read(self, stream: BinaryIO, part: ShardSlice, options: ReadOptions) -> Iterator[Record | Failure]:
        """The slice's records in order; raises anything if the rest of it cannot be read."""

    def columns(self, stream: BinaryIO, options: ReadOptions) -> dict[str, pa.DataType]:
        """The columns, from the first few records if the format has no schema. Empty for an empty shard.

        Raises:
            ImagebeamError: if one that `options` asks for is there twice.
        """

    def sample(self, stream: BinaryIO, options: ReadOptions, limits: SampleLimits) -> Iterator[Mapping[str, Any]]:
        """Columns of some records, the kept ones at least, by name; no records where the format has a schema.

        They are all of the first records and ever fewer of those behind; see `is_sampled`.
        """


def cut_at(places: Iterable[Place], rows_per_unit: int, entry: int | None = None) -> Iterator[Cut]:
    """Group the places of consecutive records into ranges. If finding them fails, the last range represents the rest.

    Args:
        places: of all records.
        rows_per_unit: records in a range at most.
        entry: of each range; see `Cut`.
    """
    index = end = 0
    waiting: list[Place] = []

    def gather() -> Cut:
        start = index - len(waiting)
        errors = tuple((start + at, place.error) for at, place in enumerate(waiting) if place.error is not None)
        return Cut(start, len(waiting), waiting[0].offset, errors, entry=entry)

    failed: Exception | None = None
    rest = iter(places)
    while failed is None:
        try:
            place = next(rest, None)
        except Exception as error:
            failed, place = error, None
        if waiting and (place is None or len(waiting) == rows_per_unit):
            yield gather()
            waiting.clear()
        if place is None:
            break
        waiting.append(place)
        index, end = index + 1, place.end
    if failed is not None:
        yield Cut(index, 1, end, failed=failed)


def bounded(label: str | None) -> str | None:
    """A label that is not far too long to be one.

    Raises:
        ValueError: if it is.
    """
    if label is not None and len(label) > _LABEL_CHARACTERS:
        raise ValueError(f"a label has {_LABEL_CHARACTERS:,} characters at most; received {len(label):,}")
    return label


def make_record(
    key: str,
    uri: str,
    data: Any,
    label: Any,
    values: Mapping[str, Any],
    options: ReadOptions,
    folder: str | None = None,
) -> Record | Failure:
    """Build a record, or a failure if the label or a kept value does not fit.

    Args:
        key: of the record.
        uri: of the shard.
        data: the encoded image.
        label: as the shard stores it, None where it has none.
        values: the shard's columns; those in the names of its folders are added.
        options: which of them are kept, and where labels come from.
        folder: name of the folder that tells the class, where one does.
    """
    try:
        chosen, extras = label_and_extras(label, values, uri, folder, options)
        return Record(storable(key), storable(uri), data, bounded(chosen), extras)
    except ValueError as error:
        return failure(key, uri, RecordError("bad_value", str(error)))


def shard_folder(shard: Shard, options: ReadOptions) -> str | None:
    """The folder that tells the class of all records of a shard, where folders are asked for it."""
    if not options.label_from.is_folder:
        return None
    return class_folder(shard.file.uri, shard.root, options.label_from)


def caught(make: Callable[..., T], key: str, uri: str, *args: Any) -> T | Failure:
    """Call ``make(key, uri, *args)``. Any exception of a library becomes a failure of this record.

    Raises:
        MachineError: as `make` does.
        ColumnTypeError: naming the record, for a kept value that does not fit a type that nobody declared.
    """
    try:
        return make(key, uri, *args)
    except ColumnTypeError as error:
        raise ColumnTypeError(f"{storable(key)}: {error}") from error
    except StopError:
        raise
    except MemoryError as error:
        return machine_failure(key, uri, error)
    except Exception as error:
        return failure(key, uri, error)


def too_large(size: int, limit: int) -> RecordError:
    """The error of a record that would take too much memory."""
    return RecordError("too_large", f"it has {size:,} bytes, more than --max_record_bytes {limit:,}")


def failure(key: str, uri: str, error: Exception | str) -> Failure:
    """The failure of one record, from an exception or from what `explain` made of one."""
    error_type, _, message = (error if isinstance(error, str) else explain(error)).partition(": ")
    return Failure(storable(key), storable(uri), Stage.READ, error_type, printable(message))


def machine_failure(key: str, uri: str, error: Exception) -> Failure:
    """The failure of a record that the machine could not read."""
    return dataclasses.replace(failure(key, uri, error), retryable=True)


def explain(error: Exception) -> str:
    """What to report of an exception: "error_type: message"."""
    message = str(error) or type(error).__name__
    if isinstance(error, RecordError):
        return f"{error.error_type}: {message}"
    if isinstance(error, ReplacedError):
        return f"replaced: {message}"
    if isinstance(error, ImagebeamError):
        return f"bad_value: {message}"
    if isinstance(error, FileNotFoundError):
        return f"{MISSING}: {message}"
    if isinstance(error, EOFError):
        return f"truncated: {message}"
    if isinstance(error, pa.ArrowNotImplementedError):
        return f"unsupported: pyarrow cannot read it ({message}). {_ANOTHER_TYPE}"
    if isinstance(error, pa.ArrowException | tarfile.TarError | zlib.error | UnicodeError):
        return f"corrupt: {message}"
    if isinstance(error, OSError | MemoryError):
        return f"unreadable: {message}"
    return f"corrupt: {type(error).__name__}: {message}"
