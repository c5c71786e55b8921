"""Local files, for `transforms.storage`."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat as stat_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from transforms.storage.base import replaced
from transforms.storage.files import FileInfo, UriRange
from transforms.storage.globs import Glob, States

TEMPORARY_PREFIX = ".imagebeam-tmp-"
"""How the names of half-written files begin: hidden, so that no listing ever shows one."""

_READ_BUFFER = 1 << 20
_LEFTOVER_SECONDS = 3600


def stat(uri: str) -> FileInfo | None:
    """The file as it is now; None where there is none."""
    try:
        status = os.stat(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # As a pattern's braces may be, which are no name.
            raise
        return None
    return None if stat_module.S_ISDIR(status.st_mode) else FileInfo(uri, status.st_size, _version(status))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder."""
    return os.path.isdir(uri)


def list_glob(glob: Glob, within: UriRange) -> Iterator[FileInfo]:
    """The files that match, in order of their uri, holding the entries of one folder (and its parents) at a time.

    A broken link matches too, so that it ends as a failure and not as a silent gap.
    """
    return _walk(glob.folder or "/", glob, glob.start, (), within)


def list_folders(folder: str) -> Iterator[str]:
    """Folders right below `folder`, with their slash, in order."""
    try:
        with os.scandir(folder or "/") as entries:
            names = sorted(f"{entry.name}/" for entry in entries if _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        yield os.path.join(folder or "/", name)


def open_read(uri: str, version: str | None) -> BinaryIO:
    """A buffered stream of a regular file, which raises `ReplacedError` where the file is written to meanwhile."""
    return io.BufferedReader(_open(uri, version), _READ_BUFFER)


class _Pinned(io.RawIOBase):
    """A file that must stay what it was when it was opened: else what is read would be parts of two files."""

    def __init__(self, uri: str, stream: io.FileIO, version: str) -> None:
        super().__init__()
        self._uri = uri
        self._stream = stream
        self._version = version

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any, /) -> int | None:
        count = self._stream.readinto(buffer)
        self._check()
        return count

    def readall(self) -> bytes:
        data = self._stream.read()
        self._check()
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _check(self) -> None:
        if (found := _version(os.fstat(self._stream.fileno()))) != self._version:
            raise replaced(self._uri, self._version, found)


def _open(uri: str, version: str | None) -> _Pinned:
    try:
        status = os.stat(uri)
    except NotADirectoryError:  # Below a file there is none either.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from None
    if not stat_module.S_ISREG(status.st_mode):  # Opening a pipe would wait for its writer.
        raise OSError(errno.EINVAL, "Not a regular file", uri)
    stream = open(uri, "rb", buffering=0)  # noqa: SIM115 - the caller closes it.
    try:
        found = _version(os.fstat(stream.fileno()))
        if version not in (None, found):
            raise replaced(uri, version, found)
    except BaseException:
        stream.close()
        raise
    return _Pinned(uri, stream, found)


def read_bytes(uri: str, version: str | None) -> bytes:
    """The whole file."""
    with _open(uri, version) as stream:
        return stream.readall()


def publish(uri: str, source: bytes | Path, overwrite: bool) -> None:
    """Write a hidden file beside `uri`, sync it, and give it its name."""
    folder = os.path.dirname(os.path.abspath(uri))
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        try:
            os.makedirs(folder, exist_ok=True)
        except FileExistsError:  # Which would say that `uri` is taken.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), uri) from None
        with open(temporary, "xb") as target:
            if isinstance(source, Path):
                with source.open("rb") as original:
                    shutil.copyfileobj(original, target, _READ_BUFFER)
            else:
                target.write(source)
            target.flush()
            os.fsync(target.fileno())
        if overwrite:
            os.replace(temporary, uri)
        else:
            os.link(temporary, uri)  # Fails where the name is taken, which a rename does not.
            os.unlink(temporary)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, uri) from error
        raise
    _sync_folder(folder)


def point_to(uri: str, link: str) -> None:
    """Make a symbolic link beside the file, in one step; some file systems have none."""
    folder, name = os.path.split(os.path.abspath(uri))
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        os.symlink(name, temporary)
        os.replace(temporary, os.path.join(folder, link))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def delete(uri: str) -> None:
    """Remove the file; a missing one is fine."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(uri)


def modified(uri: str) -> float:
    """When the file was last written."""
    return os.stat(uri).st_mtime


def make_dirs(uri: str) -> None:
    """Make the folder and those above it."""
    os.makedirs(uri, exist_ok=True)


def check_can_be_folder(uri: str) -> None:
    """Refuse a path at which, or above which, there is a file."""
    path = Path(uri)
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))


def remove_leftovers(uri: str) -> None:
    """Remove temporary files older than an hour, left by writers that were killed."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(uri) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS:
                        os.unlink(entry.path)


def _walk(
    folder: str, glob: Glob, states: States, above: tuple[tuple[int, int], ...], within: UriRange
) -> Iterator[FileInfo]:
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # A link to a folder that we are in.
            return
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    names = []  # Plain strings, a folder's with its slash: millions fit, and they sort as the uris do.
    with entries:
        for entry in entries:
            if following := glob.step(states, entry.name):
                if _is_folder(entry):
                    if following != {glob.end}:
                        names.append(entry.name + "/")
                elif glob.end in following and (entry.is_symlink() or entry.is_file()):
                    names.append(entry.name)
    names.sort()
    for name in names:
        path = os.path.join(folder, name)
        if not name.endswith("/"):
            if path in within:
                yield _file_info(path)
        elif within.overlaps(path):
            yield from _walk(path[:-1], glob, glob.step(states, name[:-1]), (*above, identity), within)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link in a circle.
        return False


def _file_info(path: str) -> FileInfo:
    try:
        status = os.stat(path)
    except OSError:
        return FileInfo(path, 0, "missing")
    return FileInfo(path, status.st_size, _version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _sync_folder(folder: str) -> None:
    """Make the new name itself survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
