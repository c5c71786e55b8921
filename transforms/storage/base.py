"""The interface of a file store. `transforms.storage` picks one by scheme."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from transforms.storage.files import FileInfo, UriRange
from transforms.storage.globs import Glob


class ReplacedError(OSError):
    """A file is not the one that was listed any more."""


def replaced(uri: str, expected: str, found: str) -> ReplacedError:
    """The error for a file whose version was to be `expected`."""
    return ReplacedError(f"{uri} was replaced after it was listed (version {expected}, now {found})")


class FileStore(Protocol):
    """What a store can do; each store is a module of these functions."""

    def stat(self, uri: str) -> FileInfo | None:
        """The file as it is now; None where there is none."""

    def is_folder(self, uri: str) -> bool:
        """Whether `uri` is something that files lie below."""

    def list_glob(self, glob: Glob, within: UriRange) -> Iterator[FileInfo]:
        """The files that match, in order of their uri; none where the folder is missing.

        Those that are not `within` may be left out, or not.
        """

    def list_folders(self, folder: str) -> Iterator[str]:
        """Folders right below `folder`, with their slash, in order; none, or not all, where that would take long."""

    def open_read(self, uri: str, version: str | None) -> BinaryIO:
        """A seekable stream of the bytes as stored."""

    def read_bytes(self, uri: str, version: str | None) -> bytes:
        """The whole file."""

    def publish(self, uri: str, source: bytes | Path, overwrite: bool) -> None:
        """Make the bytes, or a copy of the local file, appear at `uri` in one step."""

    def delete(self, uri: str) -> None:
        """Remove the file; a missing one is fine."""

    def modified(self, uri: str) -> float:
        """When the file was last written, in seconds by the store's own clock; it must be there."""

    def make_dirs(self, uri: str) -> None:
        """Make the folder and those above it, where the store has folders."""

    def remove_leftovers(self, uri: str) -> None:
        """Remove what killed writers left half written in a folder, where the store shows such files."""
