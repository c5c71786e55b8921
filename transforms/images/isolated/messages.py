"""Messages between a job and its decoder processes: JSON on a socket, bytes in a shared file.

Nothing is pickled, since the other side may be damaged. Megabytes through a socket would have both sides wait for each
other every 200 KB.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import tempfile
from typing import Any

_LENGTHS = struct.Struct("!IQ")
_MOST_JSON = 1 << 20
_MOST_KEPT = 64 << 20
"""Bytes of memory that the file keeps for the next message."""


class Link:
    """One end; both ends take turns.

    Args:
        connection: a socket.
        shared: file descriptor of a file that the other end has too.
    """

    def __init__(self, connection: socket.socket, shared: int) -> None:
        self.socket = connection
        self._shared = shared

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two ends, for two processes.

        Raises:
            OSError: if this process may open no more files.
        """
        with contextlib.ExitStack() as opened:
            ours, theirs = map(opened.enter_context, socket.socketpair())
            shared = _open_shared()
            opened.callback(os.close, shared)
            pair = cls(ours, shared), cls(theirs, os.dup(shared))
            opened.pop_all()
        return pair

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of the socket and of the file."""
        return self.socket.fileno(), self._shared

    def send(self, head: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        """Send an object and the bytes that belong to it.

        Raises:
            OSError: if the other side is gone, or does not take it within the socket's time limit.
        """
        view, written = memoryview(payload).cast("B"), 0
        while written < len(view):
            written += os.pwrite(self._shared, view[written:], written)
        text = json.dumps(head).encode()
        self.socket.sendall(_LENGTHS.pack(len(text), len(view)) + text)

    def receive(self, most: int | None = None) -> tuple[dict[str, Any], bytes]:
        """An object that the other end sent, and its bytes.

        Args:
            most: bytes that may belong to it; None for any number.

        Raises:
            EOFError: if the other side is gone.
            OSError: if it is, or says nothing within the socket's time limit.
            ValueError: if the message is damaged.
        """
        text_length, length = _LENGTHS.unpack(self._read(_LENGTHS.size))
        if text_length > _MOST_JSON or (most is not None and length > most):
            raise ValueError("A message is longer than it may be.")
        head: dict[str, Any] = json.loads(self._read(text_length))
        payload = os.pread(self._shared, length, 0)
        while len(payload) < length:
            more = os.pread(self._shared, length - len(payload), len(payload))
            if not more:
                raise ValueError("The file that is shared is shorter than a message.")
            payload += more
        if length > _MOST_KEPT:
            os.ftruncate(self._shared, 0)
        return head, payload

    def close(self) -> None:
        """The other side is told so; calling it again is harmless."""
        self.socket.close()
        with contextlib.suppress(OSError):
            os.close(self._shared)
        self._shared = -1

    def _read(self, length: int) -> bytes:
        found = b""
        while len(found) < length:
            part = self.socket.recv(length - len(found))
            if not part:
                raise EOFError("The other side has closed the link.")
            found += part
        return found


def _open_shared() -> int:
    """A file without a name: in memory on Linux, of the temporary folder elsewhere."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("imagebeam")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
