"""Labels and kept columns: whatever an input stores, checked before a run and brought to the types of the output."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import numbers
import re
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from transforms.core.errors import ImagebeamError
from transforms.core.text import storable
from transforms.inputs.types import ReadOptions

PEEKED_RECORDS = 16
"""Records that are looked at for the columns of a format without a schema."""

Schema = Mapping[str, pa.DataType]
"""The columns of an input: name -> type, `pa.null()` where only nulls were seen."""


_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0*")
"""A whole number as a program writes it whose column is of doubles: a missing value makes it so."""


def as_label(value: Any) -> str | None:
    """A label as the output's string, the same whatever type a shard stores it as.

    3, 3.0, Decimal("3.00") and "3.0" are "3"; text is brought to Unicode's composed form (NFC), without surrounding
    blanks. None, NaN, empty and blank text are no label.

    Raises:
        ValueError: for a value that is no label, such as a list.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig")
    if isinstance(value, str):
        value.encode()  # Raises for half a character; see `_convert`.
        text = unicodedata.normalize("NFC", value.strip())
        if match := _WHOLE_NUMBER.fullmatch(text):
            text = match[1]
        return "0" if text == "-0" else text or None
    if isinstance(value, bool | datetime.time | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.date):  # A datetime is one.
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return None if value.is_nan() else as_label(str(value) if value.is_infinite() else f"{value:f}")
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):  # How pandas writes a missing number.
            return None
        return str(int(number)) if number.is_integer() else str(value)
    raise ValueError(f"a label is a text or a number; received {value!r:.80} (keep a list with --keep_columns)")


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
            names = feature["names"] if feature["_type"] == "ClassLabel" else None
            return cls([str(name) for name in names] if names else None)
        except (LookupError, TypeError, ValueError):
            return cls(None)

    def label(self, value: Any) -> Any:
        """The name that a value stands for; a negative number is no label.

        Raises:
            ValueError: for a number without a name.
        """
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
    """
    return {name: _convert(name, values.get(name), kind) for name, kind in options.keep_columns}


def _convert(name: str, value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind) and not isinstance(value, list):  # A TFRecord does not tell one value from a list of one.
        value = [value]
    try:
        value = _storable(value)
        if isinstance(value, str) and pa.types.is_string(kind):
            return value
        if isinstance(value, bytes) and not is_bytes(kind):
            value = value.decode()
        return pa.scalar(value).cast(kind).as_py()  # Not `pa.scalar(value, kind)`, which makes 1 of 1.5.
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise ValueError(f"the kept column {name!r} is {kind}, which {value!r:.80} is not") from error


def _storable(value: Any) -> Any:
    r"""A value whose texts can be stored: JSON can write half of a character, "\ud83d", which costs no image."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(item) for name, item in value.items()}
    return value


def infer(rows: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The columns of some rows; bytes that are text in every row count as strings."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(_storable(value))
    return {name: _type_of(found) for name, found in values.items()}


def _type_of(values: list[Any]) -> pa.DataType:
    for guess in (values, [value for value in values if value is not None][:1]):  # The first decides where they differ.
        try:
            kind = pa.array(guess).type
            if is_bytes(kind):
                pa.array(guess, pa.string())
                return pa.string()
        except (pa.ArrowException, OverflowError):
            continue
        return kind
    return pa.binary()


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column's values are bytes."""
    types = pa.types
    variable = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(variable or types.is_fixed_size_binary(kind))


def check_image_column(name: str, schema: Schema) -> None:
    """Refuse an image column that is not there or cannot hold images, naming those that can.

    Raises:
        ImagebeamError: without naming the input, which the caller knows.
    """
    fitting = [one for one, kind in schema.items() if _holds_images(kind)]
    if name in fitting:
        return
    found = f"a column of {schema[name]}" if name in schema else "no column of the input"
    remedy = f"Pass --image_column {' or '.join(fitting)}." if fitting else "No column holds bytes."
    raise ImagebeamError(f"{describe(schema)}. Received: --image_column {name!r}, {found}. {remedy}")


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face's struct<bytes, path>.
        return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
    return is_bytes(kind)


def check_other_columns(options: ReadOptions, schema: Schema) -> None:
    """Refuse a label column or kept columns that are not there; a label column that nobody named may be missing.

    Raises:
        ImagebeamError: without naming the input, which the caller knows.
    """
    if options.label_column not in (*schema, ReadOptions().label_column):
        raise ImagebeamError(f"{describe(schema)}. Received: --label_column {options.label_column!r}.")
    for name, _ in options.keep_columns:
        if name not in schema:
            raise ImagebeamError(f"{describe(schema)}. Received: --keep_columns {name!r}.")


def describe(schema: Schema) -> str:
    """Name the columns: "The columns are image (binary), label (int64)"."""
    return f"The columns are {', '.join(f'{name} ({kind})' for name, kind in schema.items()) or 'none'}"


def resolve_types(kept: tuple[tuple[str, pa.DataType], ...], schema: Schema) -> tuple[tuple[str, pa.DataType], ...]:
    """The kept columns, those whose type was left open (`pa.null()`) with the type that the schema tells."""
    return tuple((name, schema.get(name, kind) if pa.types.is_null(kind) else kind) for name, kind in kept)
