"""Say why a manifest's row names no file, where the file is there under another spelling."""

from __future__ import annotations

import os
import unicodedata
import urllib.parse
from collections.abc import Iterator

from transforms.core.text import printable
from transforms.readers.base import MISSING, RecordError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp")
"""Tried behind a name without one, in small letters and capitals."""


def why_no_file(named: str, path: str) -> RecordError | None:
    """The failure of a row whose local file is not there; None where nothing more is known than that.

    Args:
        named: as the row has it.
        path: that it means.
    """
    if os.path.isdir(path):
        return RecordError("bad_value", f"{printable(named)} is a folder; list the files in it")
    if "\\" in named:
        return RecordError(MISSING, f"there is no {named}; if the list is from Windows, write / for each \\")
    if other := next((other for other in _spellings(path) if os.path.isfile(other)), None):
        there = os.path.relpath(other, os.path.dirname(path))
        accents = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", path)
        how = ", whose accents are other characters of Unicode" if accents else ""
        return RecordError(
            MISSING, f"there is no {printable(named)}, but {printable(there)!r} is there{how}; list that name"
        )
    return None


def _spellings(path: str) -> Iterator[str]:
    """Other paths that a program may have meant: without %20, composed or not, of another ending or none."""
    folder, name = os.path.split(path)
    if ".." not in (decoded := urllib.parse.unquote(path)).split("/"):  # Which would lead out of what may be read.
        yield decoded
    yield os.path.join(folder, urllib.parse.quote(name))
    yield from (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    stem, ending = os.path.splitext(path)
    yield from (stem + ending.lower(), stem + ending.upper())
    if not ending:
        yield from (path + other for one in _ENDINGS for other in (one, one.upper()))
