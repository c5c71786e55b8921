"""Read the rows of a manifest: CSV, JSON lines or Parquet with uri, label, key, ..."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.text import counted
from transforms.inputs.discover import detect_format
from transforms.readers.base import RecordError, SampleLimits
from transforms.readers.column_types import stored_type
from transforms.readers.columns import PEEKED_RECORDS, NamedLabels, describe, infer, repeated_column
from transforms.readers.compression import HEAD_BYTES, inflate, is_packed
from transforms.readers.options import ReadOptions
from transforms.readers.parquet_rows import bounded_rows
from transforms.readers.sniff import JSON_REMEDY
from transforms.storage.files import FileInfo
from transforms.storage.resuming import ResumingStream

KEY_COLUMN = "key"

_DELIMITERS = ",;\t|"
"""Tried in this order: the first that the line of names can be split at so that a column of uris is among them."""

_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)

_JSON_VALUE = re.compile(r"""\s*(\[\s*["{]|\{\s*\n)""")
"""How one JSON value begins that is no line of JSON lines: an array, or an object over several lines."""

_JSON_OBJECT = re.compile(r"""\s*\{\s*["}]""")

_QUOTED = re.compile(r'\s+"((?:[^"]|"")*)"\s*')
"""A quoted field behind blanks, as people write CSV: the standard takes the quotes for letters then."""

_ESCAPED = re.compile(r'\\(["\\])')
"""A quote or a backslash behind a backslash."""

_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)

_READ_BYTES = 1 << 20

_HEAD_BYTES = 4096
"""Looked at to tell one JSON value from rows."""

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


class TableError(ImagebeamError):
    """A file that is no table of rows; the message does not name it, since the caller knows it."""


Row = Mapping[str, Any] | RecordError
"""A manifest's row by column name, or why it cannot be read."""


def manifest_columns(manifest: FileInfo, options: ReadOptions) -> dict[str, pa.DataType]:
    """The columns of a manifest's first rows; a Parquet manifest's schema.

    Raises:
        ImagebeamError: if there is no column of uris, or none of the first rows can be read.
    """
    with ResumingStream(manifest.uri, manifest.version) as source:
        stream = cast(BinaryIO, source)
        first: list[Row] = []
        if _is_parquet(manifest.uri):
            schema = _open_parquet(stream, options).schema_arrow
            columns = dict(zip(schema.names, map(stored_type, schema.types), strict=True))
        else:
            with contextlib.closing(_text_rows(stream, manifest.uri, options)) as rows:
                first = list(itertools.islice(rows, PEEKED_RECORDS))
            columns = infer(row for row in first if not isinstance(row, RecordError))
            if not _JSON_LINES.search(manifest.uri):
                names = columns or (_csv_names(manifest, options) if first else ())
                columns = dict.fromkeys(names, pa.string())
    if columns and options.uri_column not in columns:
        raise ImagebeamError(
            f"A manifest needs a column {options.uri_column!r}. {describe(columns)}. Name another with --uri_column. "
            "CSV has a first line of names; commas, semicolons, tabs or | separate them, and it is encoded as UTF-8, "
            "or as UTF-16 with its byte order mark."
        )
    _refuse_unreadable(first)
    return columns


def _refuse_unreadable(first: Sequence[Row]) -> None:
    """Refuse a file none of whose first rows can be read: it is written in another way. A single one may be damaged.

    Raises:
        ImagebeamError: with what is wrong with the first row.
    """
    errors = [row for row in first if isinstance(row, RecordError) and row.error_type == "corrupt"]
    if len(errors) == len(first) > 1:
        raise ImagebeamError(f"None of the first {len(first)} rows can be read: {errors[0]}.")


def _csv_names(manifest: FileInfo, options: ReadOptions) -> list[str]:
    """The names in a CSV file's first line, of rows that do not fit it; none where it is no CSV."""
    with (
        ResumingStream(manifest.uri, manifest.version) as source,
        _text_lines(cast(BinaryIO, source), is_json_lines=False) as lines,
        contextlib.suppress(csv.Error),
    ):
        line = next(filter(str.strip, (line or "" for line in lines)), "")
        return [*map(_name, next(csv.reader([line], delimiter=_delimiter(line, options.uri_column)), []))]
    return []


def label_names(stream: BinaryIO, uri: str, options: ReadOptions) -> NamedLabels:
    """The names that numbers in the label column stand for, where the file is Parquet by Hugging Face datasets."""
    metadata = pq.ParquetFile(stream).schema_arrow.metadata if _is_parquet(uri) else None
    return NamedLabels.of(metadata, options.label_column)


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
        head = source.read(HEAD_BYTES)
        if is_packed(head) or head.startswith(_BOMS_UTF_16):
            return
        start = source.seek(max(0, manifest.size - _TAIL_BYTES))
        lines = source.read().split(b"\n")
    whole = lines[1:] if start else lines
    yield from _json_rows(line.decode("utf-8-sig", "surrogateescape") for line in whole)


def _is_parquet(uri: str) -> bool:
    return detect_format(uri) == InputFormat.PARQUET


def _open_parquet(stream: BinaryIO, options: ReadOptions) -> pq.ParquetFile:
    file = pq.ParquetFile(stream, page_checksum_verification=True)
    _refuse_repeated(file.schema_arrow.names, options)
    return file


def table_rows(stream: BinaryIO, uri: str, options: ReadOptions) -> Iterator[Row]:
    """Rows of CSV, JSON lines or Parquet, told by the name; of Parquet only the columns that `options` names."""
    if not _is_parquet(uri):
        yield from _text_rows(stream, uri, options)
        return
    file = _open_parquet(stream, options)
    wanted = {options.uri_column, KEY_COLUMN, options.label_column, *options.kept_from.values()}
    kept = set(options.kept_from.values()) - {options.uri_column, KEY_COLUMN, options.label_column}
    names = [name for name in file.schema_arrow.names if name in wanted]
    for group in range(file.metadata.num_row_groups):
        yield from bounded_rows(file, group, names, kept, _PARQUET_ROWS, _RECORD_CHARACTERS)


def _text_rows(stream: BinaryIO, uri: str, options: ReadOptions) -> Generator[Row, None, None]:
    """Rows of CSV or JSON lines; see `_text_lines`."""
    is_json_lines = _JSON_LINES.search(uri) is not None
    with _text_lines(stream, is_json_lines=is_json_lines) as lines:
        yield from _json_rows(lines) if is_json_lines else _csv_rows(lines, options)


@contextlib.contextmanager
def _text_lines(stream: BinaryIO, *, is_json_lines: bool) -> Generator[Iterator[str | None], None, None]:
    """Lines of UTF-8, or of UTF-16 where a byte order mark says so; see `_bounded_lines`.

    Bytes that are not UTF-8 become half characters, which fail the row that uses them.

    Raises:
        TableError: for JSON that is not of lines, or whose name does not say so.
    """
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    inflated = inflate(stream) if is_packed(head) else stream
    data = io.BufferedReader(cast(io.RawIOBase, inflated), _READ_BYTES)
    is_utf_16 = data.peek(2)[:2] in _BOMS_UTF_16
    encoding, errors = ("utf-16", "replace") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    begin = data.peek(_HEAD_BYTES)[:_HEAD_BYTES].decode(encoding, "ignore")
    if _JSON_VALUE.match(begin) or (_JSON_OBJECT.match(begin) and not is_json_lines):
        held = "one JSON value" if _JSON_VALUE.match(begin) else "JSON, which its name does not say"
        raise TableError(f"The file holds {held}. {JSON_REMEDY}.")
    with io.TextIOWrapper(data, encoding=encoding, errors=errors, newline="") as text:
        yield _bounded_lines(text)


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
    if why := repeated_column(header, asked_for):
        raise TableError(why)


def _delimiter(names: str, uri_column: str) -> str:
    """What separates the names of a CSV file's first line; a comma where it cannot be told."""
    for delimiter in _DELIMITERS:
        with contextlib.suppress(csv.Error, StopIteration):
            if uri_column in map(_name, next(csv.reader([names], delimiter=delimiter, strict=True))):
                return delimiter
    return ","


def _csv_rows(text: Iterable[str | None], options: ReadOptions) -> Iterator[Row]:
    """Rows of CSV. A line that is not CSV, such as one whose quote is not closed, is one bad row and no more.

    Raises:
        TableError: if two columns have a name that is asked for.
    """
    rest = iter(text)
    first = next(rest, "")
    if told := _SEPARATOR_LINE.fullmatch(first or ""):  # Spreadsheets read it; it is no line of names.
        delimiter = told[1]
    else:
        delimiter = _delimiter(first or "", options.uri_column)
        rest = itertools.chain([first], rest)
    lines = _Lines(rest)
    csv.field_size_limit(max(csv.field_size_limit(), _RECORD_CHARACTERS))  # Of the process; lines are bounded here.
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields = _backslashed(lines.taken, delimiter)
            if header is not None and len(fields) == len(header):
                yield _row(header, fields)
            else:
                yield RecordError("corrupt", f"the line is not CSV ({error})")
            lines.give_back()
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            continue
        if fields is None:
            return
        if header is None and fields:
            header = [*map(_name, fields)]
            _refuse_repeated(header, options)
        elif header is not None and fields and len(fields := _without_trailing(fields, len(header))) != len(header):
            yield RecordError("corrupt", _other_count(len(fields), len(header)))
            lines.give_back()
            continue
        elif header is not None and fields:
            yield _row(header, fields)
        lines.next_record()


def _row(header: Sequence[str], fields: Sequence[str]) -> Row:
    return {name: _unquoted(field) or None for name, field in zip(header, fields, strict=True)}


def _backslashed(taken: Sequence[str | None], delimiter: str) -> list[str]:
    r"""The fields of a line that is no CSV, read as Spark writes it, \" for a quote; none where it is not that."""
    line = taken[0] or ""
    if '\\"' not in line:
        return []
    doubled = _ESCAPED.sub(lambda found: '""' if found[1] == '"' else found[1], line)
    try:
        return next(csv.reader([doubled], strict=True, delimiter=delimiter))
    except csv.Error:
        return []


def _without_trailing(fields: list[str], count: int) -> list[str]:
    """The fields without empty ones behind as many as there are names: some programs end each line with a comma."""
    return fields if any(map(str.strip, fields[count:])) else fields[:count]


def _other_count(fields: int, names: int) -> str:
    """Why a line of so many fields is no row."""
    why = f"the line has {counted(fields, 'field')}, the first line {counted(names, 'field')}"
    if fields != names + 1:
        return why
    return f"{why}; a field with the delimiter in it needs quotes, and R's row names need a name in the first line"


def _name(field: str) -> str:
    return _unquoted(field).strip()


def _unquoted(field: str) -> str:
    found = _QUOTED.fullmatch(field)
    return found[1].replace('""', '"') if found else field
