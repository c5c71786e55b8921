"""Parquet shards: a column of bytes, or Hugging Face's struct<bytes, path>, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.types import Failure, Record
from transforms.inputs.base import Cut, RecordError, failure, make_record
from transforms.inputs.columns import describe
from transforms.inputs.types import ReadOptions, WorkUnit

_BATCH_ROWS = 16
"""Rows decoded at once: their images are in memory together."""

_READ_BYTES = 8 << 20
"""Bytes of a column that are read at once: a row group may hold gigabytes of images."""


def cut(stream: BinaryIO, rows_per_unit: int) -> Iterator[Cut]:
    """Row ranges that never cross a row group; see `readers.ShardReader`."""
    metadata = _open(stream).metadata
    start = 0
    for group in range(metadata.num_row_groups):
        end = start + metadata.row_group(group).num_rows
        for first in range(start, end, rows_per_unit):
            yield Cut(first, min(rows_per_unit, end - first))
        start = end


def read(stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure]:
    """The unit's rows; see `readers.ShardReader`."""
    assert unit.shard is not None
    uri = unit.shard.file.uri
    file = _open(stream)
    schema = file.schema_arrow
    wanted = dict.fromkeys((options.image_column, options.label_column, *(name for name, _ in options.keep_columns)))
    if options.image_column not in schema.names:
        known = dict(zip(schema.names, schema.types, strict=True))
        raise RecordError("no_image", f"the shard has no column {options.image_column!r}. {describe(known)}")
    rows = _rows(file, unit, [name for name in wanted if name in schema.names])
    for index, row in enumerate(rows, start=unit.start):
        key = f"{uri}#{index}"
        try:
            image = _image(row[options.image_column], storage.parent(uri))
        except (RecordError, OSError) as error:
            yield failure(key, uri, error)
        else:
            yield make_record(key, uri, image, row.get(options.label_column), row, options)


def columns(stream: BinaryIO) -> dict[str, pa.DataType]:
    """The schema; see `readers.ShardReader`."""
    schema = _open(stream).schema_arrow
    return dict(zip(schema.names, schema.types, strict=True))


def _open(stream: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)


def _rows(file: pq.ParquetFile, unit: WorkUnit, names: list[str]) -> Iterator[dict[str, Any]]:
    """The unit's rows as Python values."""
    group = before = 0
    while before + file.metadata.row_group(group).num_rows <= unit.start:
        before += file.metadata.row_group(group).num_rows
        group += 1
    skip, left = unit.start - before, unit.count
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names):
        rows = batch.slice(skip, left)
        skip = max(0, skip - batch.num_rows)
        left -= rows.num_rows
        yield from rows.to_pylist()
        if not left:
            return


def _image(value: Any, folder: str) -> bytes:
    """An image column's value: bytes, or {"bytes": ..., "path": ...}, either of which may be null.

    Raises:
        RecordError: if there is neither.
        OSError: if the file at the path cannot be read.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return storage.read_bytes(storage.resolve(folder, value["path"]))
        value = value.get("bytes")
    if value is None:
        raise RecordError("no_image", "the image is null")
    if not isinstance(value, bytes):
        raise RecordError("no_image", f"the image is a {type(value).__name__}, not bytes")
    return value
