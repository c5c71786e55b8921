"""Cut compressed shards while reading them, so that each is decompressed once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from transforms import storage
from transforms.inputs.plan import SMALL_SHARD, chain_units, cut_shard, recall_cuts, units_of, walk_and_keep
from transforms.inputs.shard_index import WALKED, CutMemory
from transforms.readers.compression import HEAD_BYTES, inflate
from transforms.readers.options import ReadOptions
from transforms.readers.read import reader
from transforms.readers.spool import Spool
from transforms.readers.units import Note, PlanItem, Shard, ShardSlice, ShardUnit, UnitChain, WorkUnit


@dataclass(frozen=True, slots=True)
class UncutShard(PlanItem):
    """A compressed shard that is not cut yet. Its units are known once it is decompressed.

    Attributes:
        shard: the shard.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        memory: where its cuts are kept.
    """

    shard: Shard
    rows_per_unit: int
    options: ReadOptions
    memory: CutMemory | None

    def units(self) -> Iterator[WorkUnit | Note]:
        """What `plan.cut_shard` gives of the shard, each unit as soon as it is inflated.

        A unit holds its content on this machine's disk for as long as anything refers to it; what is read of it
        meanwhile is not inflated again. Units for which the disk has no room are read in chains.

        Raises:
            OSError: if `memory` cannot be used.
            MachineError: if too many reads in a row failed.
        """
        spool = Spool()
        try:
            parts = walk_and_keep(
                self.shard,
                self.rows_per_unit,
                self.options,
                self.memory,
                lambda source: cast(BinaryIO, inflate(source, spool.append)),
            )
            for part in parts:
                if spool.is_full:
                    yield from _in_chains(itertools.chain([part], parts))
                elif isinstance(part, Note):
                    yield part
                elif part.unread is not None:
                    yield ShardUnit((part,))
                else:
                    yield ShardUnit((dataclasses.replace(part, content=spool.range(part.offset)),))
        finally:
            spool.finish()


def _in_chains(parts: Iterable[ShardSlice | Note]) -> Iterator[WorkUnit | Note]:
    """Units that are read from the shard itself, which is inflated again for them."""
    for found in chain_units(units_of(parts)):
        if isinstance(found, UnitChain):
            yield from found.units
        else:
            yield found


def cut_unless_compressed(
    item: PlanItem, rows_per_unit: int, options: ReadOptions, memory: CutMemory | None = None
) -> Iterator[WorkUnit | Note | UncutShard]:
    """`plan.cut_shard`, but of a large compressed shard whose cuts are not remembered an `UncutShard`.

    Raises:
        OSError: if `memory` cannot be used.
        MachineError: if too many reads in a row failed.
    """
    if not isinstance(item, Shard) or item.format not in WALKED or item.file.size <= SMALL_SHARD:
        yield from cut_shard(item, rows_per_unit, options, memory)
    elif (parts := recall_cuts(item, memory)) is not None:
        yield from units_of(parts)
    elif _is_compressed(item):
        yield UncutShard(item, rows_per_unit, options, memory)
    else:
        yield from units_of(walk_and_keep(item, rows_per_unit, options, memory))


def _is_compressed(shard: Shard) -> bool:
    try:
        with storage.open_read(shard.file.uri, shard.file.version) as source:
            return reader(shard.format).is_compressed(source.read(HEAD_BYTES))
    except Exception:  # Cutting it tries again, and reports it.
        return False
