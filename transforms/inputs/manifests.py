"""Lists of image files: found by listing, or named by a manifest (CSV, JSON lines or Parquet of uri, label, ...)."""

from __future__ import annotations

import codecs
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
from transforms.core.errors import ImagebeamError, StopError
from transforms.core.formats import InputFormat
from transforms.core.text import storable
from transforms.core.types import Failure, Unread
from transforms.inputs.discover import detect_format
from transforms.inputs.unique_keys import SeenKeys
from transforms.readers.allowed_paths import reach
from transforms.readers.base import RecordError, SampleLimits, bounded, caught, failure
from transforms.readers.columns import PEEKED_RECORDS, choose_label, convert, describe, infer, label_and_extras
from transforms.readers.compression import inflate, is_gzip
from transforms.readers.folders import class_folder, partitions
from transforms.readers.options import ReadOptions
from transforms.readers.parquet_rows import bounded_rows
from transforms.readers.read import judge
from transforms.readers.units import ListUnit, RecordRef, Shard
from transforms.storage.files import FileInfo
from transforms.storage.resuming import ResumingStream

KEY_COLUMN = "key"

_DELIMITERS = ",;\t|"
"""Tried in this order: the first that the line of names can be split at so that a column of uris is among them."""

_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)

_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)

_READ_BYTES = 1 << 20

_TAIL_BYTES = 256 << 10
"""Of the end of JSON lines, looked at for the types of columns."""

_PARQUET_ROWS = 1_024
"""Rows of a Parquet manifest decoded at once."""

_BOMS_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_RECORD_LINES = 1_000
"""Lines of one CSV record at most: a quoted field may hold line ends."""

_RECORD_CHARACTERS = 4 << 20
"""Characters of one line or one CSV record at most: a small compressed file may hold a line of gigabytes."""

_LINE_TOO_LONG = f"the line has more than {_RECORD_CHARACTERS:,} characters"

Row = Mapping[str, Any] | RecordError
"""A manifest's row by column name, or why it cannot be read."""


def files_unit(files: Iterable[Shard], start: int, options: ReadOptions) -> ListUnit:
    """Image files as one work unit; the key is the uri, the label by default that of the first folder of the input."""
    refs = tuple(_file_ref(file.file, file.root, options) for file in files)
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


def has_keys(manifest: FileInfo, options: ReadOptions) -> bool:
    """Whether a manifest names its rows' keys itself; one that cannot be looked at may."""
    try:
        return KEY_COLUMN in manifest_columns(manifest, options)
    except Exception:
        return True


def manifest_columns(manifest: FileInfo, options: ReadOptions) -> dict[str, pa.DataType]:
    """The columns of a manifest's first rows; a Parquet manifest's schema.

    Raises:
        ImagebeamError: if there is no column of uris.
    """
    with ResumingStream(manifest.uri, manifest.version) as source:
        stream = cast(BinaryIO, source)
        if _is_parquet(manifest.uri):
            schema = pq.ParquetFile(stream).schema_arrow
            columns = dict(zip(schema.names, schema.types, strict=True))
        else:
            with contextlib.closing(_text_rows(stream, manifest.uri, options)) as rows:
                first = itertools.islice(rows, PEEKED_RECORDS)
                columns = infer(row for row in first if not isinstance(row, RecordError))
            if not _JSON_LINES.search(manifest.uri):
                columns = dict.fromkeys(columns, pa.string())
    if columns and options.uri_column not in columns:
        raise ImagebeamError(
            f"A manifest needs a column {options.uri_column!r}. {describe(columns)}. Name another with --uri_column. "
            "CSV has a first line of names; commas, semicolons, tabs or | separate them, and it is encoded as UTF-8, "
            "or as UTF-16 with its byte order mark."
        )
    return columns


def sample_manifest(manifest: FileInfo, options: ReadOptions, limits: SampleLimits) -> Iterator[Mapping[str, Any]]:
    """Rows of JSON lines: the first ones, and the last ones if they can be got at; CSV is text, Parquet has types."""
    if not _JSON_LINES.search(manifest.uri):
        return
    for row in itertools.chain(_first_rows(manifest, options, limits), _last_rows(manifest)):
        if not isinstance(row, RecordError):
            yield row


