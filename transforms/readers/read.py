"""Read the records of a work unit. It always yields as many as were planned."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, cast

from transforms import storage
from transforms.core.batching import map_ahead
from transforms.core.errors import StopError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record, Unread
from transforms.readers.base import RecordError, ShardReader, explain, failure
from transforms.readers.image_files import read_file
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListUnit, RecordRef, Shard, ShardSlice, ShardUnit, WorkUnit
from transforms.storage.resuming import ResumingStream
from transforms.storage.retry import is_retryable

FILES_AHEAD = 16
"""Image files opened at once where each is a file of its own: hides the latency of an object store."""

_PARKED = 4
"""Shards that stay open between two units at most."""

_ENCRYPTED = "the Parquet file, or a column that is asked for, is encrypted; write it without encryption"

_READERS = {
    InputFormat.TFRECORD: "transforms.readers.tfrecord",
    InputFormat.WEBDATASET: "transforms.readers.webdataset",
    InputFormat.PARQUET: "transforms.readers.parquet",
}


def reader(input_format: InputFormat) -> ShardReader:
    """The module that reads a shard format."""
    return cast(ShardReader, importlib.import_module(_READERS[input_format]))


def read_records(unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure]:
    """Exactly `unit.count` items, in order: a record that cannot be read is a failure of stage read.

    Where the rest of a shard cannot be read, each remaining record is one failure. The keys are an image file's uri,
    a manifest's keys, ``<shard>#<index>``, and ``<shard>#<sample>`` in a WebDataset shard.

    Raises:
        MachineError: if too many reads in a row fail, and not for what the files hold.
        ColumnTypeError: for a kept value that does not fit a type that nobody declared.
    """
    if isinstance(unit, ListUnit):
        yield from _read_files(unit, options.max_record_bytes)
    elif isinstance(unit, ShardUnit):
        for part in unit.slices:
            yield from _read_slice(part, options)


class _Reading:
    """A shard that is open, its reader somewhere in it.

    Attributes:
        source: the file; None where its content is read from elsewhere.
        records: of a slice of it.
    """

    def __init__(self, part: ShardSlice, options: ReadOptions) -> None:
        self.source: ResumingStream | None = None
        if part.content is None:
            self.source = ResumingStream(part.shard.file.uri, part.shard.file.version)
        self._stream = cast(BinaryIO, self.source) if part.content is None else part.content.open()
        wanted = dataclasses.replace(part, count=sys.maxsize) if part.goes_on else part
        self.records = reader(part.shard.format).read(self._stream, wanted, options)

    def close(self) -> None:
        if isinstance(self.records, Generator):
            self.records.close()
        self._stream.close()


class _Parked:
    """Open shards kept for the reader of the next slice. Thread-safe."""

    def __init__(self) -> None:
        self._readings: OrderedDict[tuple[Shard, int, ReadOptions], _Reading] = OrderedDict()
        self._lock = threading.Lock()

    def park(self, part: ShardSlice, options: ReadOptions, reading: _Reading) -> None:
        """Keep a shard open whose reader stands behind `part`; those parked long ago are closed."""
        with self._lock:
            self._readings[part.shard, part.end, options] = reading
            too_many = [self._readings.popitem(last=False)[1] for _ in range(len(self._readings) - _PARKED)]
        for old in too_many:
            old.close()

    def take(self, part: ShardSlice, options: ReadOptions) -> _Reading | None:
        """The open shard whose reader stands at the start of `part`."""
        with self._lock:
            return self._readings.pop((part.shard, part.start, options), None)


_parked = _Parked()


def _read_slice(part: ShardSlice, options: ReadOptions) -> Iterator[Record | Failure]:
    if part.unread is not None:
        yield from _unread(part, 0, part.unread, part.retryable)
        return
    done = 0
    errors = dict(part.errors)
    source: ResumingStream | None = None
    reading: _Reading | None = None
    caught: Exception
    try:
        reading = _parked.take(part, options) or _Reading(part, options)
        source = reading.source
        for index, item in enumerate(itertools.islice(reading.records, part.count), start=part.start):
            done += 1
            error = errors.get(index)
            yield item if error is None else failure(_unread_key(part, index), part.shard.file.uri, error)
        caught = RecordError("truncated", "the shard has fewer records than when it was planned")
        if part.goes_on and done == part.count:
            _parked.park(part, options, reading)
            reading = None
    except StopError:
        raise
    except Exception as error:  # Whatever a damaged shard makes a library raise.
        caught = error
    finally:
        if reading is not None:
            reading.close()
    if done < part.count:
        reason, retryable = judge(source, caught)
        yield from _unread(part, done, Unread(part.shard.file.uri, reason, records=part.count - done), retryable)


def judge(source: ResumingStream | None, error: Exception) -> tuple[str, bool]:
    """Why a shard cannot be read on ("error_type: message"), and whether that is the machine's fault.

    Args:
        source: the shard; None where it did not even open.
        error: what reading it raised, of the storage's errors or of a library that was given its content.

    Raises:
        MachineError: if the storage failed too often in a row.
    """
    cause = error if source is None else source.fault or error
    if isinstance(cause, StopError):
        raise cause
    from_storage = source is None or source.fault is not None or isinstance(error, MemoryError)
    if not from_storage and isinstance(error, OSError):  # Arrow's, of content.
        return (f"unsupported: {_ENCRYPTED}" if "decrypt" in str(error) else f"corrupt: {error}"), False
    return explain(cause), from_storage and is_retryable(cause)


def _unread(part: ShardSlice, done: int, unread: Unread, retryable: bool) -> Iterator[Failure]:
    """One failure for each record that was not reached; the first says how much that is."""
    for index in range(part.start + done, part.start + part.count):
        found = failure(_unread_key(part, index), part.shard.file.uri, unread.reason)
        first = unread if index == part.start + done else None
        yield dataclasses.replace(found, retryable=retryable, unread=first)


def _unread_key(part: ShardSlice, index: int) -> str:
    """The key of a record that was not reached.

    A WebDataset sample's own key is unknown then; no sample's key starts with a dot.
    """
    return f"{part.shard.file.uri}#{'.' if part.shard.format == InputFormat.WEBDATASET else ''}{index}"


def open_records(unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure | RecordRef]:
    """Like `read_records`, except that local image files are left for `read_file` to read.

    The thread that decodes such a file reads it too: handing its bytes from thread to thread would cost a tenth of what
    decoding does.
    """
    if isinstance(unit, ListUnit) and all(storage.is_local(ref.uri) for ref in unit.refs):
        return iter(unit.refs)
    return read_records(unit, options)


def _read_files(unit: ListUnit, limit: int) -> Iterator[Record | Failure]:
    def read(ref: RecordRef | Failure) -> Record | Failure:
        return ref if isinstance(ref, Failure) else read_file(ref, limit)

    with ThreadPoolExecutor(FILES_AHEAD, thread_name_prefix="read") as pool:
        yield from map_ahead(read, unit.refs, pool, FILES_AHEAD)
