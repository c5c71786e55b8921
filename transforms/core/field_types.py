"""Check and convert the values that Python callers give, by the annotations of dataclass fields."""

from __future__ import annotations

import enum
import functools
import inspect
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


class _MisfitError(Exception):
    """A value is not what an annotation says."""


def typed(name: str, value: object, hint: Any) -> Any:
    """Return a value as a field's annotation has it.

    A list becomes a tuple, a whole number a float, a str the member of an enum that it names, and a number or array of
    NumPy the Python values it holds: options are written as JSON and compared with what is read again.

    Raises:
        ImagebeamError: if the value does not fit, naming the field, what it takes and the value.
    """
    try:
        return _convert(value, hint)
    except _MisfitError:
        raise ImagebeamError(f"{name} is {_described(hint)}. Received: {value!r}.") from None


def convert_fields(record: Any, *names: str) -> None:
    """`typed` for fields of a dataclass, frozen or not, in place; for its `__post_init__`.

    Args:
        record: the instance.
        names: of the fields; none for all that its own class declares.

    Raises:
        ImagebeamError: as `typed` does.
    """
    hints = _hints(record.__class__)
    for name in names or hints:
        object.__setattr__(record, name, typed(name, getattr(record, name), hints[name]))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return inspect.get_annotations(kind, eval_str=True)


def plain(value: Any) -> Any:
    """A number or array of NumPy as Python's numbers and lists; anything else as it is."""
    is_numpy = not isinstance(value, type) and hasattr(value, "dtype") and hasattr(value, "tolist")
    return value.tolist() if is_numpy else value


def _convert(value: Any, hint: Any) -> Any:
    value = plain(value)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            try:
                return _convert(value, argument)
            except _MisfitError:
                pass
        raise _MisfitError
    if origin is Literal:
        return _if_fits(value in arguments, value)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise _MisfitError
        wanted = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(value) != len(wanted):
            raise _MisfitError
        return tuple(map(_convert, value, wanted))
    if isinstance(value, bool) and hint is not bool:
        raise _MisfitError
    if hint in _PLAIN:
        _if_fits(isinstance(value, _PLAIN[hint][0]), value)
        return hint(value) if hint in (int, float) else value
    if issubclass(hint, enum.StrEnum):
        return hint(_if_fits(isinstance(value, str) and value in list(hint), value))
    return _if_fits(isinstance(value, hint), value)


def _if_fits(fits: bool, value: Any) -> Any:
    if not fits:
        raise _MisfitError
    return value


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