def _first_rows(manifest: FileInfo, options: ReadOptions, limits: SampleLimits) -> Iterator[Row]:
    with (
        ResumingStream(manifest.uri, manifest.version) as source,
        contextlib.closing(_text_rows(cast(BinaryIO, source), manifest.uri, options)) as rows,
    ):
        for row in itertools.islice(rows, limits.records):
            yield row
            if source.tell() > limits.bytes:
                return


def _last_rows(manifest: FileInfo) -> Iterator[Row]:
    """Of JSON lines that are neither compressed nor UTF-16."""
    with ResumingStream(manifest.uri, manifest.version) as source:
        head = source.read(2)
        if is_gzip(head) or head in _BOMS_UTF_16:
            return
        start = source.seek(max(0, manifest.size - _TAIL_BYTES))
        lines = source.read().split(b"\n")
    whole = lines[1:] if start else lines
    yield from _json_rows(line.decode("utf-8-sig", "surrogateescape") for line in whole)


def _file_ref(file: FileInfo, root: str | None, options: ReadOptions) -> RecordRef:
    uri = storable(file.uri)
    label = choose_label(None, uri, class_folder(uri, root, options.label_from), options)
    extras = tuple(convert(partitions(uri), options).items())
    return RecordRef(uri, file.uri, file.version, label, extras, size=file.size)


def _refs(manifest: FileInfo, options: ReadOptions, seen: SeenKeys) -> Iterator[RecordRef | Failure]:
    """A manifest's rows as records, or as the failures they are."""
    folder = storage.parent(manifest.uri)
    index = -1
    source: ResumingStream | None = None
    try:
        with ResumingStream(manifest.uri, manifest.version) as source:
            for index, row in enumerate(table_rows(cast(BinaryIO, source), manifest.uri, options)):
                key = f"{manifest.uri}#{index}"
                ref = caught(_ref, key, manifest.uri, row, folder, options)
                if isinstance(ref, RecordRef) and not seen.add(ref.key):
                    ref = failure(key, manifest.uri, "repeated_key: an earlier row has the same key")
                yield ref
    except StopError:
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
    named = str(row.get(options.uri_column) or "").strip()  # "a.jpg, cat": a blank beside a comma means nothing.
    if not named:
        raise RecordError("bad_value", f"the row has no {options.uri_column}")
    try:
        named.encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_value", f"the row holds text that is not Unicode ({error})") from error
    uri = reach(named, folder, options)
    try:
        stored = row.get(options.label_column)
        label, extras = label_and_extras(stored, row, uri, _class(uri, folder, options), options)
        label = bounded(label)
    except ValueError as error:
        raise RecordError("bad_value", str(error)) from error
    own_key = row.get(KEY_COLUMN)
    ref = RecordRef(key if own_key in (None, "") else str(own_key), uri, None, label, tuple(extras.items()))
    try:
        f"{ref.key}{ref.uri}".encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_value", f"the row holds text that is not Unicode ({error})") from error
    return ref


def _class(uri: str, folder: str, options: ReadOptions) -> str | None:
    """The folder that tells the class of a row's file, where folders are asked for it."""
    if not options.label_from.is_folder:
        return None
    return class_folder(uri, folder if uri.startswith(f"{folder}/") else None, options.label_from)


def _is_parquet(uri: str) -> bool:
    return detect_format(uri) == InputFormat.PARQUET


def table_rows(stream: BinaryIO, uri: str, options: ReadOptions) -> Iterator[Row]:
    """Rows of CSV, JSON lines or Parquet, told by the name; of Parquet only the columns that `options` names."""
    if not _is_parquet(uri):
        yield from _text_rows(stream, uri, options)
        return
    file = pq.ParquetFile(stream)
    wanted = {options.uri_column, KEY_COLUMN, options.label_column, *options.kept_from.values()}
    kept = set(options.kept_from.values()) - {options.uri_column, KEY_COLUMN, options.label_column}
    names = [name for name in file.schema_arrow.names if name in wanted]
    for group in range(file.metadata.num_row_groups):
        yield from bounded_rows(file, group, names, kept, _PARQUET_ROWS, _RECORD_CHARACTERS)


