"""Input files -> work units; the input looked at before a run."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, cast

import pyarrow as pa

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat, LabelFrom
from transforms.core.text import printable, storable
from transforms.core.types import Unread
from transforms.inputs import webdataset
from transforms.inputs.base import Cut, LeftOut
from transforms.inputs.columns import check_image_column, check_other_columns, describe, is_list_type, resolve_types
from transforms.inputs.discover import LeftOutFiles, detect_format, list_inputs
from transforms.inputs.faults import MachineError
from transforms.inputs.folders import partitions
from transforms.inputs.manifests import cut_manifest, files_unit, has_keys, manifest_columns, unit_end
from transforms.inputs.read import judge, reader
from transforms.inputs.shard_index import CutMemory
from transforms.inputs.sniff import HEAD_BYTES, known_format, other_kind
from transforms.inputs.source import Source
from transforms.inputs.types import (
    ListingPart,
    Note,
    PlanItem,
    ReadOptions,
    Shard,
    ShardGroup,
    ShardSlice,
    ShardUnit,
    WorkUnit,
)
from transforms.inputs.unique_keys import SeenKeys

LISTED_ALONE = 200_000
"""Images that one worker lists before it shares the rest out: seconds of work, and few inputs are larger."""

LISTING_PARTS = 256
"""Parts of the rest at most."""

SMALL_SHARD = 4 << 20
"""Bytes of a shard that shares work units with others: opening it costs more than reading it."""

SHARDS_TOGETHER = 256
"""Small shards that one worker cuts, and that may share units, at most."""

_DEFAULTS = ReadOptions()

LABEL_LISTS = "labels"
"""The output's column of lists of labels: `train --multi_label --label_column labels` reads it."""

_LOOKED_AT = 20
"""Inputs that are looked at, at most, for the columns of their formats before a run."""

_LISTED_FOR_NAMES = 10_000
"""Inputs whose names are looked at, so that a file of another kind is found before the run."""


def plan(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    rows_per_unit: int,
    left_out: Counter[str] | None = None,
    *,
    options: ReadOptions = _DEFAULTS,
) -> Iterator[Shard | ShardGroup | WorkUnit]:
    """What is to be done, streamed: work units of image files, and shards and manifests still to be cut.

    Raises:
        ImagebeamError: as `list_inputs` does.
    """
    return _gather_files(
        list_inputs(patterns, input_format, left_out, follow_links=options.follow_links), rows_per_unit, options
    )


def plan_in_parts(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    rows_per_unit: int,
    left_out: Counter[str] | None = None,
    *,
    options: ReadOptions = _DEFAULTS,
) -> Iterator[Shard | ShardGroup | WorkUnit | ListingPart]:
    """`plan`, of a long listing of images its beginning alone: the rest is left to others, a `ListingPart` each.

    Shards do not count: a million of them are listed in seconds, and each is to be cut by whoever has time.

    Raises:
        ImagebeamError: as `list_inputs` does.
        OSError: if a folder cannot be listed.
    """
    inputs = list_inputs(patterns, input_format, left_out, follow_links=options.follow_links)
    images = 0

    def beginning() -> Iterator[Shard]:
        nonlocal images
        while images < LISTED_ALONE and (shard := next(inputs, None)):
            images += shard.format == InputFormat.FILES
            yield shard

    yield from _gather_files(beginning(), rows_per_unit, options)
    if rest := next(inputs, None):
        for within in storage.split_listing(patterns, rest.file.uri, LISTING_PARTS):
            yield ListingPart(tuple(patterns), input_format, within, options.follow_links)


def plan_part(
    part: ListingPart, rows_per_unit: int, left_out: Counter[str] | None = None, options: ReadOptions = _DEFAULTS
) -> Iterator[Shard | ShardGroup | WorkUnit]:
    """`plan` of a part of the listing."""
    return _gather_files(
        list_inputs(part.patterns, part.input_format, left_out, part.within, follow_links=part.follow_links),
        rows_per_unit,
        options,
    )


def _gather_files(
    inputs: Iterable[Shard], rows_per_unit: int, options: ReadOptions
) -> Iterator[Shard | ShardGroup | WorkUnit]:
    images: list[Shard] = []
    small: list[Shard] = []
    keyed: list[Shard] = []
    start = 0
    for shard in inputs:
        if shard.format == InputFormat.MANIFEST and has_keys(shard.file, options):
            keyed.append(shard)
            continue
        if shard.format != InputFormat.FILES:
            yield from _gather_shard(shard, small)
            continue
        images.append(shard)
        if len(images) > rows_per_unit:
            end = unit_end([image.file for image in images], rows_per_unit)
            yield files_unit(images[:end], start, options)
            start += end
            del images[:end]
    if images:
        yield files_unit(images, start, options)
    yield from _group(small)
    yield from _group(keyed)  # One worker cuts them all: a key that two of them have is a failure the second time.


