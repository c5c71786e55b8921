"""Read the rows of a Parquet row group in bounded memory, even of a hostile file.

A dictionary holds a value once that every row refers to, runs stand for any number of values, and a page inflates a
thousand times: 20 KB of Parquet may be gigabytes in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.readers.base import RecordError, too_large
from transforms.readers.column_types import is_bytes, stored_type
from transforms.readers.columns import to_rows

_BATCH_BYTES = 64 << 20
"""Of the rows that become Python values at once; and of a batch, where dictionaries may make its rows large."""

_MOST_INFLATED = 100
"""Times that columns may inflate, where they are large: images hardly do, and text some ten times."""


_NOT_PYTHONS = (ValueError, OverflowError, LookupError)
"""Raised for text that is not UTF-8, for dates beyond Python's, and for time zones that it does not know."""

Row = dict[str, Any] | RecordError
"""A row by column name, or why it cannot be given."""


def bounded_rows(
    file: pq.ParquetFile,
    group: int,
    names: Sequence[str],
    kept: Collection[str],
    rows_at_once: int,
    limit: int,
    *,
    start: int = 0,
) -> Iterator[Row]:
    """The rows of a row group, as `columns.to_rows` gives them.

    A row is an error if it has more bytes than `limit`, or a value that Python does not have: text that is not UTF-8.

    Args:
        file: that is read.
        group: its row group.
        names: of the columns that are read.
        kept: those of them whose values stay Arrow's where Python has none.
        rows_at_once: decoded together at most.
        limit: bytes of a row.
        start: of the first row that is given, in the row group.
    """
    beginnings = tuple(f"{name}." for name in names)
    leaves = [index for index in range(len(file.schema)) if f"{file.schema.column(index).path}.".startswith(beginnings)]
    # No row of these raises what would end the process where a column chunk is asked for: it is encrypted, or damaged.
    list(file.reader.iter_batches(0, [group], leaves))
    metadata = file.metadata.row_group(group)
    chunks = [metadata.column(leaf) for leaf in leaves]
    inflated = sum(max(chunk.total_uncompressed_size, chunk.num_values) for chunk in chunks)
    stored = sum(chunk.total_compressed_size for chunk in chunks)
    if inflated > max(_BATCH_BYTES, _MOST_INFLATED * stored):
        for _ in range(start, metadata.num_rows):
            yield RecordError(
                "too_large", f"its row group inflates to {inflated:,} bytes, more than {_MOST_INFLATED} times its size"
            )
        return
    shared = sum(_dictionary_bytes(chunk) for chunk in chunks)
    fitting = max(1, min(rows_at_once, _BATCH_BYTES // max(1, shared)))
    for batch in file.iter_batches(fitting, row_groups=[group], columns=list(names)):
        if start < batch.num_rows:
            yield from _rows(batch.slice(start), kept, limit)
        start = max(0, start - batch.num_rows)


def _dictionary_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """How large a value may be that many rows refer to; writers stop their dictionaries at a megabyte or so."""
    start = chunk.dictionary_page_offset
    if not chunk.has_dictionary_page or start is None:
        return 0
    stored = max(0, chunk.data_page_offset - start)
    ratio = chunk.total_uncompressed_size / max(1, chunk.total_compressed_size)
    return int(min(chunk.total_uncompressed_size, stored * max(1.0, ratio)))


def _rows(batch: pa.RecordBatch, kept: Collection[str], limit: int) -> Iterator[Row]:
    batch = _as_stored(batch)
    if batch.nbytes <= min(limit, _BATCH_BYTES):
        yield from _to_rows(batch, kept)
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > limit:
            yield too_large(row.nbytes, limit)
        else:
            yield from _to_rows(row, kept)


def _as_stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same without dictionaries of bytes, of which each row would have the size, and without names for lists."""
    for index, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type) and is_bytes(column.type.value_type):
            batch = batch.set_column(index, batch.schema.names[index], column.dictionary_decode())
        elif stored_type(column.type) != column.type:
            batch = batch.set_column(index, batch.schema.names[index], column.storage)
    return batch


def _to_rows(batch: pa.RecordBatch, kept: Collection[str]) -> list[Row]:
    """The rows of a batch; see `bounded_rows`."""
    try:
        return [*to_rows(batch, kept)]
    except _NOT_PYTHONS as error:
        if batch.num_rows > 1:
            return [row for index in range(batch.num_rows) for row in _to_rows(batch.slice(index, 1), kept)]
        return [RecordError("bad_value", f"a column holds what cannot be read ({error})")]
