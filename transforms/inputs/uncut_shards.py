"""Cut compressed shards while reading them, so that each is decompressed once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from transforms import storage
from transforms.inputs.plan import chain_units, cut_shard, recall_cuts, share_units, units_of, walk_and_keep
from transforms.inputs.shard_index import WALKED, CutMemory
from transforms.readers.compression import HEAD_BYTES, Inflated, content
from transforms.readers.options import ReadOptions
from transforms.readers.read import reader
from transforms.readers.spool import Spool
from transforms.readers.units import Note, PlanItem, Shard, ShardGroup, ShardSlice, ShardUnit, UnitChain, WorkUnit


@dataclass(frozen=True, slots=True)
class UncutShards(PlanItem):
    """A compressed shard, or a group of small ones, not cut yet. The units are known once it is decompressed.

    Attributes:
        shards: the shard, or the group's; some of a group may be plain.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        memory: where the cuts of large ones are kept.
    """

    shards: tuple[Shard, ...]
    rows_per_unit: int
    options: ReadOptions
    memory: CutMemory | None

    def units(self) -> Iterator[WorkUnit | Note]:
        """What `plan.cut_shard` gives, each unit as soon as it is inflated.

        A unit holds its content on this machine's disk for as long as anything refers to it; what is read of it
        meanwhile is not inflated again. Units for which the disk has no room are read in chains.

        Raises:
            OSError: if `memory` cannot be used.
            MachineError: if too many reads in a row failed.
        """
        spool = Spool()
        try:
            slices = itertools.chain.from_iterable(self._slices(shard, spool) for shard in self.shards)
            units = share_units(slices, self.rows_per_unit) if len(self.shards) > 1 else units_of(slices)
            for unit in units:
                if spool.is_full:
                    yield from _in_chains(itertools.chain([unit], units))
                else:
                    yield unit
        finally:
            spool.finish()

    def _slices(self, shard: Shard, spool: Spool) -> Iterator[ShardSlice | Note]:
        """What `plan.walk_shard` gives; the slices of a compressed shard with their content, where there is room."""
        is_kept = False

        def keep(source: BinaryIO) -> BinaryIO:
            nonlocal is_kept
            stream = content(source, reader(shard.format).is_compressed, spool.append)
            is_kept = isinstance(stream, Inflated)
            return stream

        spool.begin()
        for part in walk_and_keep(shard, self.rows_per_unit, self.options, self.memory, keep):
            if isinstance(part, Note) or part.unread is not None or spool.is_full or not is_kept:
                yield part
            else:
                yield dataclasses.replace(part, content=spool.range(part.offset))


def _in_chains(units: Iterable[ShardUnit | Note]) -> Iterator[WorkUnit | Note]:
    """Units that are read from the shards themselves, which are inflated again for them."""
    for found in chain_units(map(_without_content, units)):
        if isinstance(found, UnitChain):
            yield from found.units
        else:
            yield found


def _without_content(unit: ShardUnit | Note) -> ShardUnit | Note:
    if isinstance(unit, Note):
        return unit
    return ShardUnit(tuple(dataclasses.replace(part, content=None) for part in unit.slices))


def cut_unless_compressed(
    item: PlanItem, rows_per_unit: int, options: ReadOptions, memory: CutMemory | None = None
) -> Iterator[WorkUnit | Note | UncutShards]:
    """`plan.cut_shard`, but `UncutShards` for compressed shards whose cuts are not remembered.

    Of a group of small shards the first tells whether it is compressed: to look at each would cost a request for it.

    Raises:
        OSError: if `memory` cannot be used.
        MachineError: if too many reads in a row failed.
    """
    if not isinstance(item, Shard | ShardGroup) or item.format not in WALKED:
        yield from cut_shard(item, rows_per_unit, options, memory)
    elif isinstance(item, Shard) and (parts := recall_cuts(item, memory)) is not None:
        yield from units_of(parts)
    elif _is_compressed((shards := item.shards if isinstance(item, ShardGroup) else (item,))[0]):
        yield UncutShards(shards, rows_per_unit, options, memory)
    elif isinstance(item, Shard):
        yield from units_of(walk_and_keep(item, rows_per_unit, options, memory))
    else:
        yield from cut_shard(item, rows_per_unit, options, memory)


def _is_compressed(shard: Shard) -> bool:
    try:
        with storage.open_read(shard.file.uri, shard.file.version) as source:
            return reader(shard.format).is_compressed(source.read(HEAD_BYTES))
    except Exception:  # Cutting it tries again, and reports it.
        return False
