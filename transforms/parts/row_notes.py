"""Per-row notes in a part's footer: the version of the row's file, and what decoding ignored.

They stand in the part's footer, eight characters a row, and let the next run take a row over without opening its file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

NOTES_KEY = b"imagebeam.rows"
"""Footer entry: six bytes a row, in base64."""

_BYTES = 6
_ICC_PROFILE = 1


def version_note(version: str | None) -> int:
    """A file's version as an even number of 48 bits; 0 where it is unknown.

    Two versions of one file have the same number once in 1.4e14.
    """
    if version is None:
        return 0
    digest = hashlib.sha256(version.encode("utf-8", "surrogatepass")).digest()[:_BYTES]
    return int.from_bytes(digest, "big") & ~_ICC_PROFILE or 2


def row_note(version: str | None, *, icc_profile_ignored: bool) -> int:
    """The note on one row."""
    return version_note(version) | (_ICC_PROFILE if icc_profile_ignored else 0)


def is_version(note: int, version: str) -> bool:
    """Whether a row was made from this version of its file."""
    return note & ~_ICC_PROFILE == version_note(version)


def has_icc_profile(note: int) -> bool:
    """Whether the row's image carried an ICC profile, which was not applied."""
    return bool(note & _ICC_PROFILE)


def encode_notes(notes: Sequence[int]) -> bytes:
    """Notes in order of the rows -> the footer entry."""
    return base64.b64encode(b"".join(note.to_bytes(_BYTES, "big") for note in notes))


def decode_notes(entry: bytes | None, rows: int) -> list[int]:
    """The inverse of `encode_notes`; zeros where the footer has no such entry, or it is not of so many rows."""
    try:
        data = base64.b64decode(entry or b"", validate=True)
    except ValueError:
        data = b""
    if len(data) != rows * _BYTES:
        return [0] * rows
    padded = np.zeros((rows, 8), np.uint8)
    padded[:, 8 - _BYTES :] = np.frombuffer(data, np.uint8).reshape(rows, _BYTES)
    notes: list[int] = padded.view(">u8").reshape(-1).tolist()
    return notes


def keep_notes(entry: bytes | None, rows: int, kept: Iterable[int]) -> bytes:
    """The footer entry of the rows at the positions `kept`."""
    notes = decode_notes(entry, rows)
    return encode_notes([notes[position] for position in kept])
