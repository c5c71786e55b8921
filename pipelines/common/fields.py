"""Flags declared once: as the fields of a frozen record, which is what the job then works with."""

from __future__ import annotations

import argparse
import dataclasses
import enum
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Self, TypeVar

E = TypeVar("E", bound=enum.StrEnum)


def flag(text: str, default: Any = MISSING, *, name: str | None = None, **settings: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        text: its help, one line: what it is, its unit, what happens.
        default: of field and flag; a flag without one is required.
        name: of the flag where it is not the field's, such as "--layer" for the field `layers`.
        settings: what `ArgumentParser.add_argument` takes besides.
    """
    if default is not MISSING and "action" not in settings and default not in (None, ()):
        text = f"{text} (default: {default})"
    return dataclasses.field(default=default, metadata={"name": name, "help": text, **settings})


def one_of(kind: type[E]) -> dict[str, Any]:
    """Settings of a flag that takes one member of `kind`, and names them all when it gets something else."""

    def read(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"choose one of {', '.join(kind)}. Received: {text!r}") from None

    return {"type": read, "metavar": "|".join(kind)}


@dataclass(frozen=True)
class Options:
    """A group of flags; subclasses give the fields, and refuse bad values in `__post_init__`."""

    @classmethod
    def add_arguments(
        cls,
        parser: argparse.ArgumentParser,
        title: str,
        *,
        defaults: Mapping[str, Any] | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        """Declare the group's flags under a title in the parser's help.

        Args:
            parser: to add them to.
            title: of the group.
            defaults: by field, what this parser takes for a flag that the group itself requires.
            leave_out: fields whose flags another group declares; `from_args` takes their values from there.
        """
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(cls):
            if field.name in leave_out:
                continue
            settings = dict(field.metadata)
            name = settings.pop("name") or f"--{field.name}"
            if defaults is not None and field.name in defaults:
                settings["default"] = defaults[field.name]
            elif field.default is MISSING:
                settings["required"] = True
                settings["help"] = f"{settings['help']} (required)"
            elif field.default != ():  # argparse would add to the default of a repeatable flag, so it gets none
                settings["default"] = field.default
            group.add_argument(name, dest=field.name, **settings)

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        """Take this group's flags from a parsed command line.

        Raises:
            ImagebeamError: for a value that no job can work with.
        """
        values = {field.name: getattr(args, field.name) for field in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if value is not None}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
