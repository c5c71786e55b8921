"""Patterns of paths: braces, `*`, `?`, `[..]` and `**`, matched one path component at a time.

A `Glob` is a small automaton over the components of a path, so a folder that can lead to no match is never entered,
and a pattern with several `**` still meets every path once.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

import bracex

from transforms.core.errors import ImagebeamError

MAX_EXPANSIONS = 1_000_000
"""The most patterns that the braces of one pattern may stand for."""

States = frozenset[int]
"""Where a path stands in a pattern: the positions of the components that may match next."""

_MAGIC = re.compile(r"[*?[]")


def has_magic(text: str) -> bool:
    """Whether `text` holds a character that globs read as something else than itself."""
    return _MAGIC.search(text) is not None


def expand_braces(pattern: str) -> list[str]:
    """`a{1,2}` -> `a1`, `a2`; `{000..010}` -> `000`, `001` ... `010`, as bash does it.

    Raises:
        ImagebeamError: if the braces stand for more than `MAX_EXPANSIONS` patterns.
    """
    if "{" not in pattern:
        return [pattern]
    try:
        return list(dict.fromkeys(bracex.iexpand(pattern, keep_escapes=True, limit=MAX_EXPANSIONS)))
    except bracex.ExpansionLimitException as error:
        raise ImagebeamError(
            f"The braces stand for more than {MAX_EXPANSIONS:,} paths; use * instead. Received: {pattern!r}."
        ) from error


@dataclass(frozen=True, slots=True)
class Glob:
    """The paths below a folder that match a pattern.

    As in a shell, `*`, `?` and `**` leave out names that start with a dot unless `hidden` says otherwise, and only `**`
    crosses a slash.

    Attributes:
        folder: uri of the folder, taken literally, without a trailing slash.
        prefix: what the name of every match below `folder` starts with, taken literally.
        parts: one regular expression for each component of the pattern, None for `**`.
        hidden: whether names that start with a dot match too.
    """

    folder: str
    prefix: str
    parts: tuple[re.Pattern[str] | None, ...]
    hidden: bool = False

    @classmethod
    def below(cls, folder: str, pattern: str, *, hidden: bool = False) -> Glob:
        """The glob `pattern` (components joined by slashes) below `folder` (a uri without a trailing slash)."""
        components = pattern.split("/")
        if components[-1] == "**":
            components.append("*")
        magic = _MAGIC.search(pattern)
        prefix = pattern[: magic.start()] if magic else pattern
        return cls(folder, prefix, tuple(_component(component, hidden) for component in components), hidden)

    @property
    def depth(self) -> int | None:
        """How many components every match has below `folder`; None where `**` leaves it open."""
        return None if None in self.parts else len(self.parts)

    @property
    def end(self) -> int:
        """The state of a path that matches."""
        return len(self.parts)

    @property
    def start(self) -> States:
        """The state of the folder itself."""
        return self._skip_empty({0})

    def step(self, states: States, name: str) -> States:
        """The states of the entry `name` of a folder in `states`; empty where nothing there can match."""
        following = set()
        for state in states:
            if state == self.end:
                continue
            part = self.parts[state]
            if part is None:
                if self.hidden or not name.startswith("."):
                    following.add(state)
            elif part.match(name):
                following.add(state + 1)
        return self._skip_empty(following)

    def _skip_empty(self, states: set[int]) -> States:
        for state in sorted(states):
            while state < self.end and self.parts[state] is None:  # `**` may stand for no folder at all.
                state += 1
                states.add(state)
        return frozenset(states)


def _component(text: str, hidden: bool) -> re.Pattern[str] | None:
    if text == "**":
        return None
    shown = "" if hidden or text.startswith(".") else r"(?!\.)"
    return re.compile(shown + fnmatch.translate(text))
