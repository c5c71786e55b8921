"""Check the types of values that Python callers give, by the annotations of dataclass fields."""

from __future__ import annotations

import enum
import numbers
import types
from typing import Any, Literal, Union, get_args, get_origin

from transforms.core.errors import ImagebeamError

_PLAIN: dict[Any, tuple[type, str]] = {
    str: (str, "a str"),
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    type(None): (type(None), "None"),
}


def check_type(name: str, value: object, hint: Any) -> None:
    """Refuse a value that is not what a field's annotation says.

    A list passes as a tuple, a whole number as a float, and a str as the member of an enum that it names.

    Raises:
        ImagebeamError: naming the field, what it takes and the value.
    """
    if not _fits(value, hint):
        raise ImagebeamError(f"{name} is {_described(hint)}. Received: {value!r}.")


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        wanted = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if isinstance(value, bool) and hint is not bool:
        return False
    if hint not in _PLAIN and issubclass(hint, enum.StrEnum):
        return isinstance(value, str) and value in list(hint)
    return isinstance(value, _PLAIN[hint][0] if hint in _PLAIN else hint)


def _described(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[1:] == (...,):
        return f"a list, each item {_described(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(map(_described, arguments))})"
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    if issubclass(hint, enum.StrEnum):
        return f"one of {', '.join(hint)}"
    return f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
