"""Work units -> parts, whatever their rows are: what is committed is skipped, what failed can be worked again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from transforms.core.errors import ImagebeamError
from transforms.core.progress import PROGRESS
from transforms.core.spec import EmbedderSpec
from transforms.core.types import Failure, Row
from transforms.inputs.types import Note, WorkUnit
from transforms.runs import part_files
from transforms.runs.manifest import UnitReport
from transforms.runs.part_files import Commit

METRICS_NAMESPACE = "imagebeam"


class UnitModel(Protocol):
    """What the vectors of rows come from.

    Attributes:
        spec: goes into the footer of every part.
        dimensions: column name -> vector length.
    """

    spec: EmbedderSpec
    dimensions: dict[str, int]


class UnitModelSource(Protocol):
    """Whatever can give the model to a worker; it knows what the model will say of itself."""

    @property
    def spec(self) -> EmbedderSpec:
        """Of the model."""

    @property
    def dimensions(self) -> dict[str, int]:
        """Column name -> vector length."""

    def load(self) -> UnitModel:
        """Load it; called once a process."""


@dataclass
class UnitResult:
    """What became of the records: rows and failures, each in the order of the input."""

    rows: list[Row]
    failures: list[Failure]
    icc_profiles_ignored: int = 0


class UnitWork(Protocol):
    """How a unit's records become rows."""

    def setup(self) -> None:
        """Prepare a worker; called before anything else there."""

    def read(self, unit: WorkUnit) -> Iterable[Any]:
        """`unit.count` items, each with a `key`."""

    def work(self, items: Iterable[Any], model: Any) -> UnitResult:
        """Each item ends as one row or one failure.

        Raises:
            Exception: where the machine is at fault rather than an item; nothing is committed then.
        """


class PartLayout(Protocol):
    """What a part's rows look like."""

    @property
    def folder(self) -> str:
        """Which folder of the run holds the parts."""

    def refuse(self, rows: Sequence[Row]) -> tuple[list[Row], list[Failure]]:
        """The rows that can be stored, and a failure for each that cannot."""

    def to_table(self, rows: Sequence[Row], dimensions: dict[str, int]) -> pa.Table:
        """The rows of a part."""


