"""Keep the decompressed content of shards in temporary files while their units are read."""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any, BinaryIO

from transforms.readers.compression import Inflated

SEGMENT = 32 << 20
"""Bytes of a temporary file; one is deleted once nothing in it will be read."""

_BUFFER = 256 << 10

_MOST, _SHARE_OF_FREE_SPACE = 32 << 30, 4
"""A spool holds so many bytes at most, and a fourth of what is free: other processes write to the disk, too."""


@dataclass
class _Section:
    """The content of one shard: where it begins and ends in the spool, in bytes."""

    start: int
    end: float = float("inf")


class Spool:
    """Bytes appended to temporary files, which are deleted once no range needs them. Thread-safe.

    Its files have no names, so none stays behind, however the process ends.

    Args:
        segment: bytes of a temporary file.
        most: bytes that it holds; None for what the disk allows.

    Attributes:
        is_full: whether something could not be kept. Nothing is from then on, and what was kept can be read as before.
    """

    def __init__(self, segment: int = SEGMENT, most: int | None = None) -> None:
        if most is None:
            most = min(_MOST, shutil.disk_usage(tempfile.gettempdir()).free // _SHARE_OF_FREE_SPACE)
        self.is_full = False
        self._segment = segment
        self._most_files = max(2, most // segment)
        self._files: dict[int, BinaryIO] = {}
        self._end = 0
        self._section = _Section(0)
        self._needed_from: float = 0
        self._ranges: Counter[int] = Counter()
        self._lock = threading.RLock()  # A collection of garbage may end a range while this thread holds the lock.

    def append(self, data: memoryview) -> None:
        """Add to the content, while there is room for it."""
        with self._lock:
            while data and not self.is_full:
                number, place = divmod(self._end, self._segment)
                try:
                    if number not in self._files:
                        self.is_full = len(self._files) >= self._most_files
                        if self.is_full:
                            return
                        self._files[number] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                    self._files[number].seek(place)
                    written = self._files[number].write(data[: self._segment - place])
                except OSError:
                    self.is_full = True
                    return
                self._end += written
                data = data[written:]

    def begin(self) -> None:
        """What is appended from now on is the content of another shard, whose offsets begin at zero."""
        with self._lock:
            self._section.end = self._needed_from = self._end
            self._section = _Section(self._end)
            self._delete()

    def range(self, offset: int) -> SpooledRange:
        """What begins at `offset`, as far as it is there when it is read; what lies before is needed by others alone.

        Args:
            offset: in the content of this shard, in bytes; not below that of an earlier range.
        """
        with self._lock:
            place = self._section.start + offset
            self._ranges[place] += 1
            self._needed_from = place
            self._delete()
        return SpooledRange(self, self._section, offset)

    def finish(self) -> None:
        """There will be no further ranges."""
        with self._lock:
            self._needed_from = float("inf")
            self._delete()

    def _release(self, place: int) -> None:
        with self._lock:
            self._ranges[place] -= 1
            self._delete()

    def _delete(self) -> None:
        self._ranges = +self._ranges
        needed_from = min([*self._ranges, self._needed_from])
        for number in [number for number in self._files if (number + 1) * self._segment <= needed_from]:
            self._files.pop(number).close()

    def _read(self, section: _Section, offset: int, size: int) -> bytes:
        with self._lock:
            start, end = section.start + offset, int(min(section.end, self._end))
            if start >= end:
                return b""
            number, place = divmod(start, self._segment)
            file = self._files[number]
            file.seek(place)
            return file.read(min(size, self._segment - place, end - start))


class SpooledRange:
    """An offset in a shard's content. The bytes from it on are kept while the object exists."""

    def __init__(self, spool: Spool, section: _Section, offset: int) -> None:
        self._spool = spool
        self._section = section
        weakref.finalize(self, spool._release, section.start + offset)

    def open(self) -> BinaryIO:
        """The content, whose offsets are those from its start; what lies before the range may be gone."""
        return Inflated(_View(self), _BUFFER)

    def read(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes. Empty at the current end."""
        return self._spool._read(self._section, offset, size)


class _View(io.RawIOBase):
    def __init__(self, spooled: SpooledRange) -> None:
        self._spooled = spooled
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is not known")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._spooled.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