def _gather_shard(shard: Shard, small: list[Shard]) -> Iterator[Shard | ShardGroup]:
    """Pass a large shard on; keep small ones of one format in `small` until they fill a group."""
    if shard.format == InputFormat.MANIFEST or shard.file.size > SMALL_SHARD:
        yield shard
        return
    if small and small[0].format != shard.format:
        yield from _group(small)
        small.clear()
    small.append(shard)
    if len(small) > SHARDS_TOGETHER:
        end = unit_end([one.file for one in small], SHARDS_TOGETHER)
        yield from _group(small[:end])
        del small[:end]


def _group(shards: Sequence[Shard]) -> Iterator[Shard | ShardGroup]:
    if len(shards) > 1:
        yield ShardGroup(tuple(shards))
    else:
        yield from shards


def cut_shard(
    item: PlanItem, rows_per_unit: int, options: ReadOptions, memory: CutMemory | None = None
) -> Iterator[WorkUnit | Note]:
    """A shard, several small ones, a manifest or a part of a listing -> its work units; a unit passes as it is.

    What cannot be found in a shard is a slice of one record, with `unread` set. The counts of the units add up to the
    records of the shard. What was passed over is told by notes.

    Args:
        item: what `plan` or `plan_in_parts` gives.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        memory: where cuts of large shards are looked up and kept.

    Raises:
        OSError: if `memory` cannot be used.
        MachineError: if too many reads in a row failed, and not for what the files hold.
    """
    if isinstance(item, WorkUnit | Note):
        yield item
    elif isinstance(item, ListingPart):
        left_out = LeftOutFiles()
        for found in plan_part(item, rows_per_unit, left_out, options):
            yield from cut_shard(found, rows_per_unit, options, memory)
        yield from listing_notes(left_out)
    elif isinstance(item, ShardGroup) and item.format == InputFormat.MANIFEST:
        seen = SeenKeys()
        for manifest in item.shards:
            yield from cut_manifest(manifest, rows_per_unit, options, seen)
    elif isinstance(item, ShardGroup):
        yield from _share_units(item, rows_per_unit, options)
    elif isinstance(item, Shard) and item.format == InputFormat.MANIFEST:
        yield from cut_manifest(item, rows_per_unit, options)
    elif isinstance(item, Shard):
        for part in _recall_or_walk(item, rows_per_unit, options, memory):
            yield ShardUnit((part,)) if isinstance(part, ShardSlice) else part


def listing_notes(left_out: LeftOutFiles) -> Iterator[Note]:
    """What a listing left out of folders, by extension, with examples."""
    for extension, count in sorted(left_out.items()):
        yield Note(f"files of folders: {extension}", "", count, tuple(map(storable, left_out.names[extension])))


def _share_units(group: ShardGroup, rows_per_unit: int, options: ReadOptions) -> Iterator[WorkUnit | Note]:
    """Small shards as few units, each filled before the next one begins."""
    slices: list[ShardSlice] = []
    rows = 0
    for shard in group.shards:
        for part in _walk_shard(shard, rows_per_unit, options):
            if isinstance(part, Note):
                yield part
                continue
            if slices and rows + part.count > rows_per_unit:
                yield ShardUnit(tuple(slices))
                slices, rows = [], 0
            slices.append(part)
            rows += part.count
    if slices:
        yield ShardUnit(tuple(slices))


def _recall_or_walk(
    shard: Shard, rows_per_unit: int, options: ReadOptions, memory: CutMemory | None
) -> Iterable[ShardSlice | Note]:
    if memory is None or not memory.is_worthwhile(shard):
        return _walk_shard(shard, rows_per_unit, options)
    known = memory.recall(shard)
    return memory.keep(shard, _walk_shard(shard, rows_per_unit, options)) if known is None else known


def _walk_shard(shard: Shard, rows_per_unit: int, options: ReadOptions) -> Iterator[ShardSlice | Note]:
    left_out = LeftOut()
    source: Source | None = None
    records = 0
    try:
        with Source(shard.file.uri, shard.file.version) as source:
            for cut in reader(shard.format).cut(cast(BinaryIO, source), rows_per_unit, options, left_out):
                if cut.failed is not None:
                    yield _rest(shard, source, cut)
                    records += 1
                    break
                yield ShardSlice(shard, cut.start, cut.count, cut.offset, cut.errors)
                records += cut.count
    except MachineError:
        raise
    except Exception as error:  # It did not even open.
        yield _rest(shard, source, Cut(records, 1, failed=error))
        records += 1
    if not records:
        yield Note("shards without records", shard.file.uri, 1, (shard.file.uri,))
    for kind, count in left_out.counts.items():
        yield Note(kind, shard.file.uri, count, tuple(left_out.names[kind]))


def _rest(shard: Shard, source: Source | None, cut: Cut) -> ShardSlice:
    """The slice that stands for what could not be found in a shard."""
    reason, retryable = judge(source, cut.failed or EOFError())
    read = cut.offset
    if source is not None and cut.offset and source.tell() < cut.offset:  # Compressed: count what is stored.
        read = source.tell()
    missing = max(0, shard.file.size - read)
    records = round(missing * cut.start / read) if cut.start and read else None
    unread = Unread(shard.file.uri, reason, missing, records)
    return ShardSlice(shard, cut.start, 1, unread=unread, retryable=retryable)


