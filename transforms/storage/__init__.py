"""List, open and atomically publish files on any storage. The only package that handles URI schemes.

A uri is an absolute local path, or a URL such as ``gs://bucket/name``. Local files and gs:// have stores of their own
(`transforms.storage.local`, `transforms.storage.gcs`); every other scheme goes through Beam's FileSystems
(`transforms.storage.beam`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import importlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from transforms.storage import local
from transforms.storage.base import FileStore
from transforms.storage.base import ReplacedError as ReplacedError
from transforms.storage.files import EVERYWHERE, FileInfo, UriRange
from transforms.storage.globs import Glob, States, expand_braces, has_magic
from transforms.storage.uris import SCHEME as _SCHEME
from transforms.storage.uris import absolute as absolute
from transforms.storage.uris import from_file_url
from transforms.storage.uris import is_local as is_local

_LOOKUPS = 16

_NAMES_SHOWN = 5

_FOLDERS_ASKED = 256
"""Folders that are looked into, at most, for where a listing may be split."""


def join(base: str, *parts: str) -> str:
    """`parts` below the folder `base`."""
    return "/".join([base.rstrip("/"), *parts])


def basename(uri: str) -> str:
    """What follows the last slash: the name of a file or folder."""
    return uri.rstrip("/").rpartition("/")[2]


def parent(uri: str) -> str:
    """The folder that holds `uri`; of ``gs://bucket`` and ``/`` themselves."""
    root = _root(uri)
    above = uri[len(root) :].rstrip("/").rpartition("/")[0]
    return root + above if above else root[:-1] or "/"


def resolve(folder: str, uri: str) -> str:
    """`uri` itself where it is absolute or a URL, else the file of that relative path below `folder`.

    Nothing is expanded: the uri is data.

    Raises:
        ImagebeamError: for a ``file:`` URL of another machine.
    """
    if uri[:5].lower() == "file:":
        return from_file_url(uri)
    if uri.startswith("/"):
        return os.path.abspath(uri)
    if not is_local(uri):
        return uri
    root = _root(folder)
    return root + posixpath.normpath(join(folder[len(root) :], uri)).lstrip("/")


def list_files(pattern: str) -> Iterator[FileInfo]:
    """The files that `pattern` means, in lexicographic order of their uri, each once; streamed.

    Args:
        pattern: a path that exists (even one with glob characters in its name); a folder, which stands for every file
            beneath it but hidden ones; or a glob: `*`, `?`, `[..]`, `**` for any depth, and braces, `{a,b}` and
            `{000..010}`. Symbolic links are followed, though not in circles.

    Raises:
        OSError: if a folder or bucket cannot be listed.
    """
    return _merge(stream for _, stream in matches(pattern))


def list_all(patterns: Iterable[str]) -> Iterator[FileInfo]:
    """`list_files` of all patterns in one sorted stream; a file that several of them mean comes once."""
    return _merge(map(list_files, patterns))


def matches(
    pattern: str, within: UriRange = EVERYWHERE, *, hidden: bool = False
) -> Iterator[tuple[bool, Iterator[FileInfo]]]:
    """`list_files` in its parts: (whether a folder was named, its files in order); parts may overlap.

    Args:
        pattern: see `list_files`.
        within: files of other uris are left out; a range is listed without listing what is before or behind it.
        hidden: whether hidden files of a folder that was named are among them.
    """
    named = _look_at(pattern)
    if absent := [found.uri for found in named if len(named) > 1 and not (found.info or found.glob())]:
        more = f" and {len(absent) - _NAMES_SHOWN} more" if len(absent) > _NAMES_SHOWN else ""
        raise FileNotFoundError(f"braces name what is not there: {', '.join(absent[:_NAMES_SHOWN])}{more}")
    for found in named:
        if glob := found.glob(hidden=hidden):
            listed = _store(found.uri).list_glob(glob, within)
            yield found.folder, (info for info in listed if info.uri in within)
    yield False, iter(sorted((found.info for found in named if found.info and found.uri in within), key=_uri))


def roots(pattern: str) -> list[str]:
    """The folders below which the files of `pattern` are looked for, longest first; none of a plain file."""
    globs = (found.glob() for found in _look_at(pattern))
    return sorted({glob.folder for glob in globs if glob}, key=len, reverse=True)


def real(uri: str) -> str:
    """The path that a local path leads to by symbolic links, whether it is there or not; a URL as it is."""
    return os.path.realpath(uri) if is_local(uri) else uri


