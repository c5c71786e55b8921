"""Patterns -> shards -> work units."""

from __future__ import annotations

import dataclasses
import heapq
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from transforms import storage
from transforms.errors import ImagebeamError
from transforms.file_lists import file_refs, manifest_refs, ref_units
from transforms.images import IMAGE_EXTENSIONS
from transforms.readers import ShardError
from transforms.records import READ_ERRORS, SHARD_FORMATS, reader
from transforms.types import FileInfo, InputFormat, ReadOptions, Shard, WorkUnit

_EXTENSIONS = {
    InputFormat.TFRECORD: r"\.(tfrecords?|tfrec)(\.(gz|gzip|zlib)|-\d+-of-\d+)?",
    InputFormat.WEBDATASET: r"\.(tar(\.(gz|gzip))?|tgz)",
    InputFormat.PARQUET: r"\.parquet",
    InputFormat.MANIFEST: r"\.(csv|jsonl|ndjson)",
    InputFormat.FILES: "|".join(map(re.escape, sorted(IMAGE_EXTENSIONS))),
}
_PATTERNS = {
    input_format: re.compile(rf".*({pattern})", re.IGNORECASE | re.DOTALL)
    for input_format, pattern in _EXTENSIONS.items()
}
_SHARDED_NAME = re.compile(r".*-\d{5}-of-\d{5}")
"""TensorFlow's habit for TFRecords without an extension: train-00000-of-00010."""


def detect_format(uri: str) -> InputFormat | None:
    """The format that a file's name tells; None where it tells none."""
    name = storage.basename(uri)
    for input_format, pattern in _PATTERNS.items():
        if pattern.fullmatch(name):
            return input_format
    return InputFormat.TFRECORD if _SHARDED_NAME.fullmatch(name) else None


def list_inputs(
    patterns: Sequence[str], input_format: InputFormat | None, left_out: Counter[str] | None = None
) -> Iterator[Shard]:
    """Every input file with its format, in order of the uri, each once; streamed.

    With `input_format` None each file's name decides. A file that was named, or matched by a glob, is an image where
    its name tells nothing; of a folder's files only known shards and images are taken.

    Args:
        patterns: see `storage.list_files`.
        input_format: of all files, or None.
        left_out: counts a folder's other files by extension.
    """

    def label(in_folder: bool, files: Iterator[FileInfo]) -> Iterator[Shard]:
        for file in files:
            found = input_format or detect_format(file.uri)
            if in_folder and (found is None or (found == InputFormat.MANIFEST and input_format is None)):
                if left_out is not None:
                    left_out[_extension(file.uri)] += 1
                continue
            yield Shard(file, found or InputFormat.FILES)

    streams = [label(in_folder, files) for pattern in patterns for in_folder, files in storage.matches(pattern)]
    previous = None
    for shard in heapq.merge(*streams, key=lambda shard: shard.file.uri):
        if shard.file.uri != previous:
            yield shard
        previous = shard.file.uri


def _extension(uri: str) -> str:
    stem, dot, extension = storage.basename(uri).rpartition(".")
    return f".{extension.lower()}" if stem and dot else "(no extension)"


def plan(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    rows_per_unit: int,
    options: ReadOptions,
    left_out: Counter[str] | None = None,
) -> Iterator[Shard | WorkUnit]:
    """What is to be done: work units of listed image files and manifests, and shards still to be cut (`cut_shard`)."""
    waiting: list[Shard] = []

    def listed(inputs: Iterator[Shard]) -> Iterator[FileInfo]:
        """The image files; the others are put aside on the way."""
        for shard in inputs:
            if shard.format == InputFormat.FILES:
                yield shard.file
            else:
                waiting.append(shard)

    files = listed(list_inputs(patterns, input_format, left_out))
    for unit in ref_units(file_refs(files), InputFormat.FILES, rows_per_unit):
        yield unit
        yield from _ready(waiting, rows_per_unit, options)
    yield from _ready(waiting, rows_per_unit, options)


def _ready(waiting: list[Shard], rows_per_unit: int, options: ReadOptions) -> Iterator[Shard | WorkUnit]:
    for shard in waiting:
        if shard.format == InputFormat.MANIFEST:
            yield from ref_units(manifest_refs(shard.file, options), InputFormat.MANIFEST, rows_per_unit)
        else:
            yield shard
    waiting.clear()


def cut_shard(item: Shard | WorkUnit, rows_per_unit: int) -> Iterator[WorkUnit]:
    """A shard -> its work units; a unit passes as it is.

    What cannot be read of a shard is one unit of one record, with `error` set.
    """
    if isinstance(item, WorkUnit):
        yield item
        return
    file = item.file
    index = 0
    try:
        with storage.open_read(file.uri, file.version) as stream:
            for cut in reader(item.format).cut(stream, file.size, rows_per_unit):
                yield WorkUnit(item.format, cut.count, item, start=cut.start, offset=cut.offset)
                index = cut.start + cut.count
    except READ_ERRORS as error:
        start = error.index if isinstance(error, ShardError) else index
        yield WorkUnit(item.format, 1, item, start=start, error=str(error) or repr(error))


def inspect_input(patterns: Sequence[str], input_format: InputFormat | None, options: ReadOptions) -> ReadOptions:
    """Look at the input before a run: every pattern matches, and the first shard has the columns asked for.

    Returns:
        The options with the types of kept columns filled in.

    Raises:
        ImagebeamError: naming the pattern without matches, or the columns there are.
    """
    first: Shard | None = None
    for pattern in patterns:
        match = next(list_inputs([pattern], input_format), None)
        if match is None:
            raise ImagebeamError(
                f"No input matches. Received: --input {pattern!r}. Check the path and the wildcards (quote them, so "
                f"that the shell leaves them alone); a folder is searched for known shards and images."
            )
        first = first or match
    assert first is not None
    if first.format in SHARD_FORMATS:
        options = _check_shard(first, options)
    elif first.format == InputFormat.MANIFEST:
        next(manifest_refs(first.file, options), None)
    elif options.keep_columns:
        names = ", ".join(name for name, _ in options.keep_columns)
        raise ImagebeamError(f"Image files have no columns to keep. Received: --keep_columns {names}. Use a manifest.")
    return _declare_types(options)


def _check_shard(shard: Shard, options: ReadOptions) -> ReadOptions:
    def check(stream: BinaryIO) -> ReadOptions:
        return reader(shard.format).check_columns(stream, options)

    try:
        with storage.open_read(shard.file.uri, shard.file.version) as stream:
            return check(stream)
    except ImagebeamError as error:
        raise ImagebeamError(f"{shard.file.uri} ({shard.format}): {error}") from error
    except READ_ERRORS:
        return options  # a damaged shard is data: its records will be failures


def _declare_types(options: ReadOptions) -> ReadOptions:
    """Kept columns whose type neither the user nor a schema told are strings."""
    import pyarrow as pa

    kept = tuple((name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in options.keep_columns)
    return dataclasses.replace(options, keep_columns=kept)
