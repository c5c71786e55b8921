"""Every other scheme that Beam has a FileSystem for (hdfs, s3, azfs, ...), for `transforms.storage`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from transforms.errors import ImagebeamError
from transforms.globs import Glob
from transforms.stores import replaced
from transforms.types import FileInfo


def stat(uri: str) -> FileInfo | None:
    """The file as it is now; None where there is none."""
    _check(uri)
    try:
        if not FileSystems.exists(uri):
            return None
        found = [info for match in FileSystems.match([uri]) for info in match.metadata_list if info.path == uri]
    except BeamIOError as error:
        raise OSError(f"{uri}: {error}") from error
    return _file_info(found[0]) if found else None


def is_folder(uri: str) -> bool:
    """Whether there are files below `uri`."""
    return any(True for _ in _match(uri.rstrip("/") + "/**"))


def list_glob(glob: Glob) -> Iterator[FileInfo]:
    """The files that match, in order of their uri; Beam hands over a whole listing at once."""
    base = glob.folder + "/"
    for info in sorted(_match(f"{base}{glob.prefix}**"), key=lambda info: info.uri):
        states = glob.start
        for name in info.uri.removeprefix(base).split("/"):
            states = glob.step(states, name)
        if glob.end in states:
            yield info


def open_read(uri: str, version: str | None) -> BinaryIO:
    """A stream of the stored bytes: Beam would decompress by extension unless told not to."""
    info = stat(uri)
    if info is None:
        raise FileNotFoundError(f"{uri} does not exist")
    if version not in (None, info.version):
        raise replaced(uri, str(version), info.version)
    try:
        return cast(BinaryIO, FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED))
    except BeamIOError as error:
        raise OSError(f"{uri}: {error}") from error


def read_bytes(uri: str, version: str | None) -> bytes:
    """The whole file."""
    with open_read(uri, version) as stream:
        return stream.read()


def publish(uri: str, source: bytes | Path, overwrite: bool) -> None:
    """Write through Beam; as atomic as its FileSystem is (object stores show a file once it is closed)."""
    if not overwrite and stat(uri) is not None:
        raise FileExistsError(f"{uri} exists already")
    _check(uri)
    try:
        with FileSystems.create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as target:
            if isinstance(source, Path):
                with source.open("rb") as original:
                    shutil.copyfileobj(original, target)
            else:
                target.write(source)
    except BeamIOError as error:
        raise OSError(f"{uri}: {error}") from error


def delete(uri: str) -> None:
    """Remove the file; a missing one is fine."""
    if stat(uri) is None:
        return
    try:
        FileSystems.delete([uri])
    except BeamIOError as error:
        raise OSError(f"{uri}: {error}") from error


def make_dirs(uri: str) -> None:
    """Make the folder and those above it, where the file system has folders."""
    _check(uri)
    if not FileSystems.exists(uri):
        FileSystems.mkdirs(uri)


def _match(pattern: str) -> Iterator[FileInfo]:
    _check(pattern)
    try:
        for match in FileSystems.match([pattern]):
            yield from map(_file_info, match.metadata_list)
    except BeamIOError as error:
        raise OSError(f"{pattern}: {error}") from error


def _file_info(info: FileMetadata) -> FileInfo:
    return FileInfo(info.path, info.size_in_bytes, f"{info.size_in_bytes}-{info.last_updated_in_seconds}")


def _check(uri: str) -> None:
    try:
        FileSystems.get_filesystem(uri)
    except ValueError as error:
        scheme = uri.partition("://")[0]
        raise ImagebeamError(
            f"No file system is installed for {scheme}://; install Beam's, such as apache-beam[aws] for s3://. "
            f"Received: {uri!r}."
        ) from error
