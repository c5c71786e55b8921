"""Decompress gzip, zlib, bzip2, xz and Zstandard streams, detected by their first bytes."""

from __future__ import annotations

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

_GZIP = b"\x1f\x8b"
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_XZ = b"\xfd7zXZ\0"
_ZSTANDARD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
"""A frame, or one to be skipped, as pzstd begins with."""

_CHUNK = 1 << 20

_PULLED = 64 << 10
"""Bytes of Zstandard decompressed at once: those before a cut in the same piece are lost."""

HEAD_BYTES = 12
"""Bytes that tell whether a shard is compressed."""

_EITHER_FORMAT = zlib.MAX_WBITS + 32


def is_compressed(head: bytes) -> bool:
    """Whether a file that starts with `head` (`HEAD_BYTES`) may be gzip, zlib or Zstandard."""
    zlib_header = len(head) > 1 and head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0
    return is_packed(head) or zlib_header


def is_packed(head: bytes) -> bool:
    """Whether a file that starts with `head` (four bytes or more) is gzip or Zstandard."""
    return head.startswith(_GZIP) or _ZSTANDARD.match(head) is not None


def is_archive_compressed(head: bytes) -> bool:
    """Whether a tar that starts with `head` (`HEAD_BYTES`) is gzip, bzip2, xz or Zstandard."""
    return is_packed(head) or head.startswith(_XZ) or _BZIP2.match(head) is not None


class Inflated(io.BufferedReader):
    """The decompressed content of a stream, which is not decompressed again."""


def inflate(stream: BinaryIO, keep: Callable[[memoryview], None] | None = None) -> Inflated:
    """The decompressed content of a stream at its start. It seeks forward, by reading.

    Reading raises EOFError where the content is cut short, zlib.error where it is damaged.

    Args:
        stream: that is compressed.
        keep: gets all of the content in order, as it is decompressed, and what is passed over by seeking too.
    """
    head = buffered(stream, HEAD_BYTES).read(HEAD_BYTES)
    stream.seek(0)
    reader = _ZstandardInflater if _ZSTANDARD.match(head) else _Inflater
    return Inflated(reader(stream, keep), _CHUNK)


def content(
    stream: BinaryIO, is_compressed: Callable[[bytes], bool], keep: Callable[[memoryview], None] | None = None
) -> BinaryIO:
    """Return the stream, or its decompressed content if it is compressed.

    Args:
        stream: at its start.
        is_compressed: tells by the first `HEAD_BYTES`.
        keep: see `inflate`.
    """
    if isinstance(stream, Inflated):
        return cast(BinaryIO, stream)
    head = buffered(stream, HEAD_BYTES).read(HEAD_BYTES)  # One read of the stream may give less.
    stream.seek(0)
    return cast(BinaryIO, inflate(stream, keep)) if is_compressed(head) else stream


def buffered(stream: BinaryIO, size: int) -> BinaryIO:
    """The same content and place, read in pieces of at least so many bytes; closing it leaves the stream open."""
    return cast(BinaryIO, io.BufferedReader(_Plain(stream), size))


class _Plain(io.RawIOBase):
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Inflater(io.RawIOBase):
    def __init__(self, stream: BinaryIO, keep: Callable[[memoryview], None] | None) -> None:
        self._stream = stream
        self._keep = keep
        self._decompressor: _Decompressor | None = None
        self._rest = b""
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
        data = self._inflate(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        if self._keep is not None:
            self._keep(memoryview(data))
        return len(data)

    def _inflate(self, size: int) -> bytes:
        """Up to so many bytes; none at the end of the file."""
        data = b""
        while not data:
            if (self._decompressor is None or self._decompressor.eof) and not self._next_member():
                break
            assert self._decompressor is not None
            chunk = b""
            if self._decompressor.needs_input:
                chunk, self._rest = self._rest or self._stream.read(_CHUNK), b""
                if not chunk:
                    raise EOFError("the compressed stream ends early")
            try:
                data = self._decompressor.decompress(chunk, size)
            except (OSError, lzma.LZMAError) as error:  # What zlib says with an error of its own.
                raise zlib.error(str(error)) from error
        return data

    def _next_member(self) -> bool:
        """Go on with the first or a further member; False at the end of the file, which zeros may fill."""
        is_first = self._decompressor is None
        rest = b"" if self._decompressor is None else self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._stream.read(_CHUNK)
            if not chunk and is_first:
                raise EOFError("the compressed stream ends early")
            if not chunk:
                return False
            rest = chunk if is_first else chunk.lstrip(b"\0")
        if not is_first and rest[:1] not in (_GZIP[:1], *_FORMATS):
            raise zlib.error("something else follows the compressed stream")
        self._decompressor = _FORMATS.get(rest[:1], _Zlib)()
        self._rest = rest
        return True


class _ZstandardInflater(_Inflater):
    """Arrow's decompressor, which pulls its input, goes on with further frames, and takes 128 MiB at most."""

    def __init__(self, stream: BinaryIO, keep: Callable[[memoryview], None] | None) -> None:
        super().__init__(stream, keep)
        self._source = pa.CompressedInputStream(pa.PythonFile(_Plain(stream), mode="r"), "zstd")

    def _inflate(self, size: int) -> bytes:
        try:
            data: bytes = self._source.read(min(size, _PULLED))
        except OSError as error:
            if error.errno is not None or type(error) is not OSError:  # The storage's.
                raise
            if "Truncated" in str(error):
                raise EOFError("the compressed stream ends early") from error
            raise zlib.error(str(error)) from error
        return data


class _Decompressor(Protocol):
    """What `bz2` and `lzma` give."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """`zlib`'s decompressor, called as those of `bz2` and `lzma`."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(_EITHER_FORMAT)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._object.decompress(data or self._object.unconsumed_tail, max_length)


_FORMATS: Mapping[bytes, Callable[[], _Decompressor]] = {b"B": bz2.BZ2Decompressor, _XZ[:1]: lzma.LZMADecompressor}
"""By the first byte, which tells them from gzip and zlib: a read may end behind it."""