def may_match(pattern: str, uris: Iterable[str], *, follow_links: bool = False) -> bool:
    """Whether a file at one of `uris`, there or not, would be among those that `pattern` means.

    Where symbolic links lead to it counts, too: those above the pattern's files always, those among its local folders
    in the first `_FOLDERS_ASKED` folders.

    Args:
        pattern: see `list_files`.
        uris: of files.
        follow_links: whether the links in a folder count that lead out of it; those that a glob meets do always.
    """
    wanted = {one for uri in uris for one in (uri, real(uri))}
    for found in _look_at(pattern):
        if glob := found.glob():
            if _reaches(glob, wanted, with_links=is_local(found.uri) and (follow_links or not found.folder)):
                return True
        elif not wanted.isdisjoint((found.uri, real(found.uri))):
            return True
    return False


def _reaches(glob: Glob, uris: set[str], *, with_links: bool) -> bool:
    """Whether a listing would come to one of `uris`; `with_links` by links in the folders that it goes through, too."""
    waiting = [(glob.folder, glob.start)]
    seen: set[tuple[str, States]] = set()
    for folder, states in waiting:
        bases = {folder, real(folder or "/").rstrip("/")}
        below = (uri[len(base) + 1 :] for base in bases for uri in uris if uri.startswith(f"{base}/"))
        if any(glob.end in functools.reduce(glob.step, path.split("/"), states) for path in below):
            return True
        if with_links and len(seen) < _FOLDERS_ASKED and (real(folder or "/"), states) not in seen:
            seen.add((real(folder or "/"), states))
            found = ((path[:-1], glob.step(states, basename(path))) for path in _folders(f"{folder}/"))
            waiting += [(path, following) for path, following in found if following - {glob.end}]
    return False


def split_listing(patterns: Iterable[str], start: str, wanted: int) -> list[UriRange]:
    """Up to `wanted` ranges that part the files of `patterns` from the uri `start` on, at the bounds of folders.

    The folders are those of the first level that has enough, so files that all lie in one folder are one range. Of more
    folders than wanted, those whose names have the lowest digests are chosen: new folders move few bounds.
    """
    rest = UriRange(start)
    bounds: set[str] = set()
    for pattern in patterns:
        level = [(f"{glob.folder}/", glob, glob.start) for found in _look_at(pattern) if (glob := found.glob())]
        asked = 0
        while level:
            bounds.update(folder for folder, _, _ in level if folder > start)
            asked += len(level)
            if len(level) >= wanted or asked > _FOLDERS_ASKED:
                break
            level = [
                (below, glob, following)
                for folder, glob, states in level
                for below in _folders(folder)
                if rest.overlaps(below) and (following := glob.step(states, basename(below))) - {glob.end}
            ]
    chosen = sorted(heapq.nsmallest(wanted - 1, bounds, key=lambda bound: hashlib.blake2b(bound.encode()).digest()))
    return [UriRange(first, end) for first, end in zip([start, *chosen], [*chosen, None], strict=True)]


def _folders(folder: str) -> list[str]:
    """The folders right below; none if they cannot be listed, since listing the files will report the error."""
    try:
        return list(_store(folder).list_folders(folder[:-1]))
    except OSError:
        return []


def list_folder(uri: str) -> Iterator[FileInfo]:
    """The files right in a folder, hidden ones left out, in order; none where there is no such folder."""
    return list_below(uri, "*")


def list_below(folder: str, pattern: str) -> Iterator[FileInfo]:
    """The files below a folder, taken literally, that match a glob, in order; none where there is no such folder."""
    folder = absolute(folder)
    return _store(folder).list_glob(Glob.below(folder.rstrip("/"), pattern), EVERYWHERE)


def stat(uri: str) -> FileInfo | None:
    """The file as it is now; None where there is none."""
    return _store(uri).stat(uri)


def exists(uri: str) -> bool:
    """Whether there is a file at `uri`."""
    return stat(uri) is not None


def open_read(uri: str, version: str | None = None) -> BinaryIO:
    """A seekable stream of the bytes as they are stored, never decompressed.

    Args:
        uri: of the file.
        version: the `FileInfo.version` it must still have.

    Raises:
        FileNotFoundError: if there is no such file.
        ReplacedError: if the file is now another one than `version`; on gs:// reading may raise it too.
        OSError: if it cannot be read.
    """
    return _store(uri).open_read(uri, version)


def read_bytes(uri: str, version: str | None = None) -> bytes:
    """The whole file; raises as `open_read` does."""
    return _store(uri).read_bytes(uri, version)


