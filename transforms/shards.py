"""Patterns -> shards -> work units."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from transforms import storage, webdataset
from transforms.columns import check_image_column, check_other_columns, describe, resolve_types
from transforms.cut_memory import CutMemory
from transforms.errors import ImagebeamError
from transforms.file_lists import cut_manifest, files_unit, manifest_columns, unit_end
from transforms.images import IMAGE_EXTENSIONS
from transforms.readers import explain
from transforms.records import reader
from transforms.types import FileInfo, InputFormat, ReadOptions, Shard, WorkUnit

_EXTENSIONS = {
    InputFormat.TFRECORD: r"\.(tfrecords?|tfrec)(\.(gz|gzip|zlib))?(-\d+-of-\d+)?(\.(gz|gzip|zlib))?",
    InputFormat.WEBDATASET: r"\.(tar(\.(gz|gzip))?|tgz)",
    InputFormat.PARQUET: r"\.parquet",
    InputFormat.MANIFEST: r"\.(csv|jsonl|ndjson)(\.gz)?",
    InputFormat.FILES: "|".join(map(re.escape, sorted(IMAGE_EXTENSIONS))),
}
_NAMES = {
    input_format: re.compile(rf".*({extensions})", re.IGNORECASE | re.DOTALL)
    for input_format, extensions in _EXTENSIONS.items()
}
_NUMBERED_NAME = re.compile(r"[^.]*-\d{5}-of-\d{5}")
"""TensorFlow's habit for TFRecords without an extension: train-00000-of-00010."""

_LOOKED_AT = 20
"""Inputs that are looked at, at most, for the columns of their formats before a run."""


def detect_format(uri: str) -> InputFormat | None:
    """The format that a file's name tells; None where it tells none."""
    name = storage.basename(uri)
    for input_format, pattern in _NAMES.items():
        if pattern.fullmatch(name):
            return input_format
    return InputFormat.TFRECORD if _NUMBERED_NAME.fullmatch(name) else None


def list_inputs(
    patterns: Sequence[str], input_format: InputFormat | None, left_out: Counter[str] | None = None
) -> Iterator[Shard]:
    """Every input file with its format, in order of the uri, each once; streamed.

    With `input_format` None each file's name decides. A file that was named, or matched by a glob, is an image where
    its name tells nothing. Of a folder's files only shards and images are taken; with `input_format`, those whose
    names tell that format or have no extension.

    Args:
        patterns: see `storage.list_files`.
        input_format: of all files, or None.
        left_out: counts a folder's other files by extension.

    Raises:
        ImagebeamError: for a pattern that matches nothing, naming it.
    """
    left_out = Counter() if left_out is None else left_out
    streams = [_list_pattern(pattern, input_format, left_out) for pattern in patterns]
    return _each_once(streams)


def _list_pattern(pattern: str, input_format: InputFormat | None, left_out: Counter[str]) -> Iterator[Shard]:
    def choose(in_folder: bool, files: Iterator[FileInfo]) -> Iterator[Shard]:
        for file in files:
            found = detect_format(file.uri)
            if in_folder and not _is_wanted(file.uri, found, input_format):
                passed_over[_extension(file.uri)] += 1
            else:
                yield Shard(file, input_format or found or InputFormat.FILES)

    passed_over: Counter[str] = Counter()
    is_empty = True
    try:
        for shard in _each_once([choose(*part) for part in storage.matches(pattern)]):
            yield shard
            is_empty = False
    except OSError as error:
        raise ImagebeamError(f"The input cannot be listed ({error}). Received: --input {pattern!r}.") from error
    if is_empty:
        raise ImagebeamError(_no_match(pattern, passed_over))
    left_out.update(passed_over)


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


def _no_match(pattern: str, left_out: Mapping[str, int]) -> str:
    message = f"No input matches. Received: --input {pattern!r}."
    if left_out:
        names = ", ".join(f"{extension} {count:,}" for extension, count in sorted(left_out.items()))
        return f"{message} The folder has other files ({names}); name them with a glob, and give --input_format."
    return (
        f"{message} Check the path, and quote wildcards so that the shell leaves them alone; ** goes into folders, * "
        "does not, and [[] stands for a plain bracket."
    )


def _extension(uri: str) -> str:
    stem, dot, extension = storage.basename(uri).rpartition(".")
    return f".{extension.lower()}" if stem and dot else "(no extension)"