def _text_rows(stream: BinaryIO, uri: str, options: ReadOptions) -> Generator[Row, None, None]:
    """Rows of CSV or JSON lines, of UTF-8, or of UTF-16 where a byte order mark says so.

    Bytes that are not UTF-8 become half characters, which fail the row that uses them.
    """
    head = stream.read(2)
    stream.seek(0)
    inflated = inflate(stream) if is_gzip(head) else stream
    data = io.BufferedReader(cast(io.RawIOBase, inflated), _READ_BYTES)
    is_utf_16 = data.peek(2)[:2] in _BOMS_UTF_16
    encoding, errors = ("utf-16", "replace") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    with io.TextIOWrapper(data, encoding=encoding, errors=errors, newline="") as text:
        lines = _bounded_lines(text)
        yield from _json_rows(lines) if _JSON_LINES.search(uri) else _csv_rows(lines, options)


def _bounded_lines(text: io.TextIOBase) -> Iterator[str | None]:
    """Lines with their ends; None stands for one that is too long, which is passed over in pieces."""
    while line := text.readline(_RECORD_CHARACTERS + 1):
        if len(line) <= _RECORD_CHARACTERS:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = text.readline(_RECORD_CHARACTERS)
        yield None


def _json_rows(lines: Iterable[str | None]) -> Iterator[Row]:
    for line in lines:
        if line is None:
            yield RecordError("too_large", _LINE_TOO_LONG)
            continue
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

    def __init__(self, lines: Iterable[str | None]) -> None:
        self._lines = iter(lines)
        self._given_back: deque[str | None] = deque()
        self.taken: list[str | None] = []
        self._characters = 0

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._lines)
        self.taken.append(line)
        if line is None:
            raise csv.Error(_LINE_TOO_LONG)
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


def _refuse_repeated(header: Sequence[str], options: ReadOptions) -> None:
    asked_for = (options.uri_column, options.label_column, KEY_COLUMN, *options.kept_from.values())
    for name in asked_for:
        if header.count(name) > 1:
            raise ImagebeamError(f"{header.count(name)} columns are called {name!r}. Rename all but one.")


def _delimiter(names: str, uri_column: str) -> str:
    """What separates the names of a CSV file's first line; a comma where it cannot be told."""
    for delimiter in _DELIMITERS:
        with contextlib.suppress(csv.Error, StopIteration):
            if uri_column in map(str.strip, next(csv.reader([names], delimiter=delimiter, strict=True))):
                return delimiter
    return ","


def _csv_rows(text: Iterable[str | None], options: ReadOptions) -> Iterator[Row]:
    """Rows of CSV. A line that is not CSV, such as one whose quote is not closed, is one bad row and no more.

    Raises:
        ImagebeamError: if two columns have a name that is asked for.
    """
    rest = iter(text)
    first = next(rest, "")
    if told := _SEPARATOR_LINE.fullmatch(first or ""):  # Spreadsheets read it; it is no line of names.
        delimiter = told[1]
    else:
        delimiter = _delimiter(first or "", options.uri_column)
        rest = itertools.chain([first], rest)
    lines = _Lines(rest)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield RecordError("corrupt", f"the line is not CSV ({error})")
            lines.give_back()
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            continue
        if fields is None:
            return
        if header is None and fields:
            header = [name.strip() for name in fields]
            _refuse_repeated(header, options)
        elif header is not None and fields and len(fields) != len(header):
            yield RecordError("corrupt", f"the line has {len(fields)} fields, the first line {len(header)}")
            lines.give_back()
            continue
        elif header is not None and fields:
            yield {name: field or None for name, field in zip(header, fields, strict=True)}
        lines.next_record()
