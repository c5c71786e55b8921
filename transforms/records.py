"""A work unit -> its records, whatever the format; whatever happens, as many as were planned."""

from __future__ import annotations

import importlib
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pyarrow as pa

from transforms import storage
from transforms.batching import map_ahead
from transforms.readers import RecordError, ShardReader
from transforms.storage import ReplacedError
from transforms.types import Failure, InputFormat, ReadOptions, Record, RecordRef, Stage, WorkUnit

FILES_AHEAD = 16
"""Image files opened at once where each is a file of its own: hides the latency of an object store."""

_READERS = {
    InputFormat.TFRECORD: "transforms.tfrecord",
    InputFormat.WEBDATASET: "transforms.webdataset",
    InputFormat.PARQUET: "transforms.parquet_shard",
}

SHARD_FORMATS = frozenset(_READERS)
"""Formats whose files hold many records."""

READ_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, pa.ArrowException)
"""What reading a damaged shard raises."""


def reader(input_format: InputFormat) -> ShardReader:
    """The module that reads a shard format."""
    return cast(ShardReader, importlib.import_module(_READERS[input_format]))


def read_records(unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure]:
    """Exactly `unit.count` items, in order: a record that cannot be read is a failure of stage read.

    Where the rest of a shard cannot be read, each remaining record is one failure.
    """
    if unit.shard is None:
        yield from _read_files(unit)
        return
    uri = unit.shard.file.uri
    if unit.error is not None:
        yield Failure(f"{uri}#{unit.start}", uri, Stage.READ, "unreadable_shard", unit.error)
        return
    done = 0
    try:
        with storage.open_read(uri, unit.shard.file.version) as stream:
            for item in reader(unit.format).read(stream, unit, options):
                done += 1
                yield _failure(item, uri) if isinstance(item, RecordError) else item
    except READ_ERRORS as error:
        for index in range(unit.start + done, unit.start + unit.count):
            yield Failure(f"{uri}#{index}", uri, Stage.READ, _error_type(error), str(error) or repr(error))


def _failure(error: RecordError, uri: str) -> Failure:
    return Failure(error.key, uri, Stage.READ, error.error_type, error.message)


def _error_type(error: Exception) -> str:
    if isinstance(error, ReplacedError):
        return "replaced"
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"


def _read_files(unit: WorkUnit) -> Iterator[Record | Failure]:
    with ThreadPoolExecutor(FILES_AHEAD, thread_name_prefix="read") as pool:
        yield from map_ahead(_read_file, unit.refs, pool, FILES_AHEAD)


def _read_file(ref: RecordRef) -> Record | Failure:
    try:
        data = storage.read_bytes(ref.uri, ref.version)
    except OSError as error:
        return Failure(ref.key, ref.uri, Stage.READ, _error_type(error), str(error))
    return Record(ref.key, ref.uri, data, ref.label, dict(ref.extras))
