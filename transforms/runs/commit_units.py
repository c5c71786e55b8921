"""Commit work units as Parquet parts, skipping those already committed."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from transforms.core.busy import ALL, Busy
from transforms.core.errors import ImagebeamError
from transforms.core.progress import PROGRESS
from transforms.core.spec import EmbedderSpec
from transforms.core.types import Failure, Row, Unread
from transforms.inputs.plan_units import count_planned
from transforms.inputs.uncut_shards import UncutShards
from transforms.parts import part_files
from transforms.parts.part_files import Commit
from transforms.parts.row_notes import row_note
from transforms.readers.units import Note, UnitChain, WorkUnit
from transforms.reuse.digest_index import ReusedRun
from transforms.reuse.find_rows import RowFinder
from transforms.reuse.known_rows import Conditions, KnownRows, Terms
from transforms.runs.manifest import UnitReport, read_manifests
from transforms.runs.retries import Retries

METRICS_NAMESPACE = "imagebeam"

T = TypeVar("T")


class UnitModel(Protocol):
    """What the vectors of rows come from.

    Attributes:
        spec: goes into the footer of every part.
        dimensions: column name -> vector length.
    """

    spec: EmbedderSpec
    dimensions: dict[str, int]


class UnitModelSource(Protocol):
    """A source of the model for workers that knows its spec and dimensions."""

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
    """The rows and failures of a unit's records, each in the order of the input.

    Attributes:
        rows: of the records that have a vector.
        failures: the others.
        icc_profiles_ignored: images that carried an ICC profile, which was not applied.
        reused: rows whose vectors were taken over.
        equal: rows whose images are those of other rows that were made a moment ago.
        busy: seconds by stage, as `core.busy` counts them; None where nobody did.
    """

    rows: list[Row]
    failures: list[Failure]
    icc_profiles_ignored: int = 0
    reused: int = 0
    equal: int = 0
    busy: dict[str, float] | None = None


class UnitWork(Protocol):
    """How a unit's records become rows."""

    @property
    def conditions(self) -> Conditions | None:
        """What decides beside the spec which records become rows; None where no row is taken over."""

    def knowing(self, known: KnownRows) -> UnitWork:
        """The same work, which takes rows over from those known."""

    def setup(self) -> None:
        """Prepare a worker; called before anything else there."""

    def read(self, unit: WorkUnit) -> Iterable[Any]:
        """`unit.count` items, each with a `key`."""

    def begin(self, items: Iterable[Any], model: Any, after: BegunUnit | None) -> BegunUnit:
        """Begin with a unit's items.

        Args:
            items: that `read` gave.
            model: what their vectors come from.
            after: the unit that this process began before and has not finished, if there is one.
        """


class BegunUnit(Protocol):
    """A unit at work."""

    def finish(self) -> UnitResult:
        """Wait for its items; each ends as one row or one failure.

        Raises:
            Exception: where the machine is at fault rather than an item; nothing is committed then.
        """

    def settle(self) -> None:
        """Its rows are where `KnownRows` finds them."""

    def close(self) -> None:
        """Stop, wherever it is; no error if it has ended."""