def plan(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    rows_per_unit: int,
    left_out: Counter[str] | None = None,
) -> Iterator[Shard | WorkUnit]:
    """What is to be done, streamed: work units of image files, and shards and manifests still to be cut.

    Raises:
        ImagebeamError: as `list_inputs` does.
    """
    images: list[FileInfo] = []
    start = 0
    for shard in list_inputs(patterns, input_format, left_out):
        if shard.format != InputFormat.FILES:
            yield shard
            continue
        images.append(shard.file)
        if len(images) > rows_per_unit:
            end = unit_end(images, rows_per_unit)
            yield files_unit(images[:end], start)
            start += end
            del images[:end]
    if images:
        yield files_unit(images, start)


def cut_shard(
    item: Shard | WorkUnit, rows_per_unit: int, options: ReadOptions, memory: CutMemory | None = None
) -> Iterator[WorkUnit]:
    """A shard or manifest -> its work units; a unit passes as it is.

    What cannot be found in a shard is one unit of one record, with `error` set. The counts of the units add up to the
    records of the shard.

    Args:
        item: what `plan` gives.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        memory: where cuts of large shards are looked up and kept.

    Raises:
        OSError: if `memory` cannot be used.
    """
    if isinstance(item, WorkUnit):
        yield item
    elif item.format == InputFormat.MANIFEST:
        yield from cut_manifest(item, rows_per_unit, options)
    elif memory is None or not memory.is_worthwhile(item):
        yield from _walk_shard(item, rows_per_unit)
    elif (units := memory.recall(item)) is not None:
        yield from units
    else:
        yield from memory.keep(item, _walk_shard(item, rows_per_unit))


def _walk_shard(shard: Shard, rows_per_unit: int) -> Iterator[WorkUnit]:
    try:
        with storage.open_read(shard.file.uri, shard.file.version) as stream:
            for cut in reader(shard.format).cut(stream, rows_per_unit):
                yield WorkUnit(shard.format, cut.count, shard, start=cut.start, offset=cut.offset, error=cut.error)
    except Exception as error:  # It did not even open.
        yield WorkUnit(shard.format, 1, shard, error=explain(error))


def inspect_input(patterns: Sequence[str], input_format: InputFormat | None, options: ReadOptions) -> ReadOptions:
    """Look at the input before a run: every pattern matches, and the columns asked for are there.

    Returns:
        The options with the types of the kept columns filled in.

    Raises:
        ImagebeamError: naming the pattern without matches, or the columns there are.
    """
    schemas: dict[InputFormat, Mapping[str, pa.DataType]] = {}
    formats = set()
    for shard in itertools.islice(list_inputs(patterns, input_format), _LOOKED_AT):
        formats.add(shard.format)
        if shard.format != InputFormat.FILES and not schemas.get(shard.format):
            schema = _look_at(shard, options)
            schemas[shard.format] = schema
            options = dataclasses.replace(options, keep_columns=resolve_types(options.keep_columns, schema))
    if options.keep_columns and formats == {InputFormat.FILES}:
        names = ", ".join(name for name, _ in options.keep_columns)
        raise ImagebeamError(
            f"Image files have no columns to keep. Received: --keep_columns {names}. Name the files in a manifest."
        )
    for name, kind in options.keep_columns:
        if pa.types.is_null(kind):
            raise ImagebeamError(
                f"The first records do not tell the type of a kept column. Received: --keep_columns {name}. Say it, as "
                f"in --keep_columns {name}:string."
            )
    return options


def _look_at(shard: Shard, options: ReadOptions) -> Mapping[str, pa.DataType]:
    """The checked columns of a shard; none where it is empty or damaged, which is not a mistake of the user's."""
    try:
        if shard.format == InputFormat.MANIFEST:
            schema = manifest_columns(shard.file)
        else:
            with storage.open_read(shard.file.uri, shard.file.version) as stream:
                schema = reader(shard.format).columns(stream)
        if not schema:
            return {}
        if shard.format == InputFormat.WEBDATASET:
            if not webdataset.check_image(schema, options.image_column):
                raise ImagebeamError(f"{describe(schema)}. Received: --image_column {options.image_column!r}.")
        elif shard.format != InputFormat.MANIFEST:
            check_image_column(options.image_column, schema)
        check_other_columns(options, schema)
    except ImagebeamError as error:
        raise ImagebeamError(f"{shard.file.uri} ({shard.format}): {error}") from error
    except Exception:
        return {}
    return schema
