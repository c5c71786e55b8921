"""Replace the labels of embeddings with those of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec
from transforms.inputs.manifest_rows import TableError, label_names, table_rows
from transforms.readers.base import RecordError
from transforms.readers.columns import NamedLabels, as_label, as_labels, as_text
from transforms.readers.options import ReadOptions
from transforms.storage.resuming import ResumingStream
from transforms.training_data.embeddings import RowGroup, RowSet

KEY = "key"
LABEL = "label"


@dataclass
class Relabelled:
    """Rows whose label column is, where a file names their keys, that of the file; a `RowSet`.

    Attributes:
        base: the rows.
        label_column: that is replaced; it is added where the rows have none.
        labels: key -> label, list of labels, or None for a row that shall have none.
        kind: type of the column, string or a list of them.
        matched: rows that were read and whose key the file has.
        found: their keys, which rows of several runs may share.
    """

    base: RowSet
    label_column: str
    labels: Mapping[str, Any]
    kind: pa.DataType
    matched: int = 0
    found: set[str] = field(default_factory=set)

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """All rows, in order."""
        return self.base.groups

    @property
    def spec(self) -> EmbedderSpec:
        """Of the arrays."""
        return self.base.spec

    @property
    def column(self) -> str:
        """What the arrays go by in `read`."""
        return self.base.column

    @property
    def schema(self) -> pa.Schema:
        """Of the columns, that of the labels replaced."""
        fields = [field for field in self.base.schema if field.name != self.label_column]
        return pa.schema([*fields, pa.field(self.label_column, self.kind)])

    def read(self, groups: Iterable[RowGroup], columns: Sequence[str]) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Columns of row groups, in the order given."""
        stored = [name for name in dict.fromkeys((*columns, KEY)) if name in self.base.schema.names]
        for group, table in self.base.read(groups, stored):
            keys = table.column(KEY).to_pylist()
            own = table.column(self.label_column).to_pylist() if self.label_column in stored else [None] * len(keys)
            matched = [key for key in keys if key in self.labels]
            self.matched += len(matched)
            self.found.update(matched)
            values = [self.labels.get(key, label) for key, label in zip(keys, own, strict=True)]
            arrays = {name: table.column(name) for name in columns if name != self.label_column}
            yield group, pa.table({**arrays, self.label_column: self._array(values)}).select(list(columns))

    def vectors(self, group: RowGroup, table: pa.Table) -> np.ndarray:
        """The arrays [rows, ...] of a row group that was read with `column`."""
        return self.base.vectors(group, table)

    def _array(self, values: list[Any]) -> pa.Array:
        if pa.types.is_list(self.kind):
            return pa.array([value if value is None else as_labels(value) for value in values], self.kind)
        return pa.array([as_label(value) for value in values], self.kind)

    @property
    def unmatched(self) -> int:
        """Keys of the file that no row has, once all rows were read."""
        return len(self.labels) - len(self.found)


def relabel(rows: RowSet, label_column: str, uri: str) -> Relabelled:
    """The rows with the labels of a file (CSV, JSON lines or Parquet, with columns key and label).

    Rows whose key the file does not have keep the label they have.

    Raises:
        ImagebeamError: if the file cannot be read, has no such columns, has a key twice with different labels, or
            holds lists where the rows hold text, or the other way round.
    """
    labels = _read(uri)
    known = rows.schema.field(label_column).type if label_column in rows.schema.names else None
    has_lists = any(isinstance(label, list) for label in labels.values())
    is_list = has_lists if known is None else pa.types.is_list(known) or pa.types.is_large_list(known)
    if any(isinstance(label, list) != is_list for label in labels.values() if label is not None):
        raise ImagebeamError(
            f"Column {label_column!r} of the embeddings has {'lists of labels' if is_list else 'one label a row'}, and "
            f"the file other values. Received: --labels {uri!r}. Name another --label_column."
        )
    return Relabelled(rows, label_column, labels, pa.list_(pa.string()) if is_list else pa.string())


def _read(uri: str) -> dict[str, Any]:
    """Key -> label of a file.

    Raises:
        ImagebeamError: see `relabel`.
    """
    labels: dict[str, Any] = {}
    absolute = storage.absolute(uri)
    options = ReadOptions(uri_column=KEY, label_column=LABEL)
    try:
        with ResumingStream(absolute, None) as source:
            stream = cast(BinaryIO, source)
            names = label_names(stream, absolute, options)
            for number, row in enumerate(table_rows(stream, absolute, options)):
                key, label = _entry(uri, number, row, names)
                if labels.setdefault(key, label) != label:
                    raise ImagebeamError(
                        f"Two rows of the file have the key {key!r}, and other labels: {labels[key]!r} and {label!r}. "
                        f"Received: --labels {uri!r}."
                    )
    except (OSError, EOFError, pa.ArrowException) as error:
        raise ImagebeamError(f"The file of labels cannot be read ({error}). Received: --labels {uri!r}.") from error
    except TableError as error:
        raise ImagebeamError(f"{error} Received: --labels {uri!r}.") from error
    if not labels:
        raise ImagebeamError(f"The file of labels has no rows. Received: --labels {uri!r}.")
    return labels


def _entry(uri: str, number: int, row: Mapping[str, Any] | RecordError, names: NamedLabels) -> tuple[str, Any]:
    if isinstance(row, RecordError):
        raise ImagebeamError(f"Row {number + 1:,} of the file cannot be read: {row}. Received: --labels {uri!r}.")
    if KEY not in row or LABEL not in row:
        raise ImagebeamError(
            f"A file of labels has the columns {KEY} and {LABEL}. Received: --labels {uri!r} with "
            f"{', '.join(map(str, row)) or 'none'}."
        )
    key = as_text(row[KEY])
    if not key:
        raise ImagebeamError(f"Row {number + 1:,} of the file has no key. Received: --labels {uri!r}.")
    try:
        label = names.label(row[LABEL])
        return key, as_labels(label) if isinstance(label, list) else as_label(label)
    except ValueError as error:
        raise ImagebeamError(f"Row {number + 1:,} of the file: {error}. Received: --labels {uri!r}.") from error
