"""A decoder that breaks as its files tell it to, for processes that import it by name."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable

import numpy as np

from transforms.images.base import Decoded, Limits
from transforms.images.formats import tiff


def _grow(_: Limits) -> None:
    held = []
    while True:
        held.append(np.empty(1 << 26, np.uint8))  # It asks for memory and does not touch it.


def _take(size: int, gigabytes: int, limits: Limits) -> None:
    limits.check(size, size)
    np.empty(gigabytes << 30, np.uint8)


WAYS: dict[str, Callable[[Limits], object]] = {
    "abort": lambda _: os.abort(),
    "crash": lambda _: ctypes.string_at(0),
    "exit": lambda _: os._exit(0),
    "sleep": lambda _: time.sleep(1e6),
    "loop": lambda _: sum(itertools.repeat(0)),  # in C, which looks at no signal
    "grow": _grow,
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "little memory": functools.partial(_take, 8000, 3),
    "much memory": functools.partial(_take, 10, 3),
}


def broken(way: str) -> bytes:
    """A file that does it; it begins as a TIFF."""
    return b"II*\0" + way.encode()


def decode(data: bytes, limits: Limits) -> Decoded:
    """TIFF, if it is not one of `broken`."""
    if act := WAYS.get(data[4:].decode("latin1")):
        act(limits)
    return tiff.decode(data, limits)
