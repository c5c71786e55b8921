"""Labels and kept columns: check them before a run, and convert them to the output's types."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import numbers
import re
import unicodedata
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.core.errors import ColumnTypeError, ImagebeamError
from transforms.core.formats import LabelFrom
from transforms.readers.column_types import fit, is_bytes, is_list_type, remedy, type_of, widest
from transforms.readers.folders import partitions
from transforms.readers.options import KEEP_COLUMNS, ReadOptions

PEEKED_RECORDS = 16
"""Records that are looked at for the columns of a format without a schema."""

Schema = Mapping[str, pa.DataType]
"""The columns of an input: name -> type, `pa.null()` where only nulls were seen."""


def choose_label(stored: Any, uri: str, folder: str | None, options: ReadOptions) -> str | None:
    """The label of a record, by `options.label_from`.

    Args:
        stored: what the label column holds; None where there is nothing.
        uri: of the file, whose folders may be named ``label=cat``.
        folder: the name of the folder that tells the class, if one does.
        options: see `ReadOptions`.

    A list of several labels is none of its own where it is kept as a column.

    Raises:
        ValueError: for a value that is no label.
    """
    rule = options.label_from
    if rule == LabelFrom.NONE:
        return None
    if rule.is_folder:
        return as_label(folder)
    if stored is None:
        stored = partitions(uri).get(options.label_column)
    if isinstance(stored, list):
        labels = as_labels(stored)
        if len(labels) > 1 and options.label_column not in options.kept_from.values():
            raise ValueError(
                f"the label column holds a list of {len(labels):,} labels; keep it with --keep_columns "
                f"{options.label_column}=labels:list<string>"
            )
        return labels[0] if len(labels) == 1 else None
    return as_label(folder if stored is None and rule == LabelFrom.AUTO else stored)


def as_text(value: Any) -> str:
    """A key or a name of a file as text, "" for none. Parquet's columns of text may say that they hold bytes."""
    if value is None:
        return ""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def as_labels(values: Iterable[Any]) -> list[str]:
    """Several labels of one record, by the rule of `as_label`; what is none is left out."""
    return [label for value in values if (label := as_label(value)) is not None]


def label_and_extras(
    stored: Any, values: Mapping[str, Any], uri: str, folder: str | None, options: ReadOptions
) -> tuple[str | None, dict[str, Any]]:
    """The label and the kept columns of a record; see `choose_label` and `convert`.

    Args:
        stored: what the label column holds.
        values: of the other columns.
        uri: of the file, whose folders may tell columns.
        folder: name of the folder that tells the class, if one does.
        options: which of them are kept.

    Raises:
        ValueError: for a value that does not fit.
    """
    columns = {**partitions(uri), **values}
    if isinstance(stored, list):
        columns[options.label_column] = as_labels(stored)
    return choose_label(stored, uri, folder, options), convert(columns, options)


_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0*")
"""A whole number as a program writes it whose column is of doubles: a missing value makes it so."""


def as_label(value: Any) -> str | None:
    """Convert a label to a string, equal for every type a shard may store it as.

    3, 3.0, Decimal("3.00") and "3.0" are "3", 1.5 and Decimal("1.50") are "1.5", 1e-5 and Decimal("1e-5") "0.00001":
    equal numbers are one label. The 0.1 of a column of float32 is "0.1", too, and not "0.10000000149011612". Of text
    only whole numbers are rewritten: "1.10" may be a version. Text is brought to Unicode's composed form (NFC), without
    surrounding blanks. None, NaN, empty and blank text are no label.

    Raises:
        ValueError: for a value that is no label, such as a list.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"the label {value!r:.80} is not UTF-8 text; write it as UTF-8") from error
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # Half a character, or bytes of a text that is not UTF-8.
            raise ValueError(f"the label is not Unicode text; save the file as UTF-8 ({error})") from error
        text = unicodedata.normalize("NFC", value.strip())
        if match := _WHOLE_NUMBER.fullmatch(text):
            text = match[1]
        return "0" if text == "-0" else text or None
    if isinstance(value, bool | datetime.time | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.date):  # A datetime is one.
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return _plain_digits(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        if number.is_integer():
            return str(int(number))
        return _plain_digits(decimal.Decimal(_digits(number) if math.isfinite(number) else number))
    raise ValueError(f"a label is a text or a number; received {value!r:.80}; keep other values with --keep_columns")


def _digits(number: float) -> str:
    """A fraction as its writer spelled it: what was a float32 has digits behind it that nobody wrote."""
    single = np.float32(number)
    return str(single) if float(single) == number else repr(number)


def _plain_digits(number: decimal.Decimal) -> str | None:
    """A number without an exponent and without zeros at the end of its fraction; None for NaN: a missing number."""
    if number.is_nan():
        return None
    if number.is_infinite():
        return str(float(number))
    text = f"{number:f}"
    return as_label(text.rstrip("0") if "." in text else text)


class NamedLabels:
    """Labels that are stored as numbers of names: Hugging Face's ClassLabel.

    Args:
        names: in order of the numbers; None where the column holds the labels themselves.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None, column: str) -> NamedLabels:
        """Those of a column, from the metadata that Hugging Face datasets writes into a Parquet footer."""
        try:
            feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
            feature = (
                feature[0] if isinstance(feature, list) else feature.get("feature", feature)
            )  # Of lists of labels.
            names = feature["names"] if feature["_type"] == "ClassLabel" else None
            return cls([str(name) for name in names] if names else None)
        except (AttributeError, LookupError, TypeError, ValueError):
            return cls(None)

    def label(self, value: Any) -> Any:
        """The name that a value stands for; a negative number is no label.

        Raises:
            ValueError: for a number without a name.
        """
        if isinstance(value, list):
            return [self.label(item) for item in value]
        if self._names is None or not isinstance(value, int):
            return value
        if value < 0:
            return None
        if value >= len(self._names):
            raise ValueError(f"the label column has {len(self._names):,} class names; received number {value}")
        return self._names[value]


