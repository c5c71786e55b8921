"""A work unit -> its records, whatever the format; whatever happens, as many as were planned."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from transforms import storage
from transforms.core.batching import map_ahead
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record
from transforms.inputs.base import ShardReader, explain, failure
from transforms.inputs.types import ReadOptions, RecordRef, WorkUnit

FILES_AHEAD = 16
"""Image files opened at once where each is a file of its own: hides the latency of an object store."""

_READERS = {
    InputFormat.TFRECORD: "transforms.inputs.tfrecord",
    InputFormat.WEBDATASET: "transforms.inputs.webdataset",
    InputFormat.PARQUET: "transforms.inputs.parquet",
}


def reader(input_format: InputFormat) -> ShardReader:
    """The module that reads a shard format."""
    return cast(ShardReader, importlib.import_module(_READERS[input_format]))


def read_records(unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure]:
    """Exactly `unit.count` items, in order: a record that cannot be read is a failure of stage read.

    Where the rest of a shard cannot be read, each remaining record is one failure. The keys are an image file's uri,
    a manifest's keys, ``<shard>#<index>``, and ``<shard>#<sample>`` in a WebDataset shard.
    """
    if unit.shard is None:
        yield from _read_files(unit)
        return
    done = 0
    error = unit.error
    if error is None:
        error = "truncated: the shard has fewer records than when it was planned"
        try:
            with storage.open_read(unit.shard.file.uri, unit.shard.file.version) as stream:
                records = reader(unit.format).read(stream, unit, options)
                for item in itertools.islice(records, unit.count):
                    done += 1
                    yield item
        except Exception as caught:  # Whatever a damaged shard makes a library raise.
            error = explain(caught)
    for index in range(unit.start + done, unit.start + unit.count):
        yield failure(_unread_key(unit, index), unit.shard.file.uri, error)


def _unread_key(unit: WorkUnit, index: int) -> str:
    """The key of a record that was not reached.

    A WebDataset sample's own key is unknown then; no sample's key starts with a dot.
    """
    assert unit.shard is not None
    return f"{unit.shard.file.uri}#{'.' if unit.format == InputFormat.WEBDATASET else ''}{index}"


def open_records(unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure | RecordRef]:
    """`read_records`, but for local image files, of which each is still to be read: `read_file` does it.

    Whoever decodes such a file may as well read it: handing every one from thread to thread costs a tenth of what
    decoding does.
    """
    if unit.shard is None and all(storage.is_local(ref.uri) for ref in unit.refs):
        return iter(unit.refs)
    return read_records(unit, options)


def _read_files(unit: WorkUnit) -> Iterator[Record | Failure]:
    with ThreadPoolExecutor(FILES_AHEAD, thread_name_prefix="read") as pool:
        yield from map_ahead(read_file, unit.refs, pool, FILES_AHEAD)


def read_file(ref: RecordRef) -> Record | Failure:
    """The image file of a record; a failure of stage read where it cannot be read."""
    try:
        data = storage.read_bytes(ref.uri, ref.version)
    except Exception as error:
        return failure(ref.key, ref.uri, error)
    return Record(ref.key, ref.uri, data, ref.label, dict(ref.extras))
