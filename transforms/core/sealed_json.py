"""JSON files that contain a digest of their own content, to detect damage."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_KEY = "sha256_of_the_above"


def seal(content: dict[str, Any], indent: int | None = None) -> bytes:
    """A JSON object, not empty, whose last entry is the SHA-256 of all bytes before that entry."""
    text = json.dumps(content, indent=indent).encode()[:-1].rstrip()
    return text + _end(text)


def unseal(data: bytes) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
        ValueError: if a byte is not what it was.
    """
    text = data[: -len(_end(b""))]
    if data[len(text) :] != _end(text):
        raise ValueError("its bytes are not those that were written")
    content: dict[str, Any] = json.loads(data)
    del content[_KEY]
    return content


def _end(text: bytes) -> bytes:
    return f',\n "{_KEY}": "{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
