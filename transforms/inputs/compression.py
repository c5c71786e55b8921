"""gzip and zlib streams as files that are read forward, told by their first bytes and not by their names."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO, cast

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_EITHER_FORMAT = zlib.MAX_WBITS + 32


def is_compressed(head: bytes) -> bool:
    """Whether a file that starts with `head` (two bytes or more) may be gzip or zlib."""
    zlib_header = len(head) > 1 and head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0
    return head.startswith(_GZIP) or zlib_header


def is_gzip(head: bytes) -> bool:
    """Whether a file that starts with `head` is gzip."""
    return head.startswith(_GZIP)


def inflate(stream: BinaryIO) -> BinaryIO:
    """The decompressed content of a stream at its start. It seeks forward, by reading.

    Reading raises EOFError where the content is cut short, zlib.error where it is damaged.
    """
    return cast(BinaryIO, io.BufferedReader(_Inflater(stream), _CHUNK))


class _Inflater(io.RawIOBase):
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decompressor = zlib.decompressobj(_EITHER_FORMAT)
        self._waiting = b""
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on to `offset`, or to the end if that is nearer."""
        target = offset + (self._position if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < self._position:
            raise io.UnsupportedOperation("a compressed stream is read forward only")
        while self._position < target and self.read(min(_CHUNK, target - self._position)):
            pass
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._decompressor.eof and not self._next_member():
                break
            if not self._waiting:
                self._waiting = self._stream.read(_CHUNK)
            if not self._waiting:
                raise EOFError("the compressed stream ends early")
            data = self._decompressor.decompress(self._waiting, len(buffer))
            self._waiting = self._decompressor.unconsumed_tail
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _next_member(self) -> bool:
        """Go on with a further gzip member; False at the end of the file, which zeros may fill."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._stream.read(_CHUNK)
            if not chunk:
                return False
            rest = chunk.lstrip(b"\0")
        if not rest.startswith(_GZIP[:1]):
            raise zlib.error("something else follows the compressed stream")
        self._decompressor = zlib.decompressobj(_EITHER_FORMAT)
        self._waiting = rest
        return True