def inspect_input(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    options: ReadOptions,
    label_lists: str | None = None,
) -> ReadOptions:
    """Look at the input before a run: every pattern matches, and the columns asked for are there.

    Args:
        patterns: see `list_inputs`.
        input_format: likewise.
        options: which columns hold what.
        label_lists: where the label column holds lists, the kept column that gets them; None where none should.

    Returns:
        The options with the types of the kept columns filled in.

    Raises:
        ImagebeamError: naming the pattern without matches, or the columns there are.
    """
    schemas: dict[InputFormat, Mapping[str, pa.DataType]] = {}
    formats = set()
    in_folders: set[str] = set()
    inputs = list_inputs(patterns, input_format, follow_links=options.follow_links)
    looked_at = list(itertools.islice(inputs, _LOOKED_AT))
    if input_format is None:
        _refuse_other_kinds(itertools.chain(looked_at, itertools.islice(inputs, _LISTED_FOR_NAMES)))
    for shard in looked_at:
        formats.add(shard.format)
        if shard.format != InputFormat.FILES and not schemas.get(shard.format):
            schema = _look_at(shard, options)
            schemas[shard.format] = schema
            options = resolve_types(_keep_label_lists(options, schema, label_lists), schema)
        else:
            found = dict.fromkeys(partitions(shard.file.uri), pa.string())
            in_folders.update(found)
            options = resolve_types(options, found)
    missing = [name for name in options.kept_from.values() if name not in in_folders]
    if missing and formats == {InputFormat.FILES}:
        names = ", ".join(missing)
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


def _keep_label_lists(options: ReadOptions, schema: Mapping[str, pa.DataType], name: str | None) -> ReadOptions:
    """The options, lists of labels kept under `name`, unless the user keeps them or something of that name."""
    column = options.label_column
    is_list = is_list_type(schema.get(column, pa.null())) and options.label_from in (LabelFrom.AUTO, LabelFrom.COLUMN)
    taken = {kept.casefold() for kept in options.kept_from}
    if name is None or not is_list or column in options.kept_from.values() or name in taken:
        return options
    return dataclasses.replace(
        options,
        keep_columns=(*options.keep_columns, (name, pa.list_(pa.string()))),
        renamed=(*options.renamed, (name, column)),
    )


def _refuse_other_kinds(inputs: Iterable[Shard]) -> None:
    """Refuse files that were named or matched, whose names tell nothing, and whose first bytes tell no image.

    Raises:
        ImagebeamError: naming the file, what it is, and the flag to read it with.
    """
    unnamed = (shard.file for shard in inputs if detect_format(shard.file.uri) is None)
    for file in itertools.islice(unnamed, _LOOKED_AT):
        try:
            with storage.open_read(file.uri, file.version) as stream:
                head = stream.read(HEAD_BYTES)
        except OSError:
            continue  # Whoever reads it will say so.
        if shard_format := known_format(head):
            raise ImagebeamError(
                f"{printable(file.uri)} begins as a {shard_format} file does, and its name does not say so. Pass "
                f"--input_format {shard_format}."
            )
        if kind := other_kind(head):
            raise ImagebeamError(
                f"{printable(file.uri)} is {kind}, which is no input. Unpack it into images, a tar, TFRecords or "
                f"Parquet, leave it out of the pattern, or say how to read it with --input_format."
            )


def _refuse_choice(shard: Shard, options: ReadOptions) -> None:
    """Refuse a tar whose samples have several images where nobody said which one is meant.

    Raises:
        ImagebeamError: naming them.
    """
    if options.image_column != _DEFAULTS.image_column:
        return
    with Source(shard.file.uri, shard.file.version) as source:
        found = webdataset.several_images(cast(BinaryIO, source))
    if found is not None:
        sample, images = found
        choice = " or ".join(f"--image_column {image}" for image in images)
        raise ImagebeamError(f"Sample {sample!r} has {len(images)} images: {', '.join(images)}. Pass {choice}.")


def _look_at(shard: Shard, options: ReadOptions) -> Mapping[str, pa.DataType]:
    """The checked columns of a shard; none where it is empty or damaged, which is not a mistake of the user's."""
    try:
        if shard.format == InputFormat.MANIFEST:
            schema = manifest_columns(shard.file, options)
        else:
            with Source(shard.file.uri, shard.file.version) as source:
                schema = reader(shard.format).columns(cast(BinaryIO, source))
        if not schema:
            return {}
        schema = {**dict.fromkeys(partitions(shard.file.uri), pa.string()), **schema}
        if shard.format == InputFormat.WEBDATASET:
            if not webdataset.check_image(schema, options.image_column):
                raise ImagebeamError(f"{describe(schema)}. Received: --image_column {options.image_column!r}.")
            _refuse_choice(shard, options)
        elif shard.format != InputFormat.MANIFEST:
            check_image_column(options.image_column, schema)
        check_other_columns(options, schema)
    except ImagebeamError as error:
        raise ImagebeamError(f"{shard.file.uri} ({shard.format}): {error}") from error
    except Exception:
        return {}
    return schema
