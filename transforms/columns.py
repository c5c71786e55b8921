"""Labels and kept columns: whatever a shard stores, brought to the types of the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from transforms.errors import ImagebeamError


def as_label(value: Any) -> str | None:
    """A label as the output's string: 3 -> "3", b"cat" -> "cat"; None stays None.

    Raises:
        ValueError: for a value that is no label, such as a list.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, bool | int | float):
        return str(value)
    raise ValueError(f"a label is a text or a number; received {value!r} (keep a list with --keep_columns)")


class Columns:
    """Converts a record's kept values to their declared types."""

    def __init__(self, kept: tuple[tuple[str, pa.DataType], ...]) -> None:
        self._kept = kept

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Name -> value as the column's type has it; a missing one is None.

        Raises:
            ValueError: naming the column and the value that does not fit.
        """
        return {name: _convert(name, values.get(name), kind) for name, kind in self._kept}


def _convert(name: str, value: Any, kind: pa.DataType) -> Any:
    if value is None or (isinstance(value, str) and pa.types.is_string(kind)):
        return value
    try:
        try:
            return pa.scalar(value, kind).as_py()
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.scalar(value).cast(kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"the kept column {name!r} is {kind}, which {value!r} is not") from error


def missing_column(flag: str, name: str, what: str, known: Mapping[str, str] | Iterable[str]) -> ImagebeamError:
    """The error for a column that is not there, naming those that are."""
    names = [f"{one} ({kind})" for one, kind in known.items()] if isinstance(known, Mapping) else list(known)
    return ImagebeamError(f"{what} are {', '.join(sorted(names)) or 'none'}. Received: {flag} {name!r}.")
