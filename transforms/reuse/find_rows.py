"""Find existing rows for a work unit, in its own run and in the runs that --reuse names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from transforms import storage
from transforms.parts import part_files
from transforms.parts.part_files import REPLACED
from transforms.readers.units import WorkUnit
from transforms.reuse.digest_index import DigestIndex, ReusedRun
from transforms.reuse.known_rows import COLUMNS, KnownRow, PartCache, PartRows, RecentRows, Terms
from transforms.reuse.neighbours import Neighbours, read_neighbours

_READ_AT_ONCE = 8


class RowFinder:
    """Finds committed rows; one of them serves a worker process. It reads nothing before the first unit asks.

    Args:
        output: the run's folder.
        terms: what the run's parts must be.
        read_manifests: the manifests in a run's folder, this run's or another's; they tell what its parts cover.
        runs: other runs whose rows are taken.

    Attributes:
        recent: rows that this process has made.
    """

    def __init__(
        self,
        output: str,
        terms: Terms,
        read_manifests: Callable[[str], Iterable[Mapping[str, Any]]],
        runs: Sequence[ReusedRun] = (),
    ) -> None:
        self._output = output
        self._read_manifests = read_manifests
        self._terms = terms
        self._reused = [(run, replace(terms, generation=run.generation)) for run in runs]
        others = [(run, terms) for run, terms in self._reused if run.output != output]
        self._runs = [(ReusedRun(output, terms.generation), terms), *others]
        self._index: DigestIndex | None = None
        self._neighbours: list[Neighbours] | None = None
        self._cache = PartCache()
        self.recent = RecentRows()
        self._lock = threading.Lock()

    def of(self, unit: WorkUnit) -> FoundRows:
        """The rows that may be those of a unit's records, as the parts stand now."""
        return FoundRows(self, unit)

    def parts_of(self, unit: WorkUnit) -> list[PartRows]:
        """The parts that may hold rows of a unit, the likeliest first."""
        with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="parts") as pool:
            found = pool.map(lambda place: self._cache.read(*place), self._places(unit))
            return [part for part in found if part is not None]

    def by_index(self, sha256: str) -> KnownRow | None:
        """A row of an image with these bytes, wherever it stands in the runs that are reused."""
        if not self._reused:
            return None
        with self._lock:
            if self._index is None:
                self._index = DigestIndex(self._output)
        for number, unit_id in self._index.find(sha256):
            run, terms = self._reused[number]
            part = self._cache.read(part_files.embeddings_uri(run.output, unit_id), terms)
            if part is not None and (row := part.by_digest(sha256)) is not None:
                return row
        return None

    def _places(self, unit: WorkUnit) -> Iterator[tuple[str, Terms]]:
        """(uri, terms) of the parts that may hold rows of a unit."""
        runs = zip(self._runs, self._read_neighbours(), strict=True)
        found = [(run, terms, neighbours.of(unit)) for (run, terms), neighbours in runs]
        replaced = dict(part_files.list_parts(storage.join(self._output, REPLACED))) if found[0][2] else {}
        for run, terms, unit_ids in found:
            for unit_id in unit_ids:
                yield part_files.embeddings_uri(run.output, unit_id), terms
                if run.output == self._output and unit_id in replaced:
                    yield replaced[unit_id], terms

    def _read_neighbours(self) -> list[Neighbours]:
        with self._lock:
            if self._neighbours is None:
                self._neighbours = [
                    read_neighbours(run.output, part_files.EMBEDDINGS, run.generation, self._read_manifests(run.output))
                    for run, _ in self._runs
                ]
            return self._neighbours

    def keep_replaced(self, unit: WorkUnit, new: pa.Table) -> None:
        """Before the part of a unit is written over: keep those of its rows whose images the new rows lack.

        Another unit may want them, whose records stood here before. They go when the run is complete.

        Args:
            unit: whose part is written over.
            new: its rows.

        Raises:
            OSError: if the storage refuses.
        """
        uri = part_files.embeddings_uri(self._output, unit.id)
        old = self._cache.read(uri, self._terms)
        held = set(new["sha256"].to_pylist())
        if old is None or held.issuperset(old.digests):
            return
        kept_uri = part_files.part_uri(self._output, REPLACED, unit.id)
        fitting = [one for one in (uri, kept_uri) if self._cache.read(one, self._terms) is not None]
        kept = [_read_part(one, [*COLUMNS, *self._terms.dimensions]) for one in fitting]
        parts = [part_files.take_rows(part, _lacking(part, held)) for part in kept if part is not None]
        if parts:
            part_files.write_rows(kept_uri, part_files.join_rows(parts))
            self._cache.forget(kept_uri)


def _lacking(part: pa.Table, held: Collection[str]) -> np.ndarray:
    """Positions of the rows whose digest is not in `held`."""
    return np.flatnonzero([sha256 not in held for sha256 in part["sha256"].to_pylist()])


def _read_part(uri: str, columns: Sequence[str]) -> pa.Table | None:
    """Some columns of a part; None where there is none, or it is damaged: then nothing of it can be kept."""
    try:
        return part_files.read_table(uri, columns)
    except (OSError, pa.ArrowException):
        return None


class FoundRows:
    """The rows that may be those of a unit's records: the `KnownRows` of one unit."""

    def __init__(self, finder: RowFinder, unit: WorkUnit) -> None:
        self._finder = finder
        self._unit = unit
        self._parts = finder.parts_of(unit)
        self._lock = threading.Lock()

    def by_digest(self, sha256: str) -> KnownRow | None:
        """A row of an image with these bytes."""
        if (recent := self._finder.recent.by_digest(sha256)) is not None:
            return recent
        row = self._in_parts(sha256)
        if row is None and self._look_again():
            row = self._in_parts(sha256)
        return row or self._finder.by_index(sha256)

    def _in_parts(self, sha256: str) -> KnownRow | None:
        found = (part.by_digest(sha256) for part in self._parts)
        return next((row for row in found if row is not None), None)

    def _look_again(self) -> bool:
        """Find the parts anew if one was written over since: its rows were kept elsewhere before. Whether that is so.

        The unit before is written only after this one was begun.
        """
        with self._lock:
            if not any(part.is_gone for part in self._parts):
                return False
            self._parts = self._finder.parts_of(self._unit)
            return True

    def by_file(self, uri: str, version: str) -> KnownRow | None:
        """A row of this version of a file."""
        found = (part.by_file(uri, version) for part in self._parts)
        return next((row for row in found if row is not None), None)
