"""Infer, merge and convert the types of kept columns without loss."""

from __future__ import annotations

import decimal
import functools
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from transforms.core.formats import KEEP_TYPES
from transforms.core.text import storable

TEXT = pa.string()

_DECLARED_AS = {pa.type_for_alias(name): name for name in KEEP_TYPES}

_LIST = re.compile(r"list<\w+: (\w+)>")

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")

_LARGE_NUMBER = pa.decimal128(38, 0)
"""Of whole numbers beyond 64 bits."""


def type_of(value: Any) -> pa.DataType:
    """The type of a value as JSON, a `tf.train.Example` or Arrow gives it; bytes that are UTF-8 are text.

    Raises:
        ValueError: for a value that Arrow has no type for, or a list of values that no type holds.
    """
    if value is None:
        return pa.null()
    if isinstance(value, pa.Scalar):
        return value.type
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return _type_of_int(value)
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return TEXT
    if isinstance(value, bytes):
        return TEXT if _is_text(value) else pa.binary()
    if isinstance(value, list):
        return pa.list_(widest(map(type_of, value)))
    if isinstance(value, dict):
        return pa.struct([(storable(name), type_of(item)) for name, item in value.items()])
    try:
        return pa.scalar(value).type
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(str(error)) from error


def _type_of_int(value: int) -> pa.DataType:
    if -(2**63) <= value < 2**63:
        return pa.int64()
    if 0 <= value < 2**64:
        return pa.uint64()
    if abs(value) < 10**38:
        return _LARGE_NUMBER
    raise ValueError("a whole number has 38 digits at most")


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def widest(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """The type that holds the values of all of some types; null of none.

    Raises:
        ValueError: if there is none.
    """
    return functools.reduce(widen, dict.fromkeys(kinds), pa.null())


@functools.lru_cache(maxsize=4096)
def widen(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of both: Arrow's rules, but for those that lose something of every value.

    Whole numbers and floats are float64 (of which `fit` refuses those that are not exact there), text and bytes are
    bytes, values and lists of them are lists, structs have the fields of both. Numbers and text have nothing in common,
    nor have times with and without a zone.

    Raises:
        ValueError: if there is none.
    """
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if is_list_type(one) != is_list_type(other):
        lists, item = (one, other) if is_list_type(one) else (other, one)
        return pa.list_(widen(lists.value_type, item))
    if types.is_dictionary(one) or types.is_dictionary(other):
        return widen(*(kind.value_type if types.is_dictionary(kind) else kind for kind in (one, other)))
    if types.is_signed_integer(one) and types.is_uint64(other):
        return other
    if types.is_uint64(one) and types.is_signed_integer(other):
        return one
    if types.is_list(one) and types.is_list(other):
        return pa.list_(widen(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other):
        fields = [*dict.fromkeys(field.name for kind in (one, other) for field in kind)]
        return pa.struct([(name, widen(_field_type(one, name), _field_type(other, name))) for name in fields])
    if any(map(types.is_decimal, (one, other))) and any(map(types.is_floating, (one, other))):
        raise ValueError(f"no type holds {one} and {other}")
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"no type holds {one} and {other}") from error


def _field_type(kind: pa.StructType, name: str) -> pa.DataType:
    index = kind.get_field_index(name)
    return pa.null() if index < 0 else kind.field(index).type


def holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Whether a column may become one of another type: its values stay what they are, or are whole numbers as text."""
    try:
        return bool(widen(wide, narrow) == wide) or (_is_string(wide) and bool(pa.types.is_integer(narrow)))
    except ValueError:
        return False


def is_open(kind: pa.DataType) -> bool:
    """Whether nothing but nulls, or empty lists, was seen of a type or of something in it."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(is_open(field.type) for field in kind)
    return is_open(kind.value_type) if is_list_type(kind) else bool(pa.types.is_null(kind))


def is_list_type(kind: pa.DataType) -> bool:
    """Whether a column's values are lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type of a kept column: that of the lists or bytes behind a name, such as tensor, if Arrow cannot build it."""
    return kind if not isinstance(kind, pa.BaseExtensionType) or _is_built(kind) else kind.storage_type


def _is_built(kind: pa.BaseExtensionType) -> bool:
    """Whether Arrow makes a column of the values of one: of UUIDs pyarrow 25 does, 23 does not."""
    if is_list_type(kind.storage_type):
        return False
    if not pa.types.is_fixed_size_binary(kind.storage_type):
        return True
    value = pa.ExtensionArray.from_storage(kind, pa.array([bytes(kind.storage_type.byte_width)], kind.storage_type))[0]
    try:
        return bool(pa.array([value], kind).is_valid()[0])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return False


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column's values are bytes."""
    types = pa.types
    variable = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(variable or types.is_fixed_size_binary(kind))


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def fit(value: Any, kind: pa.DataType, *, declared: bool) -> Any:
    """A value as a column of a type holds it: equal to what it was.

    Args:
        value: of JSON, a `tf.train.Example`, CSV or Arrow.
        kind: of the column.
        declared: whether the user asked for that type: text is parsed then, anything can become text (lists and
            objects as JSON), 0 and 1 are bools, and decimal fractions are rounded to what the type can hold.

    Raises:
        ValueError: if it is not one of the column's.
    """
    if value is None:
        return None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(value, pa.Scalar):
        return _fit_scalar(value, kind, declared)
    if is_list_type(kind):  # A TFRecord does not tell one value from a list of one.
        items = value if isinstance(value, list) else [value]
        if pa.types.is_float64(kind.value_type) and {*map(type, items)} == {float}:  # Vectors: in one step.
            return items
        return [fit(item, kind.value_type, declared=declared) for item in items]
    if not isinstance(value, bool | int | float | str | bytes | list | dict):  # A date, say.
        return _fit_scalar(pa.scalar(value), kind, declared)
    if pa.types.is_struct(kind):
        return _fit_struct(value, kind, declared)
    if isinstance(value, bytes) and not is_bytes(kind):
        value = value.decode()  # Its error is a ValueError.
    if isinstance(value, str) and (_is_string(kind) or is_bytes(kind)):
        return storable(value) if _is_string(kind) else storable(value).encode()
    if _is_exact(value, kind):
        return _to_type(value, kind)
    if not declared:
        raise ValueError(f"no {kind}")
    return _parse(value, kind)


def _fit_struct(value: Any, kind: pa.StructType, declared: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"no {kind}")
    value = {storable(name): item for name, item in value.items()}
    types = {field.name: field.type for field in kind}
    if unknown := value.keys() - types:
        raise ValueError(f"no field {min(unknown)}")
    return {name: fit(value.get(name), item, declared=declared) for name, item in types.items()}


def _is_exact(value: Any, kind: pa.DataType) -> bool:
    """Whether a Python value is one of a type's values as it is."""
    types = pa.types
    if isinstance(value, bool):
        return bool(types.is_boolean(kind))
    if isinstance(value, bytes):
        return is_bytes(kind)
    if isinstance(value, int):
        return bool(types.is_integer(kind) or types.is_decimal(kind) or (types.is_floating(kind) and _is_float(value)))
    if isinstance(value, float):
        return bool(types.is_floating(kind) and (types.is_float64(kind) or _is_held(value, kind)))
    return False


def _is_float(value: int) -> bool:
    """Whether float64 has a whole number."""
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


def _is_held(value: float, kind: pa.DataType) -> bool:
    """Whether a smaller floating type has a number."""
    return math.isnan(value) or pa.scalar(value).cast(kind).as_py() == value


def _to_type(value: Any, kind: pa.DataType) -> Any:
    """A value as Python's type for Arrow's.

    Raises:
        ValueError: if it is beyond the type's limits.
    """
    types = pa.types
    try:
        if types.is_decimal(kind):
            return pa.scalar(decimal.Decimal(value), kind).as_py()
        if types.is_floating(kind):
            value = float(value)
            if not types.is_float64(kind) and not _is_held(value, kind):
                raise ValueError(f"beyond {kind}")
            return value
        return pa.scalar(value, kind).as_py()  # Of a type that was not asked for, `pa.scalar` takes uint64 for int64.
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"beyond {kind}") from error


def _parse(value: Any, kind: pa.DataType) -> Any:
    """A value read as one of a type that was asked for; see `fit`."""
    if isinstance(value, list | dict) and _is_string(kind):
        return storable(_to_json(value))
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) and not pa.types.is_boolean(kind):
        value = int(value)
        if _is_exact(value, kind):
            return _to_type(value, kind)
    if isinstance(value, int) and not isinstance(value, bool) and not pa.types.is_boolean(kind):
        if pa.types.is_floating(kind):
            raise ValueError(f"not exact in {kind}")
        if _is_string(kind):
            return str(value)
    try:
        found = pa.scalar(value).cast(kind).as_py()  # Not `pa.scalar(value, kind)`, which makes 1 of 1.5.
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"no {kind}") from error
    if isinstance(found, bool) and not isinstance(value, str) and value not in (0, 1):
        raise ValueError(f"no {kind}")
    if isinstance(found, float) and math.isinf(found) and "inf" not in str(value).casefold():
        raise ValueError(f"beyond {kind}")
    return found


