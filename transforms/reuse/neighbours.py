"""Find the committed parts that may overlap a work unit, without reading rows.

When an input grows, its units are cut anew where it grew. The rows of such a unit stand in parts that cover about the
same files, or the same range of a shard; these are found among half a million others by their bounds.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from transforms import storage
from transforms.parts import part_files
from transforms.readers.units import ListUnit, WorkUnit

MOST_PARTS = 64
"""Parts that are looked into for one unit at most; of a run that has no more than that, all are."""

_FOOTERS_READ = 512
"""Parts that no manifest lists, whose footers are read at most: those of a first run that was killed."""

_READ_AT_ONCE = 16
_NUMBERED = re.compile(r"(.*)#(\d+)")
_COVER_FIELDS = ("uri", "start", "first", "last")
_LAST = chr(0x10FFFF)


@dataclass(frozen=True, slots=True)
class Cover:
    """What a part covers.

    Attributes:
        unit_id: of the part.
        low: first uri or key, in lexicographic order.
        high: last uri or key.
        start: of a range of one shard or manifest, the index of its first record.
        ends: first and last key, of a list of files or a manifest.
        shard: (uri, version) where it covers a range of one shard.
    """

    unit_id: str
    low: str
    high: str
    start: int = 0
    ends: tuple[str, ...] = ()
    shard: tuple[str, str] | None = None

    @classmethod
    def of(cls, unit_id: str, version: str, inputs: Mapping[str, Any]) -> Cover:
        """By a unit's version and inputs, or what `bounds` left of these."""
        if "uri" in inputs:
            uri = inputs["uri"]
            return cls(unit_id, uri, uri, inputs["start"], shard=(uri, version))
        first, last = inputs["first"], inputs["last"]
        numbered, last_numbered = _NUMBERED.fullmatch(first), _NUMBERED.fullmatch(last)
        if numbered and last_numbered:  # Rows of manifests: "#10" sorts before "#9".
            return cls(unit_id, numbered[1], max(numbered[1], last_numbered[1]), int(numbered[2]), (first, last))
        if first > last:  # Keys of their own, or the end of one pattern and the beginning of another.
            return cls(unit_id, "", _LAST, 0, (first, last))
        return cls(unit_id, first, last, 0, (first, last))


def bounds(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest keeps of a unit's inputs: enough for `Cover.of`."""
    return {name: inputs[name] for name in _COVER_FIELDS if name in inputs}


class Neighbours:
    """The parts of a run by what they cover.

    Args:
        covers: of the parts, as far as they are known.
        unit_ids: of all parts.
    """

    def __init__(self, covers: Iterable[Cover], unit_ids: Iterable[str]) -> None:
        self._unit_ids = set(unit_ids)
        self._covers = sorted(covers, key=lambda cover: (cover.low, cover.start))
        self._lows = [cover.low for cover in self._covers]
        self._highest = list(itertools.accumulate((cover.high for cover in self._covers), max))
        self._by_end: defaultdict[str, list[str]] = defaultdict(list)
        for cover in self._covers:
            for end in cover.ends:
                self._by_end[end].append(cover.unit_id)

    def of(self, unit: WorkUnit) -> list[str]:
        """Ids of the parts that may hold records of the unit, the likeliest first."""
        here = Cover.of(unit.id, unit.version, unit.inputs)
        keys = (ref.key for ref in unit.refs) if isinstance(unit, ListUnit) else ()
        sharing = itertools.chain.from_iterable(self._by_end.get(key, ()) for key in keys)
        own = [unit.id] if unit.id in self._unit_ids else []
        found = dict.fromkeys([*own, *sharing, *self._overlapping(here)])
        if len(self._unit_ids) <= MOST_PARTS:  # Files that were moved within a small run are found too.
            found.update(dict.fromkeys(cover.unit_id for cover in self._covers))
        return list(found)[:MOST_PARTS]

    def _overlapping(self, here: Cover) -> list[str]:
        """Ids of parts that cover some of what `here` does, the nearest first.

        Other ranges of one version of a shard hold other records.
        """
        first = bisect.bisect_left(self._highest, here.low)
        end = bisect.bisect_right(self._lows, here.high)
        found = [
            cover
            for cover in self._covers[first:end]
            if cover.high >= here.low and (cover.shard is None or cover.shard != here.shard)
        ]
        return [cover.unit_id for cover in sorted(found, key=lambda cover: abs(cover.start - here.start))]


def read_neighbours(output: str, folder: str, generation: str, manifests: Iterable[Mapping[str, Any]]) -> Neighbours:
    """The parts of a run's generation: as its last manifest has them, and others by their footers.

    Args:
        output: the run's folder.
        folder: which holds the parts.
        generation: of the run.
        manifests: that may list them; empty ones are passed over.

    Raises:
        OSError: if the folder cannot be listed.
    """
    listed = {
        storage.basename(part["path"]): (manifest.get("generation", ""), part)
        for manifest in manifests
        for part in manifest.get("parts", ())
        if "inputs" in part
    }
    covers: list[Cover] = []
    unlisted: list[str] = []
    unit_ids: list[str] = []
    for unit_id, uri in part_files.list_parts(storage.join(output, folder)):
        unit_ids.append(unit_id)
        of_generation, part = listed.get(storage.basename(uri), (generation, None))
        if part is None:
            unlisted.append(uri)
        elif of_generation == generation:
            covers.append(Cover.of(unit_id, part["version"], part["inputs"]))
    return Neighbours([*covers, *_read_covers(unlisted[:_FOOTERS_READ], generation)], unit_ids)


def _read_covers(uris: list[str], generation: str) -> Iterator[Cover]:
    if not uris:
        return
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="footers") as pool:
        for commit in pool.map(_read_commit, uris):
            if commit is not None and commit.generation == generation:
                yield Cover.of(commit.unit_id, commit.version, commit.inputs)


def _read_commit(uri: str) -> part_files.Commit | None:
    try:
        return part_files.read_commit(uri)
    except OSError:  # Of a part that cannot be read nothing is taken.
        return None
