"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, 64 hex digits."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def joint_sha256(digests: list[str]) -> str:
    """SHA-256 of digests of 64 hex digits each, in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
