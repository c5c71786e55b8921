"""Every other scheme that Beam has a FileSystem for (hdfs, s3, azfs, ...), for `transforms.storage`."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from transforms.storage.base import replaced
from transforms.storage.files import FileInfo, UriRange
from transforms.storage.globs import Glob
from transforms.storage.uris import lacks_extra, missing_file_system


def stat(uri: str) -> FileInfo | None:
    """The file as it is now; None where there is none."""
    files = _file_system(uri)
    with _errors_named(uri):
        if not files.exists(uri) or (files.has_dirs() and is_folder(uri)):
            return None
        return _file_info(files.metadata(uri))


def is_folder(uri: str) -> bool:
    """Whether there are files below `uri`."""
    return any(True for _ in _match(uri.rstrip("/") + "/"))


def list_glob(glob: Glob, within: UriRange) -> Iterator[FileInfo]:
    """The files that match, in order of their uri; Beam hands over a whole listing at once."""
    base = glob.folder + "/"
    if not within.overlaps(base):
        return
    for info in sorted(_match(base + glob.prefix), key=lambda info: info.uri):
        states = glob.start
        for name in info.uri.removeprefix(base).split("/"):
            states = glob.step(states, name)
        if glob.end in states:
            yield info


def list_folders(folder: str) -> Iterator[str]:
    """None: Beam lists all below a folder or nothing."""
    del folder
    return iter(())


def open_read(uri: str, version: str | None) -> BinaryIO:
    """A stream of the stored bytes: Beam would decompress by extension unless told not to."""
    info = stat(uri)
    if info is None:
        raise FileNotFoundError(f"{uri} does not exist")
    if version not in (None, info.version):
        raise replaced(uri, str(version), info.version)
    with _errors_named(uri):
        return cast(BinaryIO, _file_system(uri).open(uri, compression_type=CompressionTypes.UNCOMPRESSED))


def read_bytes(uri: str, version: str | None) -> bytes:
    """The whole file."""
    with open_read(uri, version) as stream:
        return stream.read()


def publish(uri: str, source: bytes | Path, overwrite: bool) -> None:
    """Write through Beam; as atomic as its FileSystem is (object stores show a file once it is closed)."""
    if not overwrite and stat(uri) is not None:
        raise FileExistsError(f"{uri} exists already")
    with _errors_named(uri), _file_system(uri).create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as target:
        if isinstance(source, Path):
            with source.open("rb") as original:
                shutil.copyfileobj(original, target)
        else:
            target.write(source)


def delete(uri: str) -> None:
    """Remove the file; a missing one is fine."""
    if stat(uri) is not None:
        with _errors_named(uri):
            _file_system(uri).delete([uri])


def modified(uri: str) -> float:
    """When the file was last written."""
    if stat(uri) is None:
        raise FileNotFoundError(f"{uri} does not exist")
    with _errors_named(uri):
        return float(_file_system(uri).metadata(uri).last_updated_in_seconds)


def make_dirs(uri: str) -> None:
    """Make the folder and those above it, where the file system has folders."""
    files = _file_system(uri)
    with _errors_named(uri):
        if not files.exists(uri):
            files.mkdirs(uri)


def remove_leftovers(uri: str) -> None:
    """Nothing: no temporary files are written."""


def _match(start: str) -> Iterator[FileInfo]:
    """The files, at any depth, whose uris begin with `start`."""
    plain = re.split(r"[*?[]", start)[0]  # Beam has no way to quote them.
    with _errors_named(start):
        for match in _file_system(start).match([f"{plain}**"]):
            for info in match.metadata_list:
                if info.path.startswith(start):
                    yield _file_info(info)


def _file_info(info: FileMetadata) -> FileInfo:
    return FileInfo(info.path, info.size_in_bytes, f"{info.size_in_bytes}-{info.last_updated_in_seconds}")


def _file_system(uri: str) -> FileSystem:
    if lacks_extra(uri):
        raise missing_file_system(uri)
    if FileSystems._pipeline_options is None:
        FileSystems.set_options(PipelineOptions([]))  # those of s3:// and azfs:// refuse to work without any
    try:
        return FileSystems.get_filesystem(uri)
    except ValueError as error:
        raise missing_file_system(uri) from error


@contextlib.contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    """Turns Beam's errors into OSErrors that name the file."""
    try:
        yield
    except BeamIOError as error:
        raise OSError(f"{uri}: {error}") from error
