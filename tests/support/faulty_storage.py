"""A local disk that fails or dies at a chosen call: every call that `transforms.storage.local` makes is counted."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Never

import pytest

from transforms.storage import local

COUNTED = ("stat", "scandir", "makedirs", "replace", "link", "unlink", "fsync", "fstat")
"""Functions of `os` that fail; beside them `open`, and the reads and writes of what it opens."""


class Killed(BaseException):
    """The process is gone: nothing that it tries to tidy up reaches the disk any more."""


@dataclass
class FaultyDisk:
    """Counts calls, and lets some of them fail.

    Attributes:
        first: the number of the call that fails first, from 1 on; 0 for none.
        errno: what it fails with; None where the process is killed by it.
        lasting: how many calls fail, one after the other.
        late: fail once the call has had its effect; a write, after half of its bytes.
        only: names of the calls that are counted; all where it is empty.
        calls: how many there were.
        names: theirs, in order.
    """

    first: int = 0
    errno: int | None = None
    lasting: int = 1
    late: bool = False
    only: tuple[str, ...] = ()
    calls: int = 0
    names: list[str] = field(default_factory=list)
    dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_next(self, name: str) -> bool:
        """Count a call; whether it is to fail."""
        with self._lock:
            if self.dead:
                raise Killed
            if self.only and name not in self.only:
                return False
            self.calls += 1
            self.names.append(name)
            return bool(self.first) and self.first <= self.calls < self.first + self.lasting

    def fail(self, path: str | None) -> Never:
        if self.errno is None:
            self.dead = True
            raise Killed
        raise OSError(self.errno, os.strerror(self.errno), path)

    def call(self, name: str, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        if not self.is_next(name):
            return function(*args, **keywords)
        if self.late:
            result = function(*args, **keywords)
            if hasattr(result, "close"):  # Nobody gets it.
                result.close()
        return self.fail(args[0] if isinstance(args[0], str) else None)

    def open(self, path: str, mode: str = "r", **keywords: Any) -> IO[bytes]:
        stream: io.FileIO = self.call("open", io.FileIO, path, mode.replace("b", ""))
        return _Reader(self, stream) if "r" in mode else _Writer(self, stream)


class _Reader(io.BufferedReader):
    def __init__(self, disk: FaultyDisk, stream: io.FileIO) -> None:
        super().__init__(stream)
        self.disk = disk

    def read(self, size: int | None = -1, /) -> bytes:
        data: bytes = self.disk.call("read", super().read, size)
        return data

    def readinto(self, buffer: Any, /) -> int:
        count: int = self.disk.call("read", super().readinto, buffer)
        return count


class _Writer(io.BufferedWriter):
    def __init__(self, disk: FaultyDisk, stream: io.FileIO) -> None:
        super().__init__(stream)
        self.disk = disk
        self.path = str(stream.name)

    def write(self, data: Any, /) -> int:
        if not self.disk.is_next("write"):
            return super().write(data)
        super().write(data[: len(data) // 2 if self.disk.late else 0])
        super().flush()
        return self.disk.fail(self.path)


class _Os:
    """`os`, with the counted functions of a disk."""

    def __init__(self, disk: FaultyDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in COUNTED:
            return function
        return lambda *args, **keywords: self._disk.call(name, function, *args, **keywords)


@contextlib.contextmanager
def faulty(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    """Let `transforms.storage.local` use a `FaultyDisk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "os", _Os(disk))
        patch.setattr(local, "open", disk.open, raising=False)
        yield disk
