"""Cut input files into work units."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, TypeVar, cast

from transforms import storage
from transforms.core.errors import StopError
from transforms.core.formats import InputFormat
from transforms.core.text import storable
from transforms.core.types import Unread
from transforms.inputs.discover import LeftOutFiles, list_inputs
from transforms.inputs.file_units import files_unit, unit_end
from transforms.inputs.manifests import cut_manifest, has_keys
from transforms.inputs.shard_index import CutMemory
from transforms.inputs.unique_keys import SeenKeys
from transforms.readers.base import Cut, LeftOut
from transforms.readers.options import ReadOptions
from transforms.readers.read import judge, reader
from transforms.readers.units import (
    ListingPart,
    Note,
    PlanItem,
    Shard,
    ShardGroup,
    ShardSlice,
    ShardUnit,
    UnitChain,
    WorkUnit,
)
from transforms.storage.resuming import ResumingStream

LISTED_ALONE = 200_000
"""Images that one worker lists before it shares the rest out: seconds of work, and few inputs are larger."""

LISTING_PARTS = 256
"""Parts of the rest at most."""

SMALL_SHARD = 4 << 20
"""Bytes of a shard that shares work units with others: opening it costs more than reading it."""

SHARDS_TOGETHER = 256
"""Small shards that one worker cuts, and that may share units, at most."""

_DEFAULTS = ReadOptions()

Item = TypeVar("Item", bound=PlanItem)


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
    """`plan`, but only for the beginning of a long listing of images; the rest becomes `ListingPart`s for others.

    Shards do not count: a million of them are listed in seconds, and any worker can cut them.

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
    """Cut a shard, a group of small shards, a manifest or a part of a listing into work units. A unit passes unchanged.

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
        parts = itertools.chain.from_iterable(walk_shard(shard, rows_per_unit, options) for shard in item.shards)
        yield from share_units(parts, rows_per_unit)
    elif isinstance(item, Shard) and item.format == InputFormat.MANIFEST:
        yield from cut_manifest(item, rows_per_unit, options)
    elif isinstance(item, Shard):
        recalled = recall_cuts(item, memory)
        yield from units_of(walk_and_keep(item, rows_per_unit, options, memory) if recalled is None else recalled)


def chain_units(units: Iterable[Item]) -> Iterator[Item | ShardUnit | UnitChain]:
    """Units that can only be reached through others of their shard, in chains that are read in one go.

    To reach a unit within a row group or a compressed shard, all records before it are read. A chain ends when it holds
    half as many records as lie before it: so no shard is read more than four times over, and several workers share it.
    """
    waiting: list[ShardUnit] = []
    for unit in units:
        if waiting and not _is_next(waiting, unit):
            yield _chain(waiting)
            waiting = []
        if isinstance(unit, ShardUnit) and unit.slices[0].entry < unit.slices[0].start:
            waiting.append(unit)
        else:
            yield unit
    if waiting:
        yield _chain(waiting)


def _is_next(chain: Sequence[ShardUnit], unit: PlanItem) -> bool:
    """Whether a unit follows the last of a chain, which is to grow on."""
    if not isinstance(unit, ShardUnit) or len(unit.slices) > 1:
        return False
    first, last, following = chain[0].slices[0], chain[-1].slices[0], unit.slices[0]
    return (
        (following.shard, following.entry, following.start) == (last.shard, last.entry, last.end)
        and following.unread is None
        and 2 * (last.end - first.start) < first.start - first.entry
    )


def _chain(units: Sequence[ShardUnit]) -> ShardUnit | UnitChain:
    if len(units) == 1:
        return units[0]
    before = (ShardUnit((replace(unit.slices[0], goes_on=True),)) for unit in units[:-1])
    return UnitChain((*before, units[-1]))


def listing_notes(left_out: LeftOutFiles) -> Iterator[Note]:
    """What a listing left out of folders, by extension, with examples."""
    for extension, count in sorted(left_out.items()):
        yield Note(f"files of folders: {extension}", "", count, tuple(map(storable, left_out.names[extension])))


def share_units(parts: Iterable[ShardSlice | Note], rows_per_unit: int) -> Iterator[ShardUnit | Note]:
    """The slices of small shards as few units, each filled before the next one begins."""
    slices: list[ShardSlice] = []
    rows = 0
    for part in parts:
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


def units_of(parts: Iterable[ShardSlice | Note]) -> Iterator[ShardUnit | Note]:
    """A unit for each slice of a shard."""
    return (part if isinstance(part, Note) else ShardUnit((part,)) for part in parts)


def recall_cuts(shard: Shard, memory: CutMemory | None) -> list[ShardSlice | Note] | None:
    """The cuts of a shard that are in the memory. None if it has to be walked.

    Raises:
        OSError: if `memory` cannot be used.
    """
    return memory.recall(shard) if memory is not None and memory.is_worthwhile(shard) else None


def walk_and_keep(
    shard: Shard,
    rows_per_unit: int,
    options: ReadOptions,
    memory: CutMemory | None,
    content: Callable[[BinaryIO], BinaryIO] = lambda stream: stream,
) -> Iterator[ShardSlice | Note]:
    """`walk_shard`; the cuts are kept in the memory if that is worthwhile.

    Raises:
        OSError: if `memory` cannot be used.
        MachineError: as `cut_shard` does.
    """
    parts = walk_shard(shard, rows_per_unit, options, content)
    return memory.keep(shard, parts) if memory is not None and memory.is_worthwhile(shard) else parts


def walk_shard(
    shard: Shard,
    rows_per_unit: int,
    options: ReadOptions,
    content: Callable[[BinaryIO], BinaryIO] = lambda stream: stream,
) -> Iterator[ShardSlice | Note]:
    """Cut a shard by reading it; see `cut_shard`.

    Args:
        shard: to cut.
        rows_per_unit: records in a slice at most.
        options: which columns hold what.
        content: gives what is cut of the file.
    """
    left_out = LeftOut()
    source: ResumingStream | None = None
    records = 0
    try:
        with ResumingStream(shard.file.uri, shard.file.version) as source:
            stream = content(cast(BinaryIO, source))
            for cut in reader(shard.format).cut(stream, rows_per_unit, options, left_out):
                if cut.failed is not None:
                    yield _rest(shard, source, cut)
                    records += 1
                    break
                entry = cut.start if cut.entry is None else cut.entry
                yield ShardSlice(shard, cut.start, cut.count, cut.offset, cut.errors, entry=entry)
                records += cut.count
    except StopError:
        raise
    except Exception as error:  # It did not even open.
        yield _rest(shard, source, Cut(records, 1, failed=error))
        records += 1
    if not records:
        yield Note("shards without records", shard.file.uri, 1, (shard.file.uri,))
    for kind, count in left_out.counts.items():
        yield Note(kind, shard.file.uri, count, tuple(left_out.names[kind]))


def _rest(shard: Shard, source: ResumingStream | None, cut: Cut) -> ShardSlice:
    """The slice that represents the unreadable rest of a shard."""
    reason, retryable = judge(source, cut.failed or EOFError())
    read = cut.offset
    if source is not None and cut.offset and source.tell() < cut.offset:  # Compressed: count what is stored.
        read = source.tell()
    missing = max(0, shard.file.size - read)
    records = round(missing * cut.start / read) if cut.start and read else None
    unread = Unread(shard.file.uri, reason, missing, records)
    return ShardSlice(shard, cut.start, 1, unread=unread, retryable=retryable)
