"""A file's uri, size and version, and ranges of uris."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One stored file as it was when listed.

    Attributes:
        uri: absolute local path, or a URL such as ``gs://bucket/name``.
        size: bytes.
        version: changes whenever the content may have changed: an object generation on gs://, size and
            modification time elsewhere.
    """

    uri: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class UriRange:
    """Uris from `start` on and before `end`, in lexicographic order; without an end where it is None."""

    start: str = ""
    end: str | None = None

    def __contains__(self, uri: str) -> bool:
        return self.start <= uri and (self.end is None or uri < self.end)

    def overlaps(self, folder: str) -> bool:
        """Whether uris below `folder` (with its trailing slash) may be within."""
        return (self.start <= folder or self.start.startswith(folder)) and (self.end is None or folder < self.end)


EVERYWHERE = UriRange()
