"""What the launcher does around a job's chain: run it, reconcile what became of it, sum up."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from pipelines.common.console import ProgressBar, say
from pipelines.common.log import add_totals
from pipelines.options.extraction import OutputOptions
from pipelines.runtime.prepare import RunFolder, Source, read_run
from transforms import storage
from transforms.core.busy import describe
from transforms.core.errors import ImagebeamError, JobError
from transforms.core.labels import LabelCount
from transforms.core.progress import PROGRESS
from transforms.inputs.faults import ColumnTypeError
from transforms.inputs.types import Note
from transforms.models.staged import delete_superseded
from transforms.runs import lease, manifest, part_files
from transforms.runs.manifest import ModelFacts, Settled, Times, Totals, UnitReport
from transforms.runs.reports import delete_reports, new_reports_folder, read_reports
from transforms.runs.settle import settle
from transforms.runs.write_reports import WriteReports

if TYPE_CHECKING:
    from transforms.embed.units import EmbedUnits

_JAVA_FRAME = re.compile(r"\s*(at \S+\(|\.\.\. \d+ more)")

_COLUMN_TYPE_ERROR = re.compile(r"([a-z_]+\.)*ColumnTypeError: ")
"""How a runner hands on an error as text."""

_WHILE_RUNNING = re.compile(r" \[while running '[^']*'\]$")

_WORKER_LOST = "Channel closed prematurely"
"""What Beam's local runner says when one of its worker processes is gone."""

_LINES_SHOWN = 20
_NAMES_SHOWN = 3

_FORGOTTEN_SECONDS = 7 * 24 * 3600


@dataclass
class Run:
    """One run of a pipeline.

    Attributes:
        folder: what it writes to.
        staged: the model its workers load.
        pipeline: to fill; None on a worker.
        reports: folder of the unit reports.
        max_failure_rate: the largest share of the records that may fail, 0 to 1.
        started: seconds since 1970.
        detached: whether the launcher only describes the job, which runs without it: a template, or a dry run.
        prune: remove parts whose inputs are not found any more.
    """

    folder: RunFolder
    staged: ModelFacts
    pipeline: beam.Pipeline | None
    reports: str
    max_failure_rate: float
    started: float
    detached: bool
    prune: bool = False


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        totals: sums over all units, those of earlier runs too.
        problems: what did not reconcile or did not hold, one line each; empty for a good run.
    """

    totals: Totals
    problems: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0, or 3 where the run finished but a check did not hold."""
        return 3 if self.problems else 0


