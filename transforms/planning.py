"""Planning as a part of the pipeline: units reach the workers without passing through the job's graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from transforms.progress import PROGRESS
from transforms.shards import cut_shard, plan
from transforms.types import InputFormat, ReadOptions, Shard, WorkUnit


@dataclass
class PlanUnits(beam.PTransform):  # type: ignore[misc]
    """Patterns -> work units; element in: a tuple of patterns, element out: `WorkUnit`.

    Listing streams in one call; the shards it finds are spread over the workers, which cut them.

    Attributes:
        input_format: of every file, or None to go by the names.
        rows_per_unit: records in a unit at most.
        read: which columns hold what.
    """

    input_format: InputFormat | None
    rows_per_unit: int
    read: ReadOptions

    def expand(self, patterns: beam.PCollection) -> beam.PCollection:
        """List, spread, cut."""
        return (
            patterns
            | "List input" >> beam.FlatMap(plan, input_format=self.input_format, **self._settings())
            | "Spread shards" >> beam.Reshuffle()
            | "Cut shards" >> beam.FlatMap(_cut, rows_per_unit=self.rows_per_unit)
        )

    def _settings(self) -> dict[str, object]:
        return {"rows_per_unit": self.rows_per_unit, "options": self.read}


def _cut(item: Shard | WorkUnit, rows_per_unit: int) -> Iterator[WorkUnit]:
    for unit in cut_shard(item, rows_per_unit):
        PROGRESS.planned_more(unit.count)
        Metrics.counter("imagebeam", "records_planned").inc(unit.count)
        yield unit
