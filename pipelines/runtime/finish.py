"""Finish a run: reconcile its reports, clean up its parts, write the manifest and print the summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import apache_beam as beam

from pipelines.common.console import say
from pipelines.runtime.run_folder import RunFolder, read_run
from pipelines.runtime.summary import print_summary
from transforms import storage
from transforms.core.errors import JobError
from transforms.core.text import counted
from transforms.models.staged import delete_superseded
from transforms.readers.units import Note
from transforms.runs import lease, manifest
from transforms.runs.manifest import ModelFacts, Settled, Times, Totals, UnitReport
from transforms.runs.reports import delete_reports, read_reports
from transforms.runs.settle import settle
from transforms.runs.write_reports import WriteReports

_LINES_SHOWN = 20

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
    """The result of a run.

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


def _finish_in_job(files: list[int], run: Run) -> Run:
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
            f"{counted(totals.retryable, 'record')} could not be read because of the machine or the storage; the same "
            "command tries again"
        )
    if not totals.embedded:
        problems.append(f"there are no {parts}: no record became one")
    if totals.failure_rate > run.max_failure_rate:
        problems.append(
            f"{totals.failed:,} of {counted(totals.records, 'record')} failed ({totals.failure_rate:.2%}), more than "
            f"--max_failure_rate {run.max_failure_rate}"
        )
    previous = manifest.read_previous(output)
    lease.check(output)
    settled = Settled()
    if not problems:  # A run that went wrong replaces nothing.
        settled = settle(reports, output, parts, generation=run.folder.generation, previous=previous, prune=run.prune)
    elif beside := manifest.parts_beside(reports, output, parts):
        problems.append(
            f"{parts} holds {counted(beside, 'part')} more, of an earlier input or cut, which a run with a problem "
            f"neither replaces nor prunes: readers of the folder that do not go by {manifest.MANIFEST_FILE} read rows "
            "twice. Fix the other problems, and give the same command again"
        )
    if settled.kept:
        rows = sum(commit.embedded for commit in settled.kept)
        problems.append(
            f"the inputs of {counted(rows, 'row')} in {counted(len(settled.kept), 'part')} are not found any more, "
            f"such as {', '.join(settled.examples)}; the rows stay. --prune removes them"
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
    print_summary(totals, labels, problems, run.folder, settled, times.finished - times.started, notes, busy)
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
