"""Count an input by cutting it into work units as a run would."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.batching import map_ahead
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Unread
from transforms.inputs.discover import LeftOutFiles
from transforms.inputs.plan import cut_shard, plan_in_parts, plan_part
from transforms.parts import part_files
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListingPart, ListUnit, Note, Shard, ShardGroup, ShardUnit, WorkUnit
from transforms.reuse.known_rows import Conditions

_SHARDS_AHEAD = 16
"""Shards cut at once: hides the latency of an object store."""

_UNREADABLE_SHOWN = 10

Planned = Shard | ShardGroup | WorkUnit


@dataclass
class FormatCount:
    """How much of the input there is in one format.

    Attributes:
        files: shards, manifests, or image files.
        units: work units.
        records: in those units.
    """

    files: int = 0
    units: int = 0
    records: int = 0


@dataclass
class Committed:
    """What an earlier attempt left that is still of the present input.

    Attributes:
        units: whose parts are there.
        records: of those units.
        failed: of those records.
    """

    units: int = 0
    records: int = 0
    failed: int = 0


@dataclass
class Inventory:
    """An input, counted.

    Attributes:
        formats: counts by format.
        left_out: files of folders that are no known shards or images, by extension; members of tars, by kind.
        unreadable: shards that cannot be read to their end, and why; the first few.
        committed: what the output has already.
    """

    formats: dict[InputFormat, FormatCount] = field(default_factory=dict)
    left_out: LeftOutFiles = field(default_factory=LeftOutFiles)
    unreadable: dict[str, str] = field(default_factory=dict)
    committed: Committed = field(default_factory=Committed)

    @property
    def units(self) -> int:
        """Work units of all formats."""
        return sum(count.units for count in self.formats.values())

    @property
    def records(self) -> int:
        """Records of all formats."""
        return sum(count.records for count in self.formats.values())

    def count(self, input_format: InputFormat) -> FormatCount:
        """The counts of one format, to be added to."""
        return self.formats.setdefault(input_format, FormatCount())

    def add(self, unit: WorkUnit, failed: int | None) -> None:
        """Count a unit; `failed` of its records did so in an earlier attempt, None where it is not committed."""
        count = self.count(unit.format)
        count.units += 1
        count.records += unit.count
        for unread in _unread(unit):
            if len(self.unreadable) < _UNREADABLE_SHOWN:
                self.unreadable[unread.uri] = unread.reason
        if failed is not None:
            self.committed.units += 1
            self.committed.records += unit.count
            self.committed.failed += failed


def take_inventory(
    patterns: tuple[str, ...],
    input_format: InputFormat | None,
    rows_per_unit: int,
    read: ReadOptions,
    *,
    output: str | None,
    on_unit: Callable[[WorkUnit], None],
    generation: str = "",
    conditions: Conditions | None = None,
) -> Inventory:
    """Cut the input as a run would, and count; units are let go as soon as they are counted.

    Args:
        patterns: see `storage.list_files`.
        input_format: of all files, or None.
        rows_per_unit: records in a unit at most.
        read: which columns hold what.
        output: of an earlier attempt, whose committed units are counted.
        on_unit: is given every unit.
        generation: of the run's parts; those of another one are not committed.
        conditions: under which the run makes images rows; parts that these rule out are not committed either.

    Raises:
        ImagebeamError: for a pattern that matches nothing, or a file in the output that is not a part.
    """
    inventory = Inventory()
    parts: dict[str, str] = {}
    if output is not None:
        parts = dict(part_files.list_parts(storage.join(output, part_files.EMBEDDINGS)))

    def look(item: Planned) -> Iterable[tuple[WorkUnit | Note, int | None]]:
        units = cut_shard(item, rows_per_unit, read)
        looked = ((unit, _committed_failures(parts, unit, generation, conditions)) for unit in units)
        # A manifest may have millions of rows: it is cut while they are counted.
        return looked if item.format == InputFormat.MANIFEST else list(looked)

    def count(item: Planned) -> Planned:
        shards = len(item.shards) if isinstance(item, ShardGroup) else 1
        inventory.count(item.format).files += item.count if isinstance(item, WorkUnit) else shards
        return item

    def items() -> Iterator[Planned]:
        for item in plan_in_parts(patterns, input_format, rows_per_unit, inventory.left_out, options=read):
            found = (
                plan_part(item, rows_per_unit, inventory.left_out, read) if isinstance(item, ListingPart) else [item]
            )
            yield from map(count, found)

    with ThreadPoolExecutor(_SHARDS_AHEAD, thread_name_prefix="plan") as pool:
        for unit, failed in itertools.chain.from_iterable(map_ahead(look, items(), pool, 2 * _SHARDS_AHEAD)):
            if isinstance(unit, Note):
                inventory.left_out[unit.kind] += unit.count
            else:
                inventory.add(unit, failed)
                on_unit(unit)
    return inventory


def _unread(unit: WorkUnit) -> Iterator[Unread]:
    if isinstance(unit, ShardUnit):
        yield from (part.unread for part in unit.slices if part.unread is not None)
    elif isinstance(unit, ListUnit):
        yield from (ref.unread for ref in unit.refs if isinstance(ref, Failure) and ref.unread is not None)


def _committed_failures(
    parts: Mapping[str, str], unit: WorkUnit | Note, generation: str, conditions: Conditions | None
) -> int | None:
    """Failed records of a committed unit, from its part's footer; None where a run would work it."""
    part = None if isinstance(unit, Note) else parts.get(unit.id)
    if part is None or isinstance(unit, Note):
        return None
    try:
        with storage.open_read(part) as source:
            about = json.loads(pq.ParquetFile(source).schema_arrow.metadata[part_files.UNIT_KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ImagebeamError(
            f"{part} is not a part of a run ({error}). Delete it, or choose another --output."
        ) from error
    failed: int = about["failed"]
    if (about["id"], about["version"], about.get("generation", "")) != (unit.id, unit.version, generation):
        return None
    return None if conditions is not None and conditions.rule_out(about.get("conditions")) else failed
