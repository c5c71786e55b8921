"""Lists of image files: found by listing, or named by a manifest (CSV, JSON lines or Parquet of uri, label, ...)."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.text import storable
from transforms.core.types import Failure, Unread
from transforms.inputs.base import RecordError, bounded, caught, failure
from transforms.inputs.columns import PEEKED_RECORDS, as_label, convert, describe, infer
from transforms.inputs.compression import inflate, is_gzip
from transforms.inputs.faults import MachineError
from transforms.inputs.reach import reach
from transforms.inputs.read import judge
from transforms.inputs.source import Source
from transforms.inputs.types import ListUnit, ReadOptions, RecordRef, Shard
from transforms.inputs.unique_keys import SeenKeys
from transforms.storage.files import FileInfo

URI_COLUMN = "uri"
KEY_COLUMN = "key"

_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)

_READ_BYTES = 1 << 20

_RECORD_LINES = 1_000
"""Lines of one CSV record at most: a quoted field may hold line ends."""

_RECORD_CHARACTERS = 4 << 20

Row = Mapping[str, Any] | RecordError
"""A manifest's row by column name, or why it cannot be read."""


def files_unit(files: Iterable[FileInfo], start: int) -> ListUnit:
    """Image files as one work unit; the key is the uri, the label the parent folder's name."""
    refs = tuple(map(_file_ref, files))
    return ListUnit(InputFormat.FILES, refs, start)


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
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def cut_manifest(
    manifest: Shard, rows_per_unit: int, options: ReadOptions, seen: SeenKeys | None = None
) -> Iterator[ListUnit]:
    """A manifest's rows as work units, streamed.

    Relative uris are relative to the manifest's folder. The key is the column `key` where there is one and it is
    filled, else the manifest's uri and the row's number. Rows that cannot be understood, or whose key an earlier row
    has, are failures in the units' lists.

    Args:
        manifest: to cut.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        seen: keys of manifests before this one, to which its own are added.

    Raises:
        MachineError: if too many reads in a row failed, and not for what the files hold.
    """
    refs = _refs(manifest.file, options, SeenKeys() if seen is None else seen)
    start = 0
    while chunk := tuple(itertools.islice(refs, rows_per_unit)):
        yield ListUnit(InputFormat.MANIFEST, chunk, start)
        start += len(chunk)


def has_keys(manifest: FileInfo) -> bool:
    """Whether a manifest names its rows' keys itself; one that cannot be looked at may."""
    try:
        return KEY_COLUMN in manifest_columns(manifest)
    except Exception:
        return True


def manifest_columns(manifest: FileInfo) -> dict[str, pa.DataType]:
    """The columns of a manifest's first rows; a Parquet manifest's schema.

    Raises:
        ImagebeamError: if there is no column `uri`.
    """
    with Source(manifest.uri, manifest.version) as source:
        stream = cast(BinaryIO, source)
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
    label = None if storage.parent(folder) == folder else as_label(storable(storage.basename(folder)))
    return RecordRef(storable(file.uri), file.uri, file.version, label, size=file.size)


def _refs(manifest: FileInfo, options: ReadOptions, seen: SeenKeys) -> Iterator[RecordRef | Failure]:
    """A manifest's rows as records, or as the failures they are."""
    folder = storage.parent(manifest.uri)
    index = -1
    source: Source | None = None
    try:
        with Source(manifest.uri, manifest.version) as source:
            for index, row in enumerate(_rows(cast(BinaryIO, source), manifest.uri, options)):
                key = f"{manifest.uri}#{index}"
                ref = caught(_ref, key, manifest.uri, row, folder, options)
                if isinstance(ref, RecordRef) and not seen.add(ref.key):
                    ref = failure(key, manifest.uri, "repeated_key: an earlier row has the same key")
                yield ref
    except MachineError:
        raise
    except Exception as error:  # The rest cannot be read.
        reason, retryable = judge(source, error)
        rest = failure(f"{manifest.uri}#{index + 1}", manifest.uri, reason)
        read = 0 if source is None else min(source.tell(), manifest.size)
        left = manifest.size - read
        records = round(left * (index + 1) / read) if read else None
        unread = Unread(manifest.uri, reason, left, records)
        yield dataclasses.replace(rest, retryable=retryable, unread=unread)