def convert(values: Mapping[str, Any], options: ReadOptions) -> dict[str, Any]:
    """The kept columns of a record, as their types have them; a missing one is None.

    Raises:
        ValueError: naming the column and the value that does not fit.
        ColumnTypeError: likewise, where nobody declared the type; it names the remedy.
    """
    sources = options.kept_from
    return {
        name: _convert(name, sources[name], values.get(sources[name]), kind, options)
        for name, kind in options.keep_columns
    }


def _convert(name: str, source: str, value: Any, kind: pa.DataType, options: ReadOptions) -> Any:
    declared = name not in options.inferred
    try:
        return fit(value, kind, declared=declared)
    except ValueError as error:
        shown = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        if declared:
            raise ValueError(f"the kept column {name!r} is {kind}, which {shown!r:.80} is not") from error
        raise ColumnTypeError(
            f"the kept column {name!r} is {kind} in the records that were looked at before the run, which "
            f"{shown!r:.80} is not. {how_to_type(options.kept_by, name, source, remedy(kind, value))}"
        ) from error


def how_to_type(kept_by: str, name: str, source: str, kind: str) -> str:
    """How the user gives a kept column one type: with --keep_columns; another flag that names it takes no type."""
    if kept_by != KEEP_COLUMNS:
        return f"Give the column that {kept_by} names values of one type in the input"
    flag = f"{source if name == source else f'{source}={name}'}:{kind}"
    return f"Say its type: {KEEP_COLUMNS} {repr(flag) if '<' in flag else flag}"


def to_rows(batch: pa.RecordBatch, kept: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a batch as Python values, but what Python's types cannot hold of the kept columns as Arrow scalars.

    Those are times in nanoseconds, maps, decimals and the like.
    """
    columns = {
        name: [value if value.is_valid else None for value in column]
        if name in kept and not _is_plain(column.type)
        else column.to_pylist()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_plain(kind: pa.DataType) -> bool:
    if is_list_type(kind):
        return _is_plain(kind.value_type)
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind)
    number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return bool(text or number or types.is_null(kind) or types.is_dictionary(kind) or is_bytes(kind))


def infer(rows: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The columns of some rows; the first type of each where no type holds all of its values."""
    kinds: dict[str, list[pa.DataType]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, []).append(_type_or_text(value))
    return {name: _widest_or_first(found) for name, found in kinds.items()}


def _type_or_text(value: Any) -> pa.DataType:
    try:
        return type_of(value)
    except ValueError:
        return pa.string()


def _widest_or_first(kinds: list[pa.DataType]) -> pa.DataType:
    try:
        return widest(kinds)
    except ValueError:
        return next(kind for kind in kinds if not pa.types.is_null(kind))


def check_image_column(name: str, schema: Schema, *, may_name_files: bool = False) -> None:
    """Refuse an image column that is not there or cannot hold images, naming those that can.

    Args:
        name: of the column.
        schema: of the input.
        may_name_files: whether the file could be read as a manifest, too.

    Raises:
        ImagebeamError: without naming the input, which the caller knows.
    """
    if name in schema and (_holds_images(schema[name]) or pa.types.is_null(schema[name])):
        return  # Of nulls alone: each record will be a failure, while those of other shards may be images.
    fitting = [one for one, kind in schema.items() if _holds_images(kind)]
    texts = [one for one, kind in schema.items() if _holds_text(kind)]
    found = f"a column of {schema[name]}" if name in schema else "no column of the input"
    if fitting:
        remedy = f"Pass --image_column {' or '.join(fitting)}."
    else:
        lists = [one for one, kind in schema.items() if is_list_type(kind) and _holds_images(kind.value_type)]
        remedy = "No column holds plain bytes."
        if lists:
            remedy += f" Write the images of the lists in {' and '.join(lists)} into rows of their own."
        elif may_name_files and texts:
            named = " or ".join([name] if name in texts else texts)
            remedy += f" If one names image files, pass --input_format manifest --uri_column {named}."
    raise ImagebeamError(f"{describe(schema)}. Received: --image_column {name!r}, {found}. {remedy}")


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face's struct<bytes, path>, of which one may be null throughout.
        named = any(field.name == "path" and _holds_text(field.type) for field in kind)
        return any(
            field.name == "bytes" and (is_bytes(field.type) or (named and pa.types.is_null(field.type)))
            for field in kind
        )
    return is_bytes(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _holds_text(kind: pa.DataType) -> bool:
    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def check_other_columns(options: ReadOptions, schema: Schema) -> None:
    """Refuse missing label and kept columns. The default label column may be missing.

    Raises:
        ImagebeamError: without naming the input, which the caller knows.
    """
    if options.label_column not in (*schema, ReadOptions().label_column):
        raise ImagebeamError(f"{describe(schema)}. Received: --label_column {options.label_column!r}.")
    for name in options.kept_from.values():
        if name not in schema:
            raise ImagebeamError(f"{describe(schema)}. Received: {options.kept_by} {name!r}.")


def repeated_column(names: Sequence[str], wanted: Iterable[str]) -> str | None:
    """Why columns cannot be told apart; None where each of those wanted stands there once at most."""
    counts = ((names.count(name), name) for name in wanted)
    return next(
        (f"{count} columns are called {name!r}. Rename all but one." for count, name in counts if count > 1), None
    )


def describe(schema: Schema) -> str:
    """Name the columns: "The columns are image (binary), label (int64)"."""
    return f"The columns are {', '.join(f'{name} ({kind})' for name, kind in schema.items()) or 'none'}"
