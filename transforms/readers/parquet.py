"""Parquet shards: a column of bytes, or Hugging Face's struct<bytes, path>, read row group by row group."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.types import Failure, Record
from transforms.readers.allowed_paths import reach
from transforms.readers.base import (
    Cut,
    LeftOut,
    RecordError,
    SampleLimits,
    caught,
    make_record,
    shard_folder,
    too_large,
)
from transforms.readers.column_types import stored_type
from transforms.readers.columns import NamedLabels, as_text, describe, repeated_column
from transforms.readers.image_files import read_file
from transforms.readers.options import ReadOptions
from transforms.readers.parquet_rows import Row, bounded_rows
from transforms.readers.units import RecordRef, ShardSlice

_BATCH_ROWS = 16
"""Rows decoded at once: their images are in memory together."""

_BESIDE_BYTES = 1 << 20
"""Bytes of a row's other columns, beside its image."""

_READ_BYTES = 8 << 20
"""Bytes of a column that are read at once: a row group may hold gigabytes of images."""


def is_compressed(head: bytes) -> bool:
    """Never as a whole; see `base.ShardReader`."""
    del head
    return False


def cut(stream: BinaryIO, rows_per_unit: int, options: ReadOptions, left_out: LeftOut) -> Iterator[Cut]:
    """Row ranges that never cross a row group; see `base.ShardReader`."""
    del options, left_out
    metadata = _open(stream).metadata
    start = 0
    for group in range(metadata.num_row_groups):
        end = start + metadata.row_group(group).num_rows
        for first in range(start, end, rows_per_unit):
            yield Cut(first, min(rows_per_unit, end - first), entry=start)
        start = end


def read(stream: BinaryIO, part: ShardSlice, options: ReadOptions) -> Iterator[Record | Failure]:
    """The slice's rows; see `base.ShardReader`."""
    uri = part.shard.file.uri
    file = _open(stream)
    schema = file.schema_arrow
    wanted = _wanted(options)
    if why := repeated_column(schema.names, wanted):
        raise RecordError("bad_value", why)
    if options.image_column not in schema.names:
        known = dict(zip(schema.names, schema.types, strict=True))
        raise RecordError("no_image", f"the shard has no column {options.image_column!r}. {describe(known)}")
    names = NamedLabels.of(schema.metadata, options.label_column)
    rows = _rows(file, part, [name for name in wanted if name in schema.names], options)
    folder = shard_folder(part.shard, options)
    for index, row in enumerate(rows, start=part.start):
        yield caught(_record, f"{uri}#{index}", uri, row, options, names, folder)


def _record(
    key: str, uri: str, row: Row, options: ReadOptions, names: NamedLabels, folder: str | None
) -> Record | Failure:
    if isinstance(row, RecordError):
        raise row
    value = row[options.image_column]
    try:
        label = names.label(row.get(options.label_column))
    except ValueError as error:
        raise RecordError("bad_value", str(error)) from error
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        path = reach(as_text(value["path"]), storage.parent(uri), options)
        found = read_file(RecordRef(key, path), options.max_record_bytes)
        if isinstance(found, Failure):
            return dataclasses.replace(found, uri=uri)
        return make_record(key, uri, found.data, label, row, options, folder)
    image = _image(value)
    if len(image) > options.max_record_bytes:
        raise too_large(len(image), options.max_record_bytes)
    return make_record(key, uri, image, label, row, options, folder)


def _wanted(options: ReadOptions) -> list[str]:
    return [*dict.fromkeys((options.image_column, options.label_column, *options.kept_from.values()))]


def columns(stream: BinaryIO, options: ReadOptions) -> dict[str, pa.DataType]:
    """The schema; see `base.ShardReader`."""
    schema = _open(stream).schema_arrow
    if why := repeated_column(schema.names, _wanted(options)):
        raise ImagebeamError(why)
    return dict(zip(schema.names, map(stored_type, schema.types), strict=True))


def sample(stream: BinaryIO, options: ReadOptions, limits: SampleLimits) -> Iterator[dict[str, Any]]:
    """Nothing: the schema is exact; see `base.ShardReader`."""
    del stream, options, limits
    return iter(())


def _open(stream: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)


def _rows(file: pq.ParquetFile, part: ShardSlice, names: list[str], options: ReadOptions) -> Iterator[Row]:
    """The slice's rows; see `bounded_rows`."""
    kept = set(options.kept_from.values()) - {options.image_column, options.label_column}
    group = before = 0
    while before + file.metadata.row_group(group).num_rows <= part.start:
        before += file.metadata.row_group(group).num_rows
        group += 1
    skip = part.start - before
    rows = bounded_rows(file, group, names, kept, _BATCH_ROWS, options.max_record_bytes + _BESIDE_BYTES, start=skip)
    yield from itertools.islice(rows, part.count)


def _image(value: Any) -> bytes:
    """An image column's value: bytes, or {"bytes": ...}, either of which may be null.

    Raises:
        RecordError: if there are none.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        raise RecordError("no_image", "the image is null")
    if not isinstance(value, bytes):
        raise RecordError("no_image", f"the image is a {type(value).__name__}, not bytes")
    return value