def open_pipeline(beam_args: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline with its runner: whatever is wrong with Beam's flags is told before anything is written.

    Raises:
        ImagebeamError: for flags that Beam refuses.
    """
    # DirectRunner would look for a Prism binary first and fetch it from the network.
    runner = [] if any(arg.split("=")[0] == "--runner" for arg in beam_args) else ["--runner=FnApiRunner"]
    try:
        return beam.Pipeline(options=PipelineOptions([*runner, *beam_args]))
    except ValueError as error:
        raise ImagebeamError(f"Beam does not take its flags: {error}") from error


@contextlib.contextmanager
def running(folder: RunFolder, staged: ModelFacts, pipeline: beam.Pipeline, options: OutputOptions) -> Iterator[Run]:
    """A pipeline to fill, `Finish` last; it runs when the block ends, with progress shown.

    Raises:
        JobError: if the output cannot be written, or the runner gives up. What is committed stays.
        ImagebeamError: if a worker finds the input to be other than what was looked at before the run.
    """
    values = pipeline.options.get_all_options()
    detached = bool(values["template_location"] or values["dry_run"])
    try:
        manifest.set_aside(folder.output)
        reports = new_reports_folder(folder.output, None if detached else lease.token(folder.output))
        for token in lease.tokens_gone(folder.output):
            storage.delete_folder(new_reports_folder(folder.output, token))
    except OSError as error:
        raise JobError(f"The output cannot be written: {error}. {folder.how_to_go_on()}") from error
    run = Run(folder, staged, pipeline, reports, options.max_failure_rate, time.time(), detached, options.prune)
    PROGRESS.reset()
    yield run
    # Beam logs the traceback of what it raises too; --debug prints it.
    for name in ("common", "portability.fn_api_runner.worker_handlers"):
        logging.getLogger(f"apache_beam.runners.{name}").setLevel(logging.CRITICAL)
    try:
        with ProgressBar(folder.count_committed):
            result = pipeline.run()
            state = None if detached else result.wait_until_finish()
    except Exception as error:
        if interrupt := _interrupt_behind(error):
            raise interrupt from error
        line = _last_line(error)
        if isinstance(error, ColumnTypeError) or _COLUMN_TYPE_ERROR.match(line):
            wrong = _WHILE_RUNNING.sub("", _COLUMN_TYPE_ERROR.sub("", line))
            raise ImagebeamError(f"{wrong}. {folder.how_to_go_on(' with that type')}") from error
        if isinstance(error, ImagebeamError):
            raise
        raise JobError(f"{line}. {folder.how_to_go_on()}") from error
    if state not in (None, PipelineState.DONE):
        raise JobError(f"The runner ended the job as {state}. {folder.how_to_go_on()}")


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """What Beam made an error of its own of: somebody's Control-C, or SIGTERM."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return type(error)() if error is not None else None


def _last_line(error: Exception) -> str:
    """Beam hands a worker's error over as the text of its traceback, whose last line says what happened.

    From a cluster it comes inside Java's own traceback.
    """
    if _WORKER_LOST in str(error):
        return "A worker process ended before its work did: it was killed, or the machine ran out of memory"
    lines = [line for line in str(error).splitlines() if line.strip() and not _JAVA_FRAME.match(line)]
    return lines[-1].strip().rstrip(".") if lines else repr(error)


@dataclass
class Finish(beam.PTransform):  # type: ignore[misc]
    """`UnitReport`s -> files that `finish` reads; of a job that no launcher waits for, its last step finishes it."""

    run: Run

    def expand(self, reports: beam.PCollection) -> beam.PCollection:
        """Write, and where nobody waits, wait for all files and finish."""
        files = reports | "Write reports" >> WriteReports(self.run.reports)
        if not self.run.detached:
            return files
        run = replace(self.run, pipeline=None, detached=False)
        return (
            files
            | "All" >> beam.combiners.ToList()
            | "Reconcile" >> beam.Map(_finish_in_job, run=run)
            # A stage of its own: a worker lost here is no reason to reconcile again, without the reports.
            | "Finished" >> beam.Reshuffle()
            | "Clean up" >> beam.Map(_clean_up)
        )


def _finish_in_job(files: list[str], run: Run) -> Run:
    """Fails the job for what makes a launcher end with exit code 3.

    Raises:
        JobError: naming the problems.
    """
    del files
    run = replace(run, folder=read_run(run.folder))
    if problems := _reconcile(run).problems:
        raise JobError("; ".join(problems))  # the reports stay: a runner tries again what failed
    return run


def _clean_up(run: Run) -> None:
    """Delete this run's reports, and what others left long ago: reports, when killed at their end, and models."""
    storage.delete_folder(run.reports)
    delete_reports(run.folder.output, older_than=_FORGOTTEN_SECONDS)
    delete_superseded(run.folder.model, run.staged.files, older_than=_FORGOTTEN_SECONDS)


def work_images(
    source: Source,
    units: EmbedUnits,
    label: str,
    folder: RunFolder,
    staged: ModelFacts,
    pipeline: beam.Pipeline,
    options: OutputOptions,
) -> Result:
    """Plan the units of an input, work each, and finish the run.

    Args:
        source: the input.
        units: what is done to a unit.
        label: of that step.
        folder: of the run.
        staged: the model.
        pipeline: as `open_pipeline` gives it.
        options: units, and what a run must not fail.

    Raises:
        JobError: as `running` and `finish`.
    """
    from transforms.inputs.plan_units import PlanUnits  # reads every format, which labelling vectors does not

    with running(folder, staged, pipeline, options) as run:
        _ = (
            run.pipeline
            | "Patterns" >> beam.Create([source.patterns])
            | "Plan units" >> PlanUnits(source.input_format, options.rows_per_unit, source.read, folder.cuts)
            | label >> units
            | "Finish" >> Finish(run)
        )
    return finish(run)


def finish(run: Run) -> Result:
    """Reconcile, remove what is superseded, write the manifest, print the summary; nothing for a detached run."""
    if run.detached:
        uri = storage.join(run.folder.output, manifest.MANIFEST_FILE)
        say(f"The job is described, not run. Where it runs, its last step reconciles it and writes {uri}.")
        return Result(Totals(), ())
    try:
        result = _reconcile(run)
        _clean_up(run)
    except OSError as error:
        raise JobError(f"The run cannot be reconciled: {error}. {run.folder.how_to_go_on()}") from error
    return result


def _reconcile(run: Run) -> Result:
    output, parts = run.folder.output, run.folder.parts
    reports, notes = _read_reports(run)
    problems = manifest.reconcile(reports, output, parts)
    totals = manifest.sum_up(reports)
    problems += _shown(manifest.describe_unread(reports))
    if totals.retryable:
        problems.append(
            f"{totals.retryable:,} records could not be read, and not for what they hold; the same command tries them "
            "again"
        )
    if not totals.embedded:
        problems.append(f"no {parts}: not one record became one")
    if totals.failure_rate > run.max_failure_rate:
        problems.append(
            f"{totals.failed:,} of {totals.records:,} records failed ({totals.failure_rate:.2%}), more than "
            f"--max_failure_rate {run.max_failure_rate}"
        )
    previous = manifest.read_previous(output)
    lease.check(output)
    settled = Settled()
    if not problems:  # A run that went wrong replaces nothing.
        settled = settle(reports, output, parts, generation=run.folder.generation, previous=previous, prune=run.prune)
    if settled.kept:
        rows = sum(commit.embedded for commit in settled.kept)
        problems.append(
            f"the inputs of {rows:,} rows in {len(settled.kept):,} parts are not found any more, such as "
            f"{', '.join(settled.examples)}; the rows stay. --prune removes them"
        )
    times = Times(run.started, time.time())
    content = manifest.write_manifest(
        output,
        run.folder.run,
        run.staged,
        reports,
        folder=parts,
        generation=run.folder.generation,
        settled=settled,
        times=times,
        previous=previous,
        notes=notes,
    )
    labels = manifest.sum_up_labels(reports)
    busy = content["timings"].get("busy")
    _print_summary(totals, labels, problems, run.folder, settled, times.finished - times.started, notes, busy)
    return Result(totals, tuple(problems))


def _shown(lines: list[str]) -> list[str]:
    """The first of many lines."""
    more = len(lines) - _LINES_SHOWN
    return [*lines[:_LINES_SHOWN], *([f"{more:,} more like that: see manifest.json"] if more > 0 else [])]


def _read_reports(run: Run) -> tuple[list[UnitReport], list[Note]]:
    """All of the run's reports, and the notes on its input.

    Raises:
        JobError: if a file of them is missing; parts that no report names would be taken for superseded.
    """
    try:
        return read_reports(run.reports)
    except FileNotFoundError as error:
        raise JobError(f"{error}. {run.folder.how_to_go_on()}") from error


def _print_summary(
    totals: Totals,
    labels: LabelCount,
    problems: list[str],
    folder: RunFolder,
    settled: Settled,
    seconds: float,
    notes: list[Note],
    busy: Mapping[str, float] | None,
) -> None:
    fresh = totals.units - totals.units_skipped
    counts = {
        "records": totals.records,
        folder.parts: totals.embedded,
        "reused": totals.reused,
        "equal": totals.equal,
        "failed": totals.failed,
        "failures": dict(totals.failures),
        "units": totals.units,
        "units_skipped": totals.units_skipped,
        "problems": len(problems),
        "seconds": round(seconds, 3),
        "busy": None if busy is None else dict(busy),
    }
    add_totals(**counts)
    if totals.units and not fresh:
        say(f"Nothing to do: all {totals.units:,} units were committed before; no model was loaded.")
    say(
        f"{totals.embedded:,} {folder.parts} and {totals.failed:,} failures from {totals.records:,} records in "
        f"{seconds:,.1f} s ({fresh:,} units now, {totals.units_skipped:,} before)",
        counts,
    )
    if totals.reused or totals.equal:
        say(f"  vectors taken over from earlier parts: {totals.reused:,}; copied from equal images: {totals.equal:,}")
    if fresh and busy is not None:
        say(f"  {describe(busy)}")
    if totals.embedded and folder.parts == part_files.EMBEDDINGS:
        say(f"  {labels.describe()}")
    for kind, count in list(totals.failures.items())[:10]:
        say(f"  failed at {kind.replace('/', ': ')}: {count:,}")
    if totals.worked_again:
        say(f"  tried again because the machine had been at fault: {totals.worked_again:,}")
    for left_out in manifest.sum_up_notes(notes):
        names = ", ".join(left_out["names"][:_NAMES_SHOWN])
        say(f"  left out, {left_out['kind']}: {left_out['count']:,}{f' ({names})' if names else ''}")
    if totals.icc_profiles_ignored:
        say(f"  ICC colour profiles ignored: {totals.icc_profiles_ignored:,}")
    if settled.superseded:
        say(f"  parts of changed input removed: {settled.superseded:,}")
    if settled.pruned:
        say(f"  parts of missing input removed: {settled.pruned:,}")
    say(f"  {storage.join(folder.output, folder.parts)}")
    say(f"  {storage.join(folder.output, manifest.MANIFEST_FILE)}")
    for problem in problems:
        say(f"PROBLEM: {problem}")
