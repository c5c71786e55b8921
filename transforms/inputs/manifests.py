"""Lists of image files: found by listing, or named by a manifest (CSV, JSON lines or Parquet of uri, label, ...)."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.inputs.base import RecordError, explain
from transforms.inputs.columns import PEEKED_RECORDS, as_label, convert, describe, infer
from transforms.inputs.compression import inflate, is_gzip
from transforms.inputs.types import ReadOptions, RecordRef, Shard, WorkUnit
from transforms.inputs.unique_keys import SeenKeys
from transforms.storage.files import FileInfo

URI_COLUMN = "uri"
KEY_COLUMN = "key"

_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)

Row = Mapping[str, Any] | RecordError
"""A manifest's row by column name, or why it cannot be read."""


def files_unit(files: Iterable[FileInfo], start: int) -> WorkUnit:
    """Image files as one work unit; the key is the uri, the label the parent folder's name."""
    refs = tuple(map(_file_ref, files))
    return WorkUnit(InputFormat.FILES, len(refs), start=start, refs=refs)


def unit_end(files: Sequence[FileInfo], rows_per_unit: int) -> int:
    """How many of `files` make up the next work unit, where there are more than `rows_per_unit`.

    The unit ends, in the second half of what it may hold, after the file whose name has the lowest digest. So where a
    unit ends depends on the files about there and not on how many came before: a file that is added or removed
    changes its own unit and perhaps a few next to it, and all later ones are what they were. (Content-defined
    chunking, as backup programs cut files.)
    """
    places = range((rows_per_unit + 1) // 2, rows_per_unit + 1)
    return min(places, key=lambda place: _digest(files[place - 1].uri))


def _digest(uri: str) -> bytes:
    """Of the folder's and the file's name alone: a copy of the input elsewhere is cut at the same places."""
    name = "/".join(uri.rsplit("/", 2)[-2:])
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def cut_manifest(manifest: Shard, rows_per_unit: int, options: ReadOptions) -> Iterator[WorkUnit]:
    """A manifest's rows as work units, streamed.

    Relative uris are relative to the manifest's folder. The key is the column `key` where there is one and it is
    filled, else the manifest's uri and the row's number. Rows that cannot be understood, or whose key an earlier row
    has, are units with an error.
    """
    start = 0
    # Consecutive good rows share a unit, and so do consecutive rows with the same error.
    for _, group in itertools.groupby(_refs(manifest.file, options), key=_error_of):
        while chunk := tuple(itertools.islice(group, rows_per_unit)):
            refs = tuple(item for item in chunk if isinstance(item, RecordRef))
            if refs:
                yield WorkUnit(InputFormat.MANIFEST, len(refs), start=start, refs=refs)
            else:
                error = _error_of(chunk[0])
                yield WorkUnit(InputFormat.MANIFEST, len(chunk), manifest, start=start, error=error)
            start += len(chunk)


def _error_of(item: RecordRef | str) -> str | None:
    return item if isinstance(item, str) else None


def manifest_columns(manifest: FileInfo) -> dict[str, pa.DataType]:
    """The columns of a manifest's first rows; a Parquet manifest's schema.

    Raises:
        ImagebeamError: if there is no column `uri`.
    """
    with storage.open_read(manifest.uri, manifest.version) as stream:
        if _is_parquet(manifest.uri):
            schema = pq.ParquetFile(stream).schema_arrow
            columns = dict(zip(schema.names, schema.types, strict=True))
        else:
            with contextlib.closing(_text_rows(stream, manifest.uri)) as rows:
                first = itertools.islice(rows, PEEKED_RECORDS)
                columns = infer(row for row in first if not isinstance(row, RecordError))
    if columns and URI_COLUMN not in columns:
        raise ImagebeamError(f"A manifest needs a column {URI_COLUMN!r}. {describe(columns)}.")
    return columns


def _file_ref(file: FileInfo) -> RecordRef:
    folder = storage.parent(file.uri)
    # A folder that is its own parent is a root, and a bucket's name says nothing of what is in it.
    label = None if storage.parent(folder) == folder else storage.basename(folder)
    return RecordRef(key=file.uri, uri=file.uri, version=file.version, label=label)


def _refs(manifest: FileInfo, options: ReadOptions) -> Iterator[RecordRef | str]:
    """A manifest's rows as records, or as what to report of them."""
    folder = storage.parent(manifest.uri)
    seen = SeenKeys()
    try:
        for index, row in enumerate(_rows(manifest, options)):
            try:
                ref = _ref(row, f"{manifest.uri}#{index}", folder, options)
                if not seen.add(ref.key):
                    raise RecordError("repeated_key", "an earlier row of the manifest has the same key")
            except RecordError as error:
                yield explain(error)
            else:
                yield ref
    except Exception as error:  # The rest cannot be read.
        yield explain(error)


def _ref(row: Row, key: str, folder: str, options: ReadOptions) -> RecordRef:
    if isinstance(row, RecordError):
        raise row
    if not row.get(URI_COLUMN):
        raise RecordError("bad_value", f"the row has no {URI_COLUMN}")
    try:
        extras = tuple(convert(row, options).items())
        label = as_label(row.get(options.label_column)) or None
    except ValueError as error:
        raise RecordError("bad_value", str(error)) from error
    uri = storage.resolve(folder, str(row[URI_COLUMN]))
    own_key = row.get(KEY_COLUMN)
    ref = RecordRef(key if own_key in (None, "") else str(own_key), uri, None, label, extras)
    try:
        f"{ref.key}{ref.uri}".encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_value", f"the row holds text that is not Unicode ({error})") from error
    return ref


def _is_parquet(uri: str) -> bool:
    return uri.lower().endswith(".parquet")


def _rows(manifest: FileInfo, options: ReadOptions) -> Iterator[Row]:
    with storage.open_read(manifest.uri, manifest.version) as stream:
        if _is_parquet(manifest.uri):
            file = pq.ParquetFile(stream)
            wanted = {URI_COLUMN, KEY_COLUMN, options.label_column, *(name for name, _ in options.keep_columns)}
            for batch in file.iter_batches(columns=[name for name in file.schema_arrow.names if name in wanted]):
                yield from batch.to_pylist()
        else:
            yield from _text_rows(stream, manifest.uri)


def _text_rows(stream: BinaryIO, uri: str) -> Generator[Row, None, None]:
    head = stream.read(2)
    stream.seek(0)
    with io.TextIOWrapper(inflate(stream) if is_gzip(head) else stream, encoding="utf-8-sig", newline="") as text:
        yield from _json_rows(text) if _JSON_LINES.search(uri) else _csv_rows(text)


def _json_rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield RecordError("corrupt", f"the line is not JSON ({error})")
        else:
            yield row if isinstance(row, dict) else RecordError("corrupt", "the line is not a JSON object")


def _csv_rows(lines: Iterable[str]) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield RecordError("corrupt", f"the line is not CSV ({error})")
            continue
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = [name.strip() for name in fields]
        elif len(fields) != len(header):
            yield RecordError("corrupt", f"the line has {len(fields)} fields, the first line {len(header)}")
        else:
            yield {name: field or None for name, field in zip(header, fields, strict=True)}
