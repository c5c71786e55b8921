"""Count an input by cutting it into work units as a run would."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from transforms import storage
from transforms.core.batching import map_ahead
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Unread
from transforms.inputs.discover import LeftOutFiles
from transforms.inputs.plan import cut_shard, plan_in_parts, plan_part
from transforms.parts import part_files
from transforms.parts.part_files import Commit
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListingPart, ListUnit, Note, Shard, ShardGroup, ShardUnit, WorkUnit
from transforms.runs.retries import Retries

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
        tried_again: of those, by a run.
    """

    units: int = 0
    records: int = 0
    failed: int = 0
    tried_again: int = 0


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

    def add(self, unit: WorkUnit, committed: tuple[Commit, bool] | None) -> None:
        """Count a unit, and the commit of an earlier attempt with whether its failures are tried again."""
        count = self.count(unit.format)
        count.units += 1
        count.records += unit.count
        for unread in _unread(unit):
            if len(self.unreadable) < _UNREADABLE_SHOWN:
                self.unreadable[unread.uri] = unread.reason
        if committed is not None:
            done, is_tried_again = committed
            self.committed.units += 1
            self.committed.records += unit.count
            self.committed.failed += done.failed
            self.committed.tried_again += done.failed if is_tried_again else 0


def take_inventory(
    patterns: tuple[str, ...],
    input_format: InputFormat | None,
    rows_per_unit: int,
    read: ReadOptions,
    *,
    on_unit: Callable[[WorkUnit], None],
    earlier: Retries | None = None,
    generation: str = "",
) -> Inventory:
    """Cut the input as a run would, and count; units are let go as soon as they are counted.

    Args:
        patterns: see `storage.list_files`.
        input_format: of all files, or None.
        rows_per_unit: records in a unit at most.
        read: which columns hold what.
        on_unit: is given every unit.
        earlier: the output of an earlier attempt, whose committed units are counted, and which of their failures a run
            tries again; parts that its conditions rule out are not committed.
        generation: of the run's parts; those of another one are not committed either.

    Raises:
        ImagebeamError: for a pattern that matches nothing, or a file in the output that is not a part.
    """
    inventory = Inventory()
    parts: dict[str, str] = {}
    if earlier is not None:
        parts = dict(part_files.list_parts(storage.join(earlier.output, part_files.EMBEDDINGS)))

    def look(item: Planned) -> Iterable[tuple[WorkUnit | Note, tuple[Commit, bool] | None]]:
        units = cut_shard(item, rows_per_unit, read)
        looked = ((unit, _committed(parts, unit, generation, earlier)) for unit in units)
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
        for unit, committed in itertools.chain.from_iterable(map_ahead(look, items(), pool, 2 * _SHARDS_AHEAD)):
            if isinstance(unit, Note):
                inventory.left_out[unit.kind] += unit.count
            else:
                inventory.add(unit, committed)
                on_unit(unit)
    return inventory


def _unread(unit: WorkUnit) -> Iterator[Unread]:
    if isinstance(unit, ShardUnit):
        yield from (part.unread for part in unit.slices if part.unread is not None)
    elif isinstance(unit, ListUnit):
        yield from (ref.unread for ref in unit.refs if isinstance(ref, Failure) and ref.unread is not None)


def _committed(
    parts: Mapping[str, str], unit: WorkUnit | Note, generation: str, retries: Retries | None
) -> tuple[Commit, bool] | None:
    """A unit's commit, and whether a run tries its failures again; None where a run works all of the unit."""
    part = None if isinstance(unit, Note) else parts.get(unit.id)
    if part is None or retries is None or isinstance(unit, Note):
        return None
    try:
        done, _ = part_files.read_part_footer(part) or (None, None)
    except part_files.MisnamedPartError as error:
        if error.is_copy():
            return None
        raise ImagebeamError(f"{error}.") from error
    except part_files.DamagedPartError as error:
        raise ImagebeamError(
            f"{part} is not a part of a run ({error.reason}). Delete it, or choose another --output."
        ) from error
    except OSError as error:
        raise ImagebeamError(f"{part} cannot be read: {error}") from error
    conditions = retries.conditions
    if done is None or (done.version, done.generation) != (unit.version, generation):
        return None
    if conditions is not None and conditions.rule_out(done.conditions):
        return None
    done = part_files.with_failures(retries.output, done)
    return done, retries.are_due(done, unit)
