"""Text of an input made safe to store and to print."""

from __future__ import annotations

import unicodedata

MESSAGE_CHARACTERS = 2_000
"""Of a failure's message at most: an input may put a megabyte into one."""

_SHOWN_AS_CODES = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal may obey, or that cannot be encoded."""


def storable(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes that were not UTF-8 and half characters become \udc.. and the like."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    r"""Text in one line without control characters, which are written as \x1b or \u202e; cut off at `limit`."""
    shown = text[:limit] + (f"... ({len(text):,} characters)" if len(text) > limit else "")
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(map(_character, shown))


def _character(character: str) -> str:
    if unicodedata.category(character) in _SHOWN_AS_CODES:
        return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else repr(character)[1:-1]
    return character
