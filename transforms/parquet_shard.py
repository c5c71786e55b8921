"""Parquet shards: a binary column, or Hugging Face's struct<bytes, path>, read row group by row group."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.columns import Columns, as_label, missing_column
from transforms.errors import ImagebeamError
from transforms.readers import Cut, RecordError, ShardError
from transforms.types import ReadOptions, Record, WorkUnit

_BATCH_ROWS = 64
"""Rows decoded at once: their images are in memory together."""


def cut(stream: BinaryIO, size: int, rows_per_unit: int) -> Iterator[Cut]:  # noqa: ARG001 - the footer tells
    """Row ranges that never cross a row group; see `readers.ShardReader`."""
    try:
        metadata = pq.ParquetFile(stream).metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(0, str(error)) from error
    start = 0
    for group in range(metadata.num_row_groups):
        end = start + metadata.row_group(group).num_rows
        for first in range(start, end, rows_per_unit):
            yield Cut(first, min(rows_per_unit, end - first))
        start = end


def read(stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | RecordError]:
    """The unit's rows; see `readers.ShardReader`."""
    assert unit.shard is not None
    uri = unit.shard.file.uri
    file = pq.ParquetFile(stream)
    wanted = dict.fromkeys((options.image_column, options.label_column, *(name for name, _ in options.keep_columns)))
    present = [name for name in wanted if name in file.schema_arrow.names]
    if options.image_column not in present:
        raise ValueError(f"the shard has no column {options.image_column!r}; it has {file.schema_arrow.names}")
    columns = Columns(options.keep_columns)
    for index, row in enumerate(_rows(file, unit, present), start=unit.start):
        key = f"{uri}#{index}"
        try:
            data = _bytes(row[options.image_column], storage.parent(uri))
            label = as_label(row.get(options.label_column))
            yield Record(key, uri, data, label, columns.convert(row))
        except (ValueError, OSError) as error:
            yield RecordError(key, "bad_record", str(error))


def check_columns(stream: BinaryIO, options: ReadOptions) -> ReadOptions:
    """Refuse missing columns, and take undeclared types from the schema; see `readers.ShardReader`."""
    try:
        schema = pq.ParquetFile(stream).schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise ImagebeamError(f"not a Parquet file ({error})") from error
    known = {field.name: str(field.type) for field in schema}
    if options.image_column not in known:
        raise missing_column("--image_column", options.image_column, "columns", known)
    for name, _ in options.keep_columns:
        if name not in known:
            raise missing_column("--keep_columns", name, "columns", known)
    kept = tuple(
        (name, schema.field(name).type if pa.types.is_null(kind) else kind) for name, kind in options.keep_columns
    )
    return dataclasses.replace(options, keep_columns=kept)


def _rows(file: pq.ParquetFile, unit: WorkUnit, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The unit's rows as Python values."""
    group, before = 0, 0
    while before + file.metadata.row_group(group).num_rows <= unit.start:
        before += file.metadata.row_group(group).num_rows
        group += 1
    skip, left = unit.start - before, unit.count
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
        rows = batch.slice(skip, left)
        skip = max(0, skip - batch.num_rows)
        left -= rows.num_rows
        yield from rows.to_pylist()
        if not left:
            return


def _bytes(value: Any, folder: str) -> bytes:
    """An image column's value: bytes, or {"bytes": ..., "path": ...}, either of which may be null.

    Raises:
        ValueError: if there is neither.
        OSError: if the file at the path cannot be read.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return storage.read_bytes(storage.resolve(folder, value["path"]))
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError("the image is null" if value is None else f"the image is a {type(value).__name__}, not bytes")
    return value
