"""Lists of image files: found by listing, or named by a manifest (CSV, JSON lines or Parquet of uri, label, ...)."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.columns import Columns, as_label, missing_column
from transforms.errors import ImagebeamError
from transforms.types import FileInfo, InputFormat, ReadOptions, RecordRef, WorkUnit

URI_COLUMN = "uri"
KEY_COLUMN = "key"


def file_refs(files: Iterable[FileInfo]) -> Iterator[RecordRef]:
    """Image files as records: the key is the uri, the label the parent folder's name."""
    for file in files:
        label = storage.basename(storage.parent(file.uri)) or None
        yield RecordRef(key=file.uri, uri=file.uri, version=file.version, label=label)


def manifest_refs(manifest: FileInfo, options: ReadOptions) -> Iterator[RecordRef]:
    """A manifest's rows as records.

    Relative uris are relative to the manifest's folder. The key is the column `key` where there is one, else the
    manifest's uri and the row's number.

    Raises:
        ImagebeamError: for a manifest without a column `uri`, or a row that cannot be understood, naming the row.
    """
    folder = storage.parent(manifest.uri)
    columns = Columns(options.keep_columns)
    for index, row in enumerate(_rows(manifest)):
        where = f"{manifest.uri}, row {index}"
        if index == 0:
            for flag, name in (("--input_format manifest needs", URI_COLUMN), *_kept_flags(options)):
                if name not in row:
                    raise missing_column(flag, name, f"{manifest.uri}: columns", [str(one) for one in row])
        if not row.get(URI_COLUMN):
            raise ImagebeamError(f"{where}: the uri is missing. Received: {dict(row)!r}.")
        try:
            kept = tuple(columns.convert(row).items())
            label = as_label(row.get(options.label_column))
        except ValueError as error:
            raise ImagebeamError(f"{where}: {error}.") from error
        uri = storage.resolve(folder, str(row[URI_COLUMN]))
        yield RecordRef(str(row.get(KEY_COLUMN) or f"{manifest.uri}#{index}"), uri, None, label or None, kept)


def ref_units(refs: Iterable[RecordRef], input_format: InputFormat, rows_per_unit: int) -> Iterator[WorkUnit]:
    """Consecutive records as work units."""
    rest = iter(refs)
    start = 0
    while chunk := tuple(itertools.islice(rest, rows_per_unit)):
        yield WorkUnit(input_format, len(chunk), start=start, refs=chunk)
        start += len(chunk)


def _kept_flags(options: ReadOptions) -> list[tuple[str, str]]:
    return [("--keep_columns", name) for name, _ in options.keep_columns]


def _rows(manifest: FileInfo) -> Iterator[Mapping[str, Any]]:
    """Rows by column name, streamed."""
    extension = manifest.uri.rpartition(".")[2].lower()
    with storage.open_read(manifest.uri, manifest.version) as stream:
        if extension == "parquet":
            try:
                for batch in pq.ParquetFile(stream).iter_batches():
                    yield from batch.to_pylist()
            except pa.ArrowInvalid as error:
                raise ImagebeamError(f"{manifest.uri} is not a Parquet file ({error}).") from error
            return
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            if extension in ("jsonl", "ndjson"):
                yield from _json_rows(text, manifest.uri)
            else:
                yield from csv.DictReader(text, strict=True)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ImagebeamError(f"{manifest.uri} cannot be read as {extension}: {error}.") from error


def _json_rows(lines: Iterable[str], uri: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ImagebeamError(f"{uri}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ImagebeamError(f"{uri}, line {number}: not a JSON object. Received: {line.strip()[:80]}.")
        yield row
