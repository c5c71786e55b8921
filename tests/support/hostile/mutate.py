"""Damage: one seed, one sound file -> one damaged file."""

from __future__ import annotations

import random
from collections.abc import Callable

_SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""What is written over a number: those at which arithmetic goes wrong."""


def mutate(data: bytes, source: random.Random) -> bytes:
    """One to four damages, one after the other; most keep the first bytes, which say what the file is."""
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        data = source.choice(_DAMAGES)(data, source)
    return data


def _place(data: bytes, source: random.Random) -> int:
    """Headers stand at the beginning and Parquet's at the end: a third of all damage is done at each."""
    size = len(data)
    start, end = source.choice(((0, size), (0, min(size, 256)), (max(0, size - 1024), size)))
    return source.randrange(start, max(start + 1, end))


def _flip(data: bytes, source: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice((1, 2, 8, 64))):
        if changed:
            changed[_place(data, source)] ^= 1 << source.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, source: random.Random) -> bytes:
    width, order = source.choice((1, 2, 4, 8)), source.choice(("little", "big"))
    number = source.choice(_SIZES) & ((1 << 8 * width) - 1)
    place = _place(data, source)
    return data[:place] + number.to_bytes(width, order) + data[place + width :]  # type: ignore[arg-type]


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: _place(data, source)]


def _drop(data: bytes, source: random.Random) -> bytes:
    place = _place(data, source)
    return data[:place] + data[place + source.choice((1, 4, 64, 1024)) :]


def _repeat(data: bytes, source: random.Random) -> bytes:
    place, count = _place(data, source), source.choice((1, 16, 512))
    return data[:place] + data[place : place + count] * source.choice((2, 9, 200)) + data[place + count :]


def _noise(data: bytes, source: random.Random) -> bytes:
    place = _place(data, source)
    noise = source.randbytes(source.choice((1, 8, 200)))
    return data[:place] + noise + data[place + len(noise) * source.randrange(2) :]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _overwrite, _cut, _drop, _repeat, _noise)