def _to_json(value: Any) -> str:
    """A value as JSON; bytes as the text they are, dates and decimals as text."""
    return json.dumps(
        value, ensure_ascii=False, default=lambda one: one.decode() if isinstance(one, bytes) else str(one)
    )


def _fit_scalar(value: pa.Scalar, kind: pa.DataType, declared: bool) -> Any:
    """A value that Python has no type for, such as a time in nanoseconds."""
    if not value.is_valid:
        return None
    if value.type == kind:
        return value
    types = pa.types
    if is_list_type(kind):
        items = list(value) if is_list_type(value.type) else [value]
        return [fit(item, kind.value_type, declared=declared) for item in items]
    if types.is_struct(kind) and types.is_struct(value.type):
        return _fit_struct(dict(value.items()), kind, declared)
    if types.is_map(kind) and types.is_map(value.type):
        pairs = [(entry["key"], entry["value"]) for entry in value.values]
        return [
            (fit(key, kind.key_type, declared=declared), fit(item, kind.item_type, declared=declared))
            for key, item in pairs
        ]
    if not declared:
        if not (types.is_temporal(value.type) or types.is_decimal(value.type)):
            return fit(value.as_py(), kind, declared=False)
        widen(value.type, kind)  # Raises where they have nothing in common, such as times with and without a zone.
    try:
        return value.cast(kind)
    except pa.ArrowException as error:
        if _is_string(kind):
            return storable(_to_json(value.as_py()))
        raise ValueError(f"no {kind}") from error


def remedy(kind: pa.DataType, value: Any) -> str:
    """What to declare a column as that has to hold a value which is not of its type `kind`: "float64"."""
    try:
        wider = widen(kind, type_of(value))
        fit(value, wider, declared=False)
    except ValueError:
        return declaration(TEXT)
    return declaration(wider)


def parse_type(text: str) -> pa.DataType | None:
    """The type that `str` gave a text of, of those that --keep_columns takes; None for others."""
    known = {str(kind): kind for kind in _DECLARED_AS}
    if match := _LIST.fullmatch(text):
        return pa.list_(known[match[1]]) if match[1] in known else None
    return known.get(text)


def declaration(kind: pa.DataType) -> str:
    """How --keep_columns is given a type; what it has no name for can be kept as text."""
    if is_list_type(kind):
        return f"list<{_DECLARED_AS.get(kind.value_type, 'string')}>"
    return _DECLARED_AS.get(kind, "string")
