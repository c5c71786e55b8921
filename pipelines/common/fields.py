"""Declare flags as the fields of frozen dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Self, TypeVar

from transforms.core.errors import ImagebeamError

E = TypeVar("E", bound=enum.StrEnum)


def flag(text: str, default: Any = MISSING, *, name: str | None = None, **settings: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        text: its help, one line: what it is, its unit, what happens.
        default: of field and flag; a flag without one is required.
        name: of the flag where it is not the field's, such as "--layer" for the field `layers`.
        settings: what `ArgumentParser.add_argument` takes besides.
    """
    return dataclasses.field(default=default, metadata={"name": name, "help": text, **settings})


def one_of(kind: type[E]) -> dict[str, Any]:
    """Settings of a flag that takes one member of `kind`, and names them all when it gets something else."""

    def read(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"choose one of {', '.join(kind)}. Received: {text!r}") from None

    return {"type": read, "metavar": "|".join(kind)}


MOST_USED = "most used"
"""Title of the group that a job's help begins with."""


def _group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """The group of that title, made where there is none yet."""
    known = {group.title: group for group in parser._action_groups}
    return known.get(title) or parser.add_argument_group(title)


def _shown(default: object) -> str:
    """A default as help has it: with its thousands apart."""
    return f"{default:,}" if type(default) is int and default >= 10_000 else str(default)


def check_seed(seed: int) -> None:
    """Refuse a `--seed` that NumPy's and scikit-learn's generators do not take.

    Raises:
        ImagebeamError: if it is negative, or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise ImagebeamError(f"--seed is at least 0 and less than {2**32:,}. Received: {seed}.")


def refuse_both(first: Sequence[str], second: Sequence[str], why: str) -> None:
    """Refuse flags that contradict each other.

    Args:
        first: flags as they were given, as `Options.given` has them; perhaps none.
        second: likewise; none of them goes with any of `first`.
        why: one sentence.

    Raises:
        ImagebeamError: naming the first of each, if there are such.
    """
    if first and second:
        raise ImagebeamError(f"{why} Received: {first[0]} and {second[0]}. Leave one of them out.")


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
        most_used: Collection[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Declare the group's flags under a title in the parser's help.

        Args:
            parser: to add them to.
            title: of the group.
            defaults: by field, what this parser takes in place of the group's own default, or where it has none.
            leave_out: fields whose flags another group declares; `from_args` takes their values from there.
            most_used: fields whose flags stand under `MOST_USED` instead, above all other groups.
            texts: by field, help in place of the field's own; its default is not added to it.
        """
        for field in dataclasses.fields(cls):
            if field.name in leave_out:
                continue
            settings = dict(field.metadata)
            name = settings.pop("name") or f"--{field.name}"
            default = field.default if defaults is None else defaults.get(field.name, field.default)
            if default is MISSING:
                settings["required"] = True
                settings["help"] = f"{settings['help']} (required)"
            elif default != ():  # argparse would add to the default of a repeatable flag, so it gets none
                settings["default"] = default
                if default is not None and "action" not in settings:
                    settings["help"] = f"{settings['help']} (default: {_shown(default)})"
            settings["help"] = (texts or {}).get(field.name, settings["help"])
            group = _group(parser, MOST_USED if field.name in most_used else title)
            group.add_argument(name, dest=field.name, **settings)

    def given(self, *names: str, usual: Self | None = None) -> list[str]:
        """Flags whose value is not the default, as they are written: "--epochs 3".

        Args:
            names: of the fields to look at; none for all.
            usual: values that count as defaults, where they are not the class's own.
        """
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = field.default if usual is None else getattr(usual, field.name)
            if value == default or (names and field.name not in names):
                continue
            name = field.metadata["name"] or f"--{field.name}"
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            found.append(name if field.metadata.get("action") == "store_true" else f"{name} {text}")
        return found

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        """Take this group's flags from a parsed command line.

        Raises:
            ImagebeamError: for a value that no job can work with.
        """
        values = {field.name: getattr(args, field.name) for field in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if value is not None}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