def _ref(key: str, manifest: str, row: Row, folder: str, options: ReadOptions) -> RecordRef:
    del manifest
    if isinstance(row, RecordError):
        raise row
    if not row.get(URI_COLUMN):
        raise RecordError("bad_value", f"the row has no {URI_COLUMN}")
    try:
        extras = tuple(convert(row, options).items())
        label = bounded(as_label(row.get(options.label_column)))
    except ValueError as error:
        raise RecordError("bad_value", str(error)) from error
    try:
        str(row[URI_COLUMN]).encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_value", f"the row holds text that is not Unicode ({error})") from error
    uri = reach(str(row[URI_COLUMN]), folder, options)
    own_key = row.get(KEY_COLUMN)
    ref = RecordRef(key if own_key in (None, "") else str(own_key), uri, None, label, extras)
    try:
        f"{ref.key}{ref.uri}".encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_value", f"the row holds text that is not Unicode ({error})") from error
    return ref


def _is_parquet(uri: str) -> bool:
    return uri.lower().endswith(".parquet")


def _rows(stream: BinaryIO, uri: str, options: ReadOptions) -> Iterator[Row]:
    if not _is_parquet(uri):
        yield from _text_rows(stream, uri)
        return
    file = pq.ParquetFile(stream)
    wanted = {URI_COLUMN, KEY_COLUMN, options.label_column, *(name for name, _ in options.keep_columns)}
    for batch in file.iter_batches(columns=[name for name in file.schema_arrow.names if name in wanted]):
        yield from batch.to_pylist()


def _text_rows(stream: BinaryIO, uri: str) -> Generator[Row, None, None]:
    """Rows of CSV or JSON lines; bytes that are not UTF-8 become half characters, which fail the row that uses them."""
    head = stream.read(2)
    stream.seek(0)
    data = inflate(stream) if is_gzip(head) else io.BufferedReader(cast(io.RawIOBase, stream), _READ_BYTES)
    with io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from _json_rows(text) if _JSON_LINES.search(uri) else _csv_rows(text)


def _json_rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield RecordError("corrupt", f"the line is not JSON ({error})")
        else:
            yield row if isinstance(row, dict) else RecordError("corrupt", "the line is not a JSON object")


class _Lines(Iterator[str]):
    """Lines that can be given back: those that the CSV record in hand has taken so far."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._given_back: deque[str] = deque()
        self.taken: list[str] = []
        self._characters = 0

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._lines)
        self.taken.append(line)
        self._characters += len(line)
        if len(self.taken) > _RECORD_LINES or (self._characters > _RECORD_CHARACTERS and len(self.taken) > 1):
            raise csv.Error("a quote is not closed")
        return line

    def next_record(self) -> None:
        """The record in hand is complete."""
        self.taken.clear()
        self._characters = 0

    def give_back(self) -> None:
        """The record in hand ends with its first line, whatever its quotes say: the other lines come again."""
        self._given_back.extendleft(reversed(self.taken[1:]))
        self.next_record()


def _csv_rows(text: Iterable[str]) -> Iterator[Row]:
    """Rows of CSV. A line that is not CSV, such as one whose quote is not closed, is one bad row and no more."""
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield RecordError("corrupt", f"the line is not CSV ({error})")
            lines.give_back()
            reader = csv.reader(lines, strict=True)
            continue
        if fields is None:
            return
        if header is None and fields:
            header = [name.strip() for name in fields]
        elif header is not None and fields and len(fields) != len(header):
            yield RecordError("corrupt", f"the line has {len(fields)} fields, the first line {len(header)}")
            lines.give_back()
            continue
        elif header is not None and fields:
            yield {name: field or None for name, field in zip(header, fields, strict=True)}
        lines.next_record()
