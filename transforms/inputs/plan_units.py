"""Plan work units inside the pipeline, so that they do not pass through the job's graph."""

from __future__ import annotations

import itertools
import pickle
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.core.batching import positive
from transforms.core.errors import ImagebeamError
from transforms.core.field_types import convert_fields
from transforms.core.formats import InputFormat
from transforms.core.progress import PROGRESS
from transforms.inputs.discover import LeftOutFiles
from transforms.inputs.plan import chain_units, cut_shard, listing_notes, plan_in_parts
from transforms.inputs.shard_index import CutMemory
from transforms.inputs.uncut_shards import UncutShards, cut_unless_compressed
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListUnit, Note, PlanItem, ShardGroup, ShardUnit, UnitChain, WorkUnit


class PlanCoder(beam.coders.Coder):  # type: ignore[misc]
    """What planning passes on, as compressed pickles.

    A unit of 2,048 image files is mostly their paths, which zlib brings to about a tenth: a local runner holds the
    units of a whole run in memory, and others write them to their shuffle.
    """

    def encode(self, value: PlanItem) -> bytes:
        """Pickle and compress, fast."""
        return zlib.compress(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), level=1)

    def decode(self, encoded: bytes) -> PlanItem:
        """The inverse of `encode`."""
        item: PlanItem = pickle.loads(zlib.decompress(encoded))
        return item

    def is_deterministic(self) -> bool:
        """Never used for keys."""
        return False


class Patterns(tuple[str, ...]):
    """Patterns of an input, for `beam.Create`: Beam's own coder of text takes no path that is not UTF-8."""

    __slots__ = ()


beam.coders.registry.register_coder(PlanItem, PlanCoder)
for _kind in (Patterns, WorkUnit, ShardUnit, UnitChain, UncutShards, ListUnit, Note):
    beam.coders.registry.register_coder(_kind, PlanCoder)


_READ = ReadOptions()


@dataclass
class PlanUnits(beam.PTransform):  # type: ignore[misc]
    """Plan work units. Elements in: tuples of patterns (`str`); elements out: `WorkUnit`, `UnitChain` or `Note`.

    One worker begins to list. What it finds is spread over all, which cut the shards and list the parts of what is left
    of a long listing. With `leave_compressed` an `UncutShards` comes out, too.

    Attributes:
        input_format: of every file, or None to go by the names.
        rows_per_unit: records in a unit at most.
        read: which columns hold what.
        cuts: folder in which the cuts of large shards are remembered; None not to.
        share: let small shards share units.
        leave_compressed: leave large compressed shards, whose cuts are not remembered, to be cut where they are read.

    Raises:
        ImagebeamError: for rows_per_unit below 1 or an argument of another type, when constructed; fails the pipeline
            for an element that is no tuple of patterns, or a pattern without matches.
    """

    input_format: InputFormat | None = None
    rows_per_unit: int = 2048
    read: ReadOptions = _READ
    cuts: str | None = None
    share: bool = True
    leave_compressed: bool = False

    def __post_init__(self) -> None:
        convert_fields(self)
        positive("rows_per_unit", self.rows_per_unit)

    def expand(self, patterns: beam.PCollection) -> beam.PCollection:
        """List, spread, cut."""
        memory = None if self.cuts is None else CutMemory(self.cuts, self.rows_per_unit, self.read.image_column)
        return (
            patterns
            | "List input"
            >> beam.FlatMap(_list, self.input_format, self.rows_per_unit, self.read).with_output_types(PlanItem)
            | "Spread shards" >> beam.Reshuffle()
            | "Cut shards"
            >> beam.FlatMap(
                _cut, self.rows_per_unit, self.read, memory, self.share, self.leave_compressed
            ).with_output_types(PlanItem)
        )


def _list(
    patterns: tuple[str, ...], input_format: InputFormat | None, rows_per_unit: int, options: ReadOptions
) -> Iterator[PlanItem]:
    # A str would be taken for a pattern a character, "/" among them.
    if not patterns or not isinstance(patterns, tuple | list) or not all(isinstance(one, str) for one in patterns):
        raise ImagebeamError(
            f"PlanUnits takes tuples of patterns. Received: {patterns!r}. Write beam.Create([('photos/**/*.jpg',)])."
        )
    left_out = LeftOutFiles()
    yield from plan_in_parts(patterns, input_format, rows_per_unit, left_out, options=options)
    yield from listing_notes(left_out)


def _cut(
    item: PlanItem,
    rows_per_unit: int,
    options: ReadOptions,
    memory: CutMemory | None,
    share: bool,
    leave_compressed: bool = False,
) -> Iterator[WorkUnit | UnitChain | UncutShards | Note]:
    cut = cut_unless_compressed if leave_compressed else cut_shard
    items = item.shards if isinstance(item, ShardGroup) and not share else (item,)
    units = itertools.chain.from_iterable(cut(one, rows_per_unit, options, memory) for one in items)
    for found in chain_units(units):
        if not isinstance(found, Note | UncutShards):
            count_planned(found)
        yield found


def count_planned(found: WorkUnit | UnitChain) -> None:
    """Count planned records."""
    PROGRESS.planned_more(found.count)
    Metrics.counter("imagebeam", "records_planned").inc(found.count)
