"""Detect duplicate keys among millions of rows in little memory."""

from __future__ import annotations

import hashlib

import numpy as np

_BUFFER = 1 << 16
"""Keys held in a set, before they go into a sorted array."""


class SeenKeys:
    """Keys by 64 bits of their digest, 8 bytes each, in sorted arrays of growing size.

    Two different keys pass for one with a chance of 3 in a million among 10,000,000 keys (n² / 2⁶⁵).
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._older: list[np.ndarray] = []

    def add(self, key: str) -> bool:
        """Whether the key is new."""
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        if digest in self._recent or any(_has(digests, digest) for digests in self._older):
            return False
        self._recent.add(digest)
        if len(self._recent) == _BUFFER:
            self._settle()
        return True

    def _settle(self) -> None:
        """Sort the recent ones, and merge arrays of about one size: there are never more than a few dozen."""
        merged = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._older and len(self._older[-1]) <= len(merged):
            merged = np.sort(np.concatenate([self._older.pop(), merged]))
        self._older.append(merged)


def _has(digests: np.ndarray, digest: int) -> bool:
    place = int(np.searchsorted(digests, np.uint64(digest)))
    return place < len(digests) and int(digests[place]) == digest
