"""List the input files of patterns, with their formats."""

from __future__ import annotations

import heapq
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from transforms import storage
from transforms.core.errors import ImagebeamError, JobError, refused
from transforms.core.formats import InputFormat
from transforms.core.text import printable
from transforms.images.decode import IMAGE_EXTENSIONS
from transforms.readers.base import NAMES_KEPT
from transforms.readers.folders import is_hidden, is_of_system, is_set_aside
from transforms.readers.sniff import HEAD_BYTES, JSON_FILE, JSON_REMEDY, known_format, other_kind
from transforms.readers.units import Shard
from transforms.storage.files import EVERYWHERE, FileInfo, UriRange
from transforms.storage.globs import expand_braces

_EXTENSIONS = {
    InputFormat.TFRECORD: r"\.(tfrecords?|tfrec|records?)(\.(gz|gzip|zlib|zst))?(-\d+-of-\d+)?(\.(gz|gzip|zlib|zst))?",
    InputFormat.WEBDATASET: r"\.(tar(\.(gz|gzip|bz2|xz|zst))?|tgz|tbz2?|txz|tzst)",
    InputFormat.PARQUET: r"\.(parquet|parq|pqt?)(\.(gzip|snappy|zstd|brotli|lz4))?",  # Not gz: gzip packs whole files.
    InputFormat.MANIFEST: r"\.(csv|tsv|jsonl|ndjson)(\.(gz|zst))?",
    InputFormat.FILES: "|".join(map(re.escape, sorted(IMAGE_EXTENSIONS))),
}
_NAMES = {
    input_format: re.compile(rf".*({extensions})", re.IGNORECASE | re.DOTALL)
    for input_format, extensions in _EXTENSIONS.items()
}
_LINKS = "(symbolic links that leave the folder; --follow_links takes them)"

_SET_ASIDE = "(names that begin with _ or .)"

_OF_SYSTEM = "(thumbnails, deleted files and snapshots of a NAS or Windows)"

_NUMBERED_NAME = re.compile(r"[^.]*-\d{5}-of-\d{5}")
"""TensorFlow's habit for TFRecords without an extension: train-00000-of-00010."""


def detect_format(uri: str) -> InputFormat | None:
    """The format that a file's name tells; None where it tells none."""
    name = storage.basename(uri)
    for input_format, pattern in _NAMES.items():
        if pattern.fullmatch(name):
            return input_format
    return InputFormat.TFRECORD if _NUMBERED_NAME.fullmatch(name) else None