@dataclass(frozen=True)
class NotBegun(BegunUnit):
    """A unit whose work is all done when it is finished."""

    work: Callable[[], UnitResult]

    def finish(self) -> UnitResult:
        """Do it."""
        return self.work()

    def settle(self) -> None:
        """Nobody waits for that."""

    def close(self) -> None:
        """There is nothing to stop."""


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
    """Work units and commit them as parts under `output`.

    Elements in: `WorkUnit`, `UnitChain`, `UncutShards`; element out: `UnitReport`. A `Note` passes.

    A unit is read, worked and written inside one DoFn: only units and reports cross stage boundaries. A unit whose
    part is there already, of the same version, is skipped. Reports are in the global window.

    Attributes:
        model: gives the model to a worker process, once.
        output: the run's folder.
        work: how records become rows.
        layout: how rows are stored.
        retry_failed: work all failed records of committed units again, also those of which `Retries` expects nothing.
        generation: of the run; a part of another one is not committed.
        reuse: other runs of the same spec and layout whose rows are taken over.
    """

    model: UnitModelSource
    output: str
    work: UnitWork
    layout: PartLayout
    retry_failed: bool = False
    generation: str = ""
    reuse: tuple[ReusedRun, ...] = ()

    @property
    def conditions(self) -> Conditions | None:
        """As `UnitWork.conditions`, of embeddings alone: a part of predictions does not hold all of their vectors."""
        return self.work.conditions if self.layout.folder == part_files.EMBEDDINGS else None

    @property
    def retries(self) -> Retries:
        """Which committed units are worked again."""
        return Retries(self.output, self.conditions, self.retry_failed)

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Spread the units over the workers, and work each."""
        units = units | "Global window" >> beam.WindowInto(GlobalWindows())  # A bundle's last report has no window.
        return units | "Spread units" >> beam.Reshuffle() | "Commit unit" >> beam.ParDo(_CommitUnit(self))


@dataclass
class _Pending:
    """A unit that was begun, and what its part and its report need.

    Attributes:
        unit: the unit.
        retried: its part, of which only the failed records are worked again.
        replaces: whether a part of another version is written over.
        model: what the vectors come from.
        finder: where its rows may stand already; None where none is taken over.
        started: in seconds of the performance counter.
        begun: its items, on their way.
        old: rows of `retried`.
        keys: of all items in order, where `retried`.
    """

    unit: WorkUnit
    retried: Commit | None
    replaces: bool
    model: UnitModel
    finder: RowFinder | None
    started: float
    begun: BegunUnit
    old: pa.Table | None
    keys: list[str]


class _CommitUnit(beam.DoFn):  # type: ignore[misc]
    """Begins each unit before it finishes the one before, so that the model need not wait for a unit's first images.

    The report of a bundle's last unit comes when the bundle ends.
    """

    def __init__(self, job: CommitUnits) -> None:
        self._job = job
        self._shared = Shared()
        self._shared_finder = Shared()
        self._expected: pa.Schema | None = None
        self._pending: _Pending | None = None
        self._finished = 0.0

    def setup(self) -> None:
        self._job.work.setup()

    def start_bundle(self) -> None:
        self._drop()  # what a bundle that broke off left

    def process(self, item: WorkUnit | UnitChain | UncutShards | Note) -> Iterator[UnitReport | Note]:
        with contextlib.closing(_units_of(item)) as units:
            while (unit := self._or_break_off(lambda: next(units, None))) is not None:
                if isinstance(unit, Note):
                    yield unit
                    continue
                before = self._pending
                begun = self._or_break_off(functools.partial(self._begin, unit))
                del unit  # It may hold what was inflated.
                if isinstance(begun, UnitReport):
                    yield begun
                    continue
                self._pending = begun
                if before is not None:
                    yield self._report(before)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        last, self._pending = self._pending, None
        if last is not None:
            yield GlobalWindows.windowed_value(self._report(last))

    def teardown(self) -> None:
        self._drop()

    def _drop(self) -> None:
        if self._pending is not None:
            self._pending.begun.close()
            self._pending = None

    def _or_break_off(self, step: Callable[[], T]) -> T:
        """Go on; where that fails the unit before gets its part all the same."""
        try:
            return step()
        except Exception:
            before, self._pending = self._pending, None
            if before is not None:
                self._report(before)
            raise

    def _report(self, pending: _Pending) -> UnitReport:
        """Finish a unit: where that fails, the one after it is given up too."""
        try:
            return self._finish(pending)
        except BaseException:
            self._drop()
            raise
        finally:
            pending.begun.close()

    def _begin(self, unit: WorkUnit) -> UnitReport | _Pending:
        """Begin to work a unit, unless its part is there."""
        job = self._job
        uri = part_files.part_uri(job.output, job.layout.folder, unit.id)
        try:
            done, schema = part_files.read_part_footer(uri) or (None, None)
            replaces = done is not None
        except part_files.MisnamedPartError as error:
            if not error.is_copy():  # Its rows may be the only ones of their inputs.
                raise
            done, schema, replaces = None, None, False
        if done is not None and (done.version, done.generation) != (unit.version, job.generation):
            done = None
        if done is not None and job.conditions is not None and job.conditions.rule_out(done.conditions):
            done = None
        if done is not None:
            done = self._as_laid_out(done, schema, uri)
            done = part_files.with_failures(job.output, done)
        if done is not None and not job.retries.are_due(done, unit):
            PROGRESS.skipped(unit.count)
            Metrics.counter(METRICS_NAMESPACE, "units_skipped").inc()
            return UnitReport(unit.count, done, skipped=True)
        model = self._model()
        started = time.perf_counter()
        finder = self._finder(model)
        work = job.work if finder is None else job.work.knowing(finder.of(unit))
        items = work.read(unit)
        keys: list[str] = []
        old = None
        if done is not None:
            old = part_files.read_table(uri)
            items = _except(set(old["key"].to_pylist()), items, keys)
        begun = work.begin(items, model, None if self._pending is None else self._pending.begun)
        return _Pending(unit, done, replaces and done is None, model, finder, started, begun, old, keys)

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

    def _finish(self, pending: _Pending) -> UnitReport:
        """Make a unit's part."""
        job, unit, retried, finder = self._job, pending.unit, pending.retried, pending.finder
        _tally.images, _tally.seconds = 0, 0.0
        result = pending.begun.finish()
        result.rows, refused = job.layout.refuse(result.rows)
        result.failures += refused
        if retried is not None and pending.old is not None:
            told = pending.old.num_rows + len(result.rows) + len(result.failures)
            result.failures = _without_done(result.failures, told - unit.count)
        table = job.layout.to_table(result.rows, pending.model.dimensions)
        if finder is not None:
            table = part_files.note_rows(table, _notes(unit, result.rows))
        if retried is not None:
            table = _merge(pending.old, table, pending.keys)
            result.icc_profiles_ignored += retried.icc_profiles_ignored
            PROGRESS.skipped(unit.count - len(result.rows) - len(result.failures))
        if finder is not None and pending.replaces:
            finder.keep_replaced(unit, table)
        write_started = time.perf_counter()
        commit = part_files.write_unit(
            job.output,
            unit,
            table,
            result.failures,
            pending.model.spec,
            icc_profiles_ignored=result.icc_profiles_ignored,
            folder=job.layout.folder,
            generation=job.generation,
            conditions=None if job.conditions is None else job.conditions.to_dict(),
        )
        if finder is not None:
            finder.recent.add(result.rows)
        pending.begun.settle()
        ended = time.perf_counter()
        if result.busy is not None:
            whole = ended - max(pending.started, self._finished)
            result.busy |= {Busy.WRITING: ended - write_started, ALL: whole}
            result.busy = {stage: round(seconds, 4) for stage, seconds in result.busy.items()}
        self._finished = ended
        self._count_unit(result, ended - write_started)
        return UnitReport(
            unit.count,
            commit,
            skipped=False,
            worked_again=0 if retried is None else retried.retryable,
            images=_tally.images,
            model_seconds=_tally.seconds,
            reused=result.reused,
            equal=result.equal,
            busy=result.busy,
        )

    def _finder(self, model: UnitModel) -> RowFinder | None:
        """Where rows are looked for; None where none is taken over."""
        job, conditions = self._job, self._job.conditions
        if conditions is None:
            return None
        schema = job.layout.to_table([], model.dimensions).schema
        value = next(schema.field(name).type.value_type for name in model.dimensions)
        terms = Terms(model.spec.fingerprint, job.generation, conditions, model.dimensions, value)
        finder: RowFinder = self._shared_finder.acquire(lambda: RowFinder(job.output, terms, read_manifests, job.reuse))
        self._found_by = finder  # Beam holds shared objects by weak reference
        return finder

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
        PROGRESS.skipped(result.reused + result.equal)
        for failure in result.failures:
            Metrics.counter(METRICS_NAMESPACE, f"failures_{failure.stage}").inc()
        Metrics.counter(METRICS_NAMESPACE, "icc_profiles_ignored").inc(result.icc_profiles_ignored)
        Metrics.counter(METRICS_NAMESPACE, "rows_reused").inc(result.reused)
        Metrics.counter(METRICS_NAMESPACE, "equal_images").inc(result.equal)
        Metrics.counter(METRICS_NAMESPACE, "units_committed").inc()
        Metrics.distribution(METRICS_NAMESPACE, "part_write_milli_secs").update(round(write_seconds * 1000))


