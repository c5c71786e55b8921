"""Make text from inputs safe to store and print."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MESSAGE_CHARACTERS = 2_000
"""Of a failure's message at most: an input may put a megabyte into one."""

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
"""How Python's file functions hold a byte that is not UTF-8."""

_SHOWN_AS_CODES = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal may obey, or that cannot be encoded."""


def storable(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes that were not UTF-8 become \xe9, half characters \ud83d."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = _ESCAPED_BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
        return shown.encode("utf-8", "backslashreplace").decode()
    return text


def readable_json(content: Mapping[str, Any], indent: int) -> bytes:
    r"""JSON in UTF-8 that keeps the characters of every script; what UTF-8 cannot hold is escaped as \udce9."""
    return json.dumps(content, ensure_ascii=False, indent=indent).encode(errors="backslashreplace")


def printable(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    r"""Text in one line without control characters, which are written as \x1b or \u202e; cut off at `limit`."""
    shown = text[:limit] + (f"... ({len(text):,} characters)" if len(text) > limit else "")
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(map(_character, shown))


def spelled(value: object) -> str:
    """A value in JSON's terms as a person writes it: "none", "true", "a, b", "x: 1, y: 2"."""
    if value is None or value in ([], (), {}, ""):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {spelled(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(spelled, value))
    return str(value)


def size_text(image_size: tuple[int, int] | None) -> str:
    """(224, 224) -> "224x224", None -> "native": the spelling of the command line."""
    return "native" if image_size is None else f"{image_size[0]}x{image_size[1]}"


def counted(count: int, one: str, more: str | None = None) -> str:
    """Format a count: "1 unit", "2,000 units". `more` is an irregular plural."""
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """Name of each value that differs -> one line: "pooling: avg != max"."""
    return {
        name: f"{name}: {spelled(mine.get(name))} != {spelled(theirs.get(name))}"
        for name in {**mine, **theirs}
        if mine.get(name) != theirs.get(name)
    }


def list_difference(name: str, mine: Sequence[str], theirs: Sequence[str], shown: int = 3) -> str:
    """How two long lists differ: "input: 2 more, such as b.jpg"."""
    if max(len(mine), len(theirs)) <= shown:
        return f"{name}: {spelled(mine)} != {spelled(theirs)}"
    known, wanted = set(mine), set(theirs)
    more, fewer = [one for one in theirs if one not in known], [one for one in mine if one not in wanted]
    told = [f"{len(some):,} {how}, such as {some[0]}" for some, how in ((more, "more"), (fewer, "fewer")) if some]
    return f"{name}: {', '.join(told) or 'the same in another order'}"


def first_few(names: Sequence[str], shown: int = 5) -> str:
    """Names with commas between them, and dots for those beyond the first `shown`."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _character(character: str) -> str:
    if unicodedata.category(character) in _SHOWN_AS_CODES:
        return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else repr(character)[1:-1]
    return character