@contextlib.contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A local path with the file's bytes, its name kept: the file itself, or a copy that is removed at the end.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read.
    """
    if is_local(uri):
        open_read(uri).close()  # Whatever opens the path next would wait for a pipe's writer.
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / basename(uri)
        with open_read(uri) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield path


def publish(uri: str, data: bytes, *, overwrite: bool = True) -> None:
    """Write the file at `uri` atomically: readers see all of `data` or nothing.

    Raises:
        FileExistsError: if there is such a file and `overwrite` is false.
        OSError: naming the uri, if the file cannot be written; nothing is then left behind.
    """
    _store(uri).publish(uri, data, overwrite)


def publish_file(uri: str, path: str | Path, *, overwrite: bool = True) -> None:
    """`publish` for bytes that lie in a local file, which stays where it is."""
    _store(uri).publish(uri, Path(path), overwrite)


def point_to(uri: str, link: str) -> None:
    """Make a symbolic link beside a local file, in place of what had that name; nothing where there are no links.

    Args:
        uri: of the file.
        link: a name in its folder.
    """
    if is_local(uri):
        local.point_to(uri, link)


def delete(uri: str) -> None:
    """Remove the file at `uri`; a missing one is fine."""
    _store(uri).delete(uri)


def delete_folder(uri: str) -> None:
    """Remove every file beneath the folder, and the folder where the store has such; a missing one is fine."""
    if is_local(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    for info in list(list_below(uri, "**")):
        delete(info.uri)


def remove_empty_folder(uri: str) -> None:
    """Remove the folder if it is empty, where the store has folders at all."""
    if is_local(uri):
        with contextlib.suppress(OSError):
            os.rmdir(uri)


def modified(uri: str) -> float:
    """When the file was last written: seconds by the store's own clock, good for differences.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    return _store(uri).modified(uri)


def make_dirs(uri: str) -> None:
    """Make the folder and those above it where the store has folders at all; an existing one is fine."""
    _store(uri).make_dirs(uri)


def check_can_be_folder(uri: str) -> None:
    """Refuse a local path at which, or above which, there is a file: nothing can be written below it.

    Raises:
        NotADirectoryError: naming the file.
        OSError: if that cannot be told.
    """
    if is_local(uri):
        local.check_can_be_folder(uri)


def remove_leftovers(uri: str) -> None:
    """Remove what writers killed over an hour ago left half written right in the folder; hidden until then."""
    _store(uri).remove_leftovers(uri)


def _store(uri: str) -> FileStore:
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return local
    # Imported on use: each brings a framework with it.
    name = "gcs" if scheme[1] == "gs" else "beam"
    return cast(FileStore, importlib.import_module(f"transforms.storage.{name}"))


def _root(uri: str) -> str:
    """``gs://bucket/`` of a URL, ``/`` of a path."""
    scheme = _SCHEME.match(uri)
    return uri[: scheme.end()] + uri[scheme.end() :].partition("/")[0] + "/" if scheme else "/"


class _Named(NamedTuple):
    """A pattern without braces: what it is taken literally."""

    uri: str
    info: FileInfo | None
    folder: bool

    def glob(self, *, hidden: bool = False) -> Glob | None:
        """What is to be listed for it; None for a file, and for what is neither there nor a glob."""
        if self.folder:
            return Glob.below(self.uri.rstrip("/"), "**", hidden=hidden)
        return None if self.info else _glob(self.uri)


def _look_at(pattern: str) -> list[_Named]:
    plain = _look(absolute(pattern))
    if plain.info or plain.folder:
        return [plain]
    with ThreadPoolExecutor(_LOOKUPS) as pool:  # Braces can name thousands of remote files.
        return list(pool.map(_look, map(absolute, expand_braces(pattern))))


def _look(uri: str) -> _Named:
    """What a uri taken literally is: a file, a folder, or nothing."""
    store = _store(uri)
    info = None if uri.endswith("/") else store.stat(uri)
    return _Named(uri, info, info is None and store.is_folder(uri))


def _glob(uri: str) -> Glob | None:
    """The glob below its longest plain folder; None for a uri without glob characters."""
    root = _root(uri)
    folder, components = root[:-1], uri[len(root) :].split("/")
    while components and _is_plain(f"{folder}/{components[0]}"):
        folder = f"{folder}/{components.pop(0)}"
    return Glob.below(folder, "/".join(components)) if components else None


def _is_plain(uri: str) -> bool:
    """Whether the last component means itself: it has no glob characters, or is the name of something that exists."""
    return not has_magic(basename(uri)) or (is_local(uri) and os.path.lexists(uri))


def _merge(streams: Iterable[Iterator[FileInfo]]) -> Iterator[FileInfo]:
    previous = None
    for info in heapq.merge(*streams, key=_uri):
        if info.uri != previous:
            yield info
        previous = info.uri


def _uri(info: FileInfo) -> str:
    return info.uri