def _units_of(item: WorkUnit | UnitChain | UncutShards | Note) -> Generator[WorkUnit | Note, None, None]:
    if isinstance(item, UnitChain):
        yield from item.units
    elif isinstance(item, UncutShards):
        for found in item.units():
            if not isinstance(found, Note):
                count_planned(found)
            yield found
    else:
        yield item


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


def _without_done(failures: Sequence[Failure], surplus: int) -> list[Failure]:
    """The failures of a unit that was worked again, less those of records that have a row.

    Where a tar breaks off earlier than before, its samples behind that do not tell their names, by which they would be
    known to be done. So as many are left out as are too many, the first of them.

    Args:
        failures: of all records of the unit that have no row by their key.
        surplus: by how many rows and failures are more than the unit's records.
    """
    kept = list(failures)
    while surplus > 0 and (found := next((one for one in enumerate(kept) if one[1].unread), None)):
        place, first = found
        following = kept[place + 1] if place + 1 < len(kept) else None
        if following is not None and following.unread is None and following.message == first.message:
            kept[place + 1] = replace(following, unread=_less_one(first.unread))
        del kept[place]
        surplus -= 1
    return kept


def _less_one(unread: Unread | None) -> Unread | None:
    return unread and replace(unread, records=unread.records and unread.records - 1)


def _notes(unit: WorkUnit, rows: Sequence[Row]) -> list[int]:
    versions = unit.file_versions
    return [row_note(versions.get(row.key), icc_profile_ignored=row.icc_profile_ignored) for row in rows]


def _merge(old: pa.Table, new: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Rows of both tables in the order of `keys`."""
    stored = old.cast(new.schema.remove_metadata())  # Parquet gives the items of lists another name.
    table = part_files.join_rows([new, stored.replace_schema_metadata(old.schema.metadata)])
    positions = pc.index_in(table["key"], value_set=pa.array(keys, pa.string()))
    return part_files.take_rows(table, pc.sort_indices(positions).to_numpy()).combine_chunks()
