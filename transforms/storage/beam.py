"""Every other scheme that Beam has a FileSystem for (hdfs, s3, azfs, ...), for `transforms.storage`."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from transforms.core.errors import ImagebeamError
from transforms.storage.base import replaced
from transforms.storage.files import FileInfo, UriRange
from transforms.storage.globs import Glob
from transforms.storage.uris import lacks_extra, missing_file_system

_SETTINGS = {
    "hdfs": "Give --hdfs_host, --hdfs_port (WebHDFS': often 9870) and --hdfs_user.",
    "azfs": "Give --blob_service_endpoint, or set AZURE_STORAGE_CONNECTION_STRING.",
}
"""Scheme -> what its file system must be told."""


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
    """Write through Beam, so that no reader sees a partial file.

    Object stores show a file once it is closed. Where there are folders (hdfs://) it is written under another name and
    renamed; what it replaces is deleted right before that, since nothing there renames over a file.
    """
    if not overwrite and stat(uri) is not None:
        raise FileExistsError(f"{uri} exists already")
    files = _file_system(uri)
    if not files.has_dirs():
        _write(files, uri, source)
        return
    folder, _, name = uri.rpartition("/")
    unfinished = f"{folder}/.{name}.{secrets.token_hex(4)}"
    make_dirs(folder)
    _write(files, unfinished, source)
    delete(uri)
    with _errors_named(uri):
        files.rename([unfinished], [uri])


def _write(files: FileSystem, uri: str, source: bytes | Path) -> None:
    with _errors_named(uri), files.create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as target:
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
    files = _file_system(start)
    with _errors_named(start):
        for info in _walk(files, plain) if files.has_dirs() else _list(files, f"{plain}**"):
            if info.path.startswith(start):
                yield _file_info(info)


def _walk(files: FileSystem, start: str) -> Iterator[FileMetadata]:
    """Of a file system with folders: Beam lists hdfs:// one folder at a time, those in it as if files of no bytes."""
    if not files.exists(start.rpartition("/")[0]):
        return
    try:
        found = list(_list(files, f"{start}**"))
    except BeamIOError as error:
        if "not a directory" not in str(error):
            raise
        return
    for info in found:
        below = _walk(files, f"{info.path.rstrip('/')}/") if info.size_in_bytes == 0 else iter(())
        first = next(below, None)
        if first is None:
            yield info
        else:
            yield first
            yield from below


def _list(files: FileSystem, pattern: str) -> Iterator[FileMetadata]:
    for match in files.match([pattern]):
        yield from match.metadata_list


def _file_info(info: FileMetadata) -> FileInfo:
    return FileInfo(info.path, info.size_in_bytes, f"{info.size_in_bytes}-{info.last_updated_in_seconds}")


def _file_system(uri: str) -> FileSystem:
    if lacks_extra(uri):
        raise missing_file_system(uri)
    if FileSystems._pipeline_options is None:
        FileSystems.set_options(PipelineOptions([]))  # those of s3:// and azfs:// refuse to work without any
    try:
        return FileSystems.get_filesystem(uri)
    except (ValueError, BeamIOError) as error:
        scheme = uri.partition("://")[0]
        if scheme not in _SETTINGS:
            raise missing_file_system(uri) from error
        raise ImagebeamError(f"{scheme}:// cannot be used: {error}. {_SETTINGS[scheme]} Received: {uri!r}.") from error


@contextlib.contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    """Turns Beam's errors into OSErrors that name the file."""
    try:
        yield
    except BeamIOError as error:
        raise OSError(_reason(uri, error)) from error


def _reason(uri: str, error: BeamIOError) -> str:
    """What a file system says, without Beam's dict around it, and the settings that it may lack."""
    details = error.exception_details
    causes = list(details.values()) if isinstance(details, dict) else []
    said = "; ".join(str(cause) for cause in causes) or str(error)
    settings = _SETTINGS.get(uri.partition("://")[0])
    lacks = settings is not None and any(isinstance(cause, ValueError) for cause in causes)
    return f"{uri}: {said.rstrip('.')}.{f' {settings}' if lacks else ''}"