@dataclass
class CommitUnits(beam.PTransform):  # type: ignore[misc]
    """Work units -> parts under `output`; element in: `WorkUnit`, element out: `UnitReport`. A `Note` passes.

    A unit is read, worked and written inside one DoFn: only units and reports cross stage boundaries. A unit whose
    part is there already, of the same version, is skipped.

    Attributes:
        model: gives the model to a worker process, once.
        output: the run's folder.
        work: how records become rows.
        layout: how rows are stored.
        retry_failed: work the failed records of committed units again; those that failed through the machine's fault
            are worked again always.
        generation: of the run; a part of another one is not committed.
    """

    model: UnitModelSource
    output: str
    work: UnitWork
    layout: PartLayout
    retry_failed: bool = False
    generation: str = ""

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Spread the units over the workers, and work each."""
        return units | "Spread units" >> beam.Reshuffle() | "Commit unit" >> beam.ParDo(_CommitUnit(self))


class _CommitUnit(beam.DoFn):  # type: ignore[misc]
    def __init__(self, job: CommitUnits) -> None:
        self._job = job
        self._shared = Shared()
        self._expected: pa.Schema | None = None

    def setup(self) -> None:
        self._job.work.setup()

    def process(self, unit: WorkUnit | Note) -> Iterator[UnitReport | Note]:
        if isinstance(unit, Note):
            yield unit
            return
        job = self._job
        uri = part_files.part_uri(job.output, job.layout.folder, unit.id)
        done, schema = part_files.read_part_footer(uri) or (None, None)
        if done is not None and (done.version, done.generation) != (unit.version, job.generation):
            done = None
        if done is not None:
            done = self._as_laid_out(done, schema, uri)
            done = part_files.with_failures(job.output, done)
        retried = done is not None and (done.retryable or (job.retry_failed and done.failed))
        if done is not None and not retried and (done.failures_file or not done.failed):
            PROGRESS.skipped(unit.count)
            Metrics.counter(METRICS_NAMESPACE, "units_skipped").inc()
            yield UnitReport(unit.count, done, skipped=True)
            return
        again = 0 if done is None else done.retryable
        _tally.images, _tally.seconds = 0, 0.0
        commit = self._work(unit, done)
        yield UnitReport(
            unit.count,
            commit,
            skipped=False,
            worked_again=again,
            images=_tally.images,
            model_seconds=_tally.seconds,
        )

    def _as_laid_out(self, done: Commit, found: pa.Schema, uri: str) -> Commit:
        """A part of this run's spec and layout; one whose kept columns have narrower types is written again.

        Raises:
            ImagebeamError: naming what differs.
        """
        job = self._job
        if done.fingerprint != job.model.spec.fingerprint:
            differences = "; ".join(part_files.read_spec(uri).differences(job.model.spec))
            raise ImagebeamError(f"{uri} holds rows of another spec ({differences}). Choose another output folder.")
        if self._expected is None:
            self._expected = part_files.stored_schema(job.layout.to_table([], job.model.dimensions))
        if not found.equals(self._expected) and part_files.can_widen(found, self._expected):
            layout = job.layout.to_table([], job.model.dimensions).schema
            return part_files.widen_part(job.output, job.layout.folder, done.unit_id, layout)
        if not found.equals(self._expected):
            mine, theirs = set(map(str, self._expected)), set(map(str, found))
            raise ImagebeamError(
                f"{uri} has other columns than this run writes ({', '.join(sorted(theirs - mine))} for "
                f"{', '.join(sorted(mine - theirs))}). Choose another output folder."
            )
        return done

    def _work(self, unit: WorkUnit, retried: Commit | None) -> Commit:
        job = self._job
        model = self._model()
        items = job.work.read(unit)
        keys: list[str] = []
        if retried is not None:
            old = part_files.read_table(part_files.part_uri(job.output, job.layout.folder, unit.id))
            items = _except(set(old["key"].to_pylist()), items, keys)
        result = job.work.work(items, model)
        result.rows, refused = job.layout.refuse(result.rows)
        result.failures += refused
        table = job.layout.to_table(result.rows, model.dimensions)
        if retried is not None:
            table = _merge(old, table, keys)
            result.icc_profiles_ignored += retried.icc_profiles_ignored
            PROGRESS.skipped(unit.count - len(result.rows) - len(result.failures))
        started = time.perf_counter()
        commit = part_files.write_unit(
            job.output,
            unit,
            table,
            result.failures,
            model.spec,
            icc_profiles_ignored=result.icc_profiles_ignored,
            folder=job.layout.folder,
            generation=job.generation,
        )
        self._count_unit(result, time.perf_counter() - started)
        return commit

    def _model(self) -> UnitModel:
        def load() -> UnitModel:
            started = time.perf_counter()
            model = self._job.model.load()
            milliseconds = round((time.perf_counter() - started) * 1000)
            Metrics.distribution(METRICS_NAMESPACE, "load_model_latency_milli_secs").update(milliseconds)
            return model

        model: UnitModel = self._shared.acquire(load)
        self._loaded = model  # Beam holds shared objects by weak reference
        return model

    @staticmethod
    def _count_unit(result: UnitResult, write_seconds: float) -> None:
        PROGRESS.failed(len(result.failures))
        for failure in result.failures:
            Metrics.counter(METRICS_NAMESPACE, f"failures_{failure.stage}").inc()
        Metrics.counter(METRICS_NAMESPACE, "icc_profiles_ignored").inc(result.icc_profiles_ignored)
        Metrics.counter(METRICS_NAMESPACE, "units_committed").inc()
        Metrics.distribution(METRICS_NAMESPACE, "part_write_milli_secs").update(round(write_seconds * 1000))


_tally = threading.local()
"""What the unit in work has cost: a unit is worked by one thread from its start to its end."""


def count_batch(rows: int, seconds: float) -> None:
    """Count one call of the model: progress, and the counters Beam's RunInference has under the same names."""
    PROGRESS.embedded(rows, seconds)
    _tally.images = getattr(_tally, "images", 0) + rows
    _tally.seconds = getattr(_tally, "seconds", 0.0) + seconds
    Metrics.counter(METRICS_NAMESPACE, "num_inferences").inc(rows)
    Metrics.distribution(METRICS_NAMESPACE, "inference_request_batch_size").update(rows)
    Metrics.distribution(METRICS_NAMESPACE, "inference_batch_latency_micro_secs").update(round(seconds * 1e6))


def _except(done: set[str], items: Iterable[Any], keys: list[str]) -> Iterator[Any]:
    """The items that are not done; the keys of all of them, in order, go to `keys`."""
    for item in items:
        keys.append(item.key)
        if item.key not in done:
            yield item


def _merge(old: pa.Table, new: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Rows of both tables in the order of `keys`."""
    table = pa.concat_tables([old.cast(new.schema), new])  # Parquet gives the items of lists another name
    positions = pc.index_in(table["key"], value_set=pa.array(keys, pa.string()))
    return table.take(pc.sort_indices(positions)).combine_chunks()