class LeftOutFiles(Counter[str]):
    """A folder's files that are no input, counted by kind, with the names of the first few of each.

    Attributes:
        names: kind -> uris.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[str]] = {}


def _count(left_out: Counter[str], kind: str, uri: str) -> None:
    left_out[kind] += 1
    if isinstance(left_out, LeftOutFiles):
        known = left_out.names.setdefault(kind, [])
        if len(known) < NAMES_KEPT:
            known.append(uri)


def list_inputs(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    left_out: Counter[str] | None = None,
    within: UriRange = EVERYWHERE,
    *,
    follow_links: bool = False,
) -> Iterator[Shard]:
    """Every input file with its format, in order of the uri, each once; streamed.

    With `input_format` None each file's name decides. A file that was named, or matched by a glob, is an image where
    its name tells nothing. Of a folder's files only shards and images are taken; with `input_format`, those whose
    names tell that format or have no extension. Names below a folder that begin with _ or . are no input, nor is what a
    NAS or Windows keeps in folders of its own.

    Args:
        patterns: see `storage.list_files`.
        input_format: of all files, or None.
        left_out: counts a folder's other files by extension.
        within: files of other uris are left out.
        follow_links: take files of a folder that a symbolic link finds outside of it; else they are left out.

    Raises:
        ImagebeamError: for a pattern that matches nothing anywhere, or may not be listed, naming it.
        JobError: if it cannot be listed, and not for what the user gave.
    """
    left_out = LeftOutFiles() if left_out is None else left_out
    streams = [_list_pattern(pattern, input_format, left_out, within, follow_links) for pattern in patterns]
    return _each_once(streams)


def _list_pattern(
    pattern: str, input_format: InputFormat | None, left_out: Counter[str], within: UriRange, follow_links: bool
) -> Iterator[Shard]:
    links = _Links(pattern)
    absolute = storage.absolute(pattern)
    folders: list[str] = []

    def choose(in_folder: bool, files: Iterator[FileInfo]) -> Iterator[Shard]:
        for file in files:
            if in_folder and not follow_links and links.leave(file.uri):
                _count(left_out, _LINKS, file.uri)
                continue
            found = detect_format(file.uri)
            root = next((one for one in folders if file.uri.startswith(f"{one.rstrip('/')}/")), None)
            if is_set_aside(file.uri, root, absolute, may_begin_with_underscore=found == InputFormat.FILES):
                if _is_wanted(file.uri, found, input_format) or not is_hidden(file.uri, root or ""):
                    _count(left_out, _SET_ASIDE, file.uri)
                continue
            if is_of_system(file.uri, root, absolute):
                _count(left_out, _OF_SYSTEM, file.uri)
                continue
            if in_folder and not _is_wanted(file.uri, found, input_format):
                extension = _extension(file.uri)
                passed_over[extension] += 1
                examples.setdefault(extension, file)
                _count(left_out, extension, file.uri)
            else:
                below = root if in_folder or (root and "/" in file.uri[len(root) :].lstrip("/")) else None
                yield Shard(file, input_format or found or InputFormat.FILES, below)

    passed_over: Counter[str] = Counter()
    examples: dict[str, FileInfo] = {}
    is_empty = True
    try:
        folders.extend(storage.roots(pattern))
        for shard in _each_once([choose(*part) for part in storage.matches(pattern, within, hidden=True)]):
            yield shard
            is_empty = False
    except OSError as error:
        raise cannot_be_listed(pattern, error) from error
    if is_empty and within == EVERYWHERE:
        raise ImagebeamError(_no_match(pattern, passed_over, examples.values()))


def cannot_be_listed(pattern: str, cause: OSError) -> ImagebeamError | JobError:
    """The error for a pattern of the input that cannot be listed, naming it."""
    return refused(f"The input cannot be listed ({cause}). Received: --input {pattern!r}.", cause)


class _Links:
    """Symbolic links of local folders that lead out of them."""

    def __init__(self, pattern: str) -> None:
        named = map(storage.absolute, expand_braces(pattern)) if storage.is_local(pattern) else ()
        self._roots = tuple(os.path.realpath(one).rstrip("/") + "/" for one in named)
        self._folder = ""
        self._is_inside = True

    def leave(self, uri: str) -> bool:
        """Whether a file is outside of the folders named; one that is not there is not."""
        if not self._roots or not storage.is_local(uri):
            return False
        folder = os.path.dirname(uri)
        if folder != self._folder:  # Neighbours mostly share their folder.
            self._folder, self._is_inside = folder, self._contain(folder + "/")
        if os.path.islink(uri):
            return os.path.exists(uri) and not self._contain(uri)
        return not self._is_inside

    def _contain(self, path: str) -> bool:
        return f"{os.path.realpath(path)}/".startswith(self._roots)


def _each_once(streams: Sequence[Iterator[Shard]]) -> Iterator[Shard]:
    merged = heapq.merge(*streams, key=lambda shard: shard.file.uri)
    return (next(same) for _, same in itertools.groupby(merged, key=lambda shard: shard.file.uri))


def _is_wanted(uri: str, found: InputFormat | None, input_format: InputFormat | None) -> bool:
    """Whether a folder's file is input; tables of paths and other data lie in folders of images and shards too."""
    if input_format is None:
        return found not in (None, InputFormat.MANIFEST)
    if (input_format, found) == (InputFormat.MANIFEST, InputFormat.PARQUET):
        return True
    return found == input_format or (found is None and "." not in storage.basename(uri))


def why_no_input(file: FileInfo, *, in_folder: bool = False) -> str | None:
    """What a file is whose name tells nothing, and what to do; None where its first bytes tell nothing either.

    Args:
        file: to look at.
        in_folder: whether a folder was named, whose files are chosen by their names.
    """
    try:
        with storage.open_read(file.uri, file.version) as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return None  # Whoever reads it will say so.
    if shard_format := known_format(head):
        return (
            f"{printable(file.uri)} begins as a {shard_format} file does, and its name does not say so. Pass "
            f"--input_format {shard_format}{' and name such files with a glob' if in_folder else ''}."
        )
    kind = other_kind(head)
    if kind == JSON_FILE:
        return (
            f"{printable(file.uri)} is {kind}, which is no input. If it lists images by their uri: {JSON_REMEDY}. Else "
            "leave it out of the pattern."
        )
    if kind is not None:
        return (
            f"{printable(file.uri)} is {kind}, which is no input. Unpack it into images, a tar, TFRecords or Parquet, "
            "leave it out of the pattern, or say how to read it with --input_format."
        )
    return None


def _no_match(pattern: str, left_out: Mapping[str, int], examples: Iterable[FileInfo]) -> str:
    message = f"No input matches. Received: --input {pattern!r}."
    if left_out:
        names = ", ".join(f"{extension} {count:,}" for extension, count in sorted(left_out.items()))
        told = next(filter(None, (why_no_input(file, in_folder=True) for file in examples)), None)
        return (
            f"{message} The folder has other files ({names}). "
            f"{told or 'Name them with a glob, and give --input_format.'}"
        )
    return (
        f"{message} Check the path, and quote wildcards so that the shell leaves them alone; ** goes into folders, * "
        "does not, and [[] stands for a plain bracket."
    )


def _extension(uri: str) -> str:
    stem, dot, extension = storage.basename(uri).rpartition(".")
    return f".{extension.lower()}" if stem and dot else "(no extension)"
