"""A stream over a stored file that resumes after storage faults and distinguishes them from damaged content."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

from transforms import storage
from transforms.storage.retry import persist


class ResumingStream(io.BufferedIOBase):
    """A `storage.open_read` that opens the file again, at the same version and place, where reading fails.

    Attributes:
        uri: of the file.
        fault: what the storage raised last; None where whatever went wrong is the content's.
    """

    def __init__(self, uri: str, version: str | None) -> None:
        super().__init__()
        self.uri = uri
        self.fault: Exception | None = None
        self._version = version
        self._position = 0
        self._stream: BinaryIO | None = None
        self._call(lambda _: None)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, or all if it is negative."""
        data = cast(bytes, self._call(lambda stream: stream.read(-1 if size is None else size)))
        self._position += len(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """The same."""
        return self.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place; see `io.IOBase.seek`."""
        self._position = self._call(lambda stream: stream.seek(offset, whence))
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def close(self) -> None:
        """Close the file."""
        if not self.closed and self._stream is not None:
            self._stream.close()
        super().close()

    def _call(self, action: Any) -> Any:
        def attempt() -> Any:
            if self._stream is None:
                self._stream = storage.open_read(self.uri, self._version)
                if self._position:
                    self._stream.seek(self._position)
            try:
                return action(self._stream)
            except Exception:
                stream, self._stream = self._stream, None
                stream.close()
                raise

        try:
            return persist(attempt)
        except Exception as error:
            self.fault = error
            raise


def open_resuming(uri: str, version: str | None = None) -> ResumingStream:
    """Open a stored file; see `ResumingStream`.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read.
    """
    return ResumingStream(uri, version)
