"""What the launcher does around a job's chain: check input and output, stage the model, run, reconcile, sum up."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from pipelines.console import ProgressBar, say
from pipelines.options import InputOptions, ModelOptions, OutputOptions
from transforms import manifest, parquet, shards, storage
from transforms.classifier_folder import ResultFile
from transforms.embedder import Embedder, resolve
from transforms.errors import ImagebeamError, JobError
from transforms.formats import InputFormat
from transforms.manifest import ModelFacts, Totals, UnitReport
from transforms.progress import PROGRESS
from transforms.reports import WriteReports as WriteReports
from transforms.reports import read_reports
from transforms.spec import EmbedderSpec
from transforms.staging import MODEL_FILE, SPEC_FILE, StagedModel, file_sha256, read_staged, stage
from transforms.types import ReadOptions
from transforms.weights import is_file

RUN_FILE = "run.json"
_REPORTS = "reports"


@dataclass(frozen=True)
class Source:
    """The input, looked at: every pattern matches something, and the columns are there."""

    patterns: tuple[str, ...]
    input_format: InputFormat | None
    read: ReadOptions

    def describe(self) -> dict[str, Any]:
        """In JSON terms, for run.json."""
        return {
            "input": list(self.patterns),
            "input_format": self.input_format or "auto",
            "image_column": self.read.image_column,
            "label_column": self.read.label_column,
            "keep_columns": {name: str(kind) for name, kind in self.read.keep_columns},
        }


class Described(Protocol):
    """What a run reads, and all else that decides its rows but for the model and the flags of the output."""

    def describe(self) -> dict[str, Any]:
        """In JSON terms."""


@dataclass(frozen=True)
class RunFolder:
    """The output folder, found fit for this run.

    Attributes:
        output: absolute.
        run: what makes two runs the same but for the model.
        parts: the folder below that holds the parts; also what their rows are called.
    """

    output: str
    run: dict[str, Any]
    parts: str = parquet.EMBEDDINGS

    @property
    def model(self) -> str:
        """Where the model is staged."""
        return storage.join(self.output, "model")


@dataclass
class Run:
    """One run of a pipeline.

    Attributes:
        folder: what it writes to.
        staged: the model its workers load.
        pipeline: to fill; None on a worker.
        reports: folder of the unit reports.
        started: seconds since 1970.
        detached: whether the launcher only describes the job, which runs without it: a template, or a dry run.
    """

    folder: RunFolder
    staged: ModelFacts
    pipeline: beam.Pipeline | None
    reports: str
    started: float
    detached: bool


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


def open_input(options: InputOptions) -> Source:
    """Look at the input before anything runs.

    Raises:
        ImagebeamError: for a pattern without matches, or a column the first shard does not have.
    """
    patterns = tuple(storage.absolute(pattern) for pattern in options.input)
    read = shards.inspect_input(patterns, options.input_format, options.read_options())
    return Source(patterns, options.input_format, read)


def prepare_output(options: OutputOptions, source: Described, parts: str = parquet.EMBEDDINGS) -> RunFolder:
    """Check that the output is empty, or holds an earlier attempt at this very run; empty it if asked to.

    Args:
        options: which folder, and how rows are stored.
        source: what is read.
        parts: see `RunFolder`.

    Raises:
        ImagebeamError: naming what differs from the run the folder holds, or a file in it that no run wrote, or why
            the folder cannot be written.
    """
    try:
        folder = check_output(options, source, parts)
        if options.overwrite:
            _empty(folder.output)
        storage.publish(storage.join(folder.output, RUN_FILE), json.dumps(folder.run, indent=2).encode())
        for name in (parts, parquet.FAILURES, "model"):
            storage.remove_leftovers(storage.join(folder.output, name))
    except OSError as error:
        raise ImagebeamError(f"The output cannot be used: {error}. Received: --output {options.output!r}.") from error
    return folder


def check_output(options: OutputOptions, source: Described, parts: str = parquet.EMBEDDINGS) -> RunFolder:
    """The checks of `prepare_output`, which write nothing.

    Raises:
        ImagebeamError: as `prepare_output`.
        OSError: if the folder cannot be read.
    """
    output = storage.absolute(options.output)
    run = {
        **source.describe(),
        "rows_per_unit": options.rows_per_unit,
        "embedding_type": options.embedding_type,
        "embedding_dtype": options.embedding_dtype,
    }
    folder = storage.join(output, parts)
    if foreign := next(parquet.list_foreign(folder), None):
        raise ImagebeamError(
            f"{foreign} is no part of a run, and whoever reads the folder would read it too. Move it away, or choose "
            f"another --output."
        )
    if options.overwrite:
        return RunFolder(output, run, parts)
    if (before := _read_json(storage.join(output, RUN_FILE))) is not None:
        differences = [
            f"{name}: {before.get(name)} != {run.get(name)}"
            for name in {**before, **run}
            if before.get(name) != run.get(name)
        ]
        if differences:
            raise ImagebeamError(
                f"{output} holds another run ({'; '.join(differences)}). Choose another --output, or --overwrite."
            )
    elif next(parquet.list_parts(folder), None):
        raise ImagebeamError(
            f"{folder} holds parts, but no {RUN_FILE} says of which run. Choose another --output, or --overwrite."
        )
    return RunFolder(output, run, parts)


def _read_json(uri: str) -> dict[str, Any] | None:
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ImagebeamError(f"{uri} cannot be understood ({error}). Run with --overwrite to start anew.") from error
    return content if isinstance(content, dict) else {}


def _empty(output: str) -> None:
    """Delete what a run wrote, and nothing else; run.json last, so that a kill leaves a known run."""
    storage.delete(storage.join(output, manifest.MANIFEST_FILE))
    for folder in (parquet.EMBEDDINGS, parquet.PREDICTIONS, parquet.FAILURES):
        for _, uri in list(parquet.list_parts(storage.join(output, folder))):
            storage.delete(uri)
    for name in (SPEC_FILE, MODEL_FILE, ResultFile.CLASSIFIER):
        storage.delete(storage.join(output, "model", name))
    storage.delete(storage.join(output, RUN_FILE))


def load_model(options: ModelOptions) -> Embedder:
    """Resolve the weights and build the embedder.

    Raises:
        ImagebeamError: if it cannot be built.
    """
    say(f"Loading {options.model} with weights {options.weights}")
    return resolve(options.spec(), options.weights)


def stage_model(options: ModelOptions, folder: RunFolder, loaded: Embedder | None = None) -> StagedModel:
    """The staged model this run wants: the one that is there if it is the same, else resolved, built and staged.

    Args:
        options: which model.
        folder: of the run.
        loaded: what `load_model` gave, where it was called before.

    Raises:
        ImagebeamError: if the folder was filled by another spec, naming the fields that differ, or the model cannot
            be built.
        JobError: if it cannot be stored.
    """
    source: dict[str, str | None] = {"source": options.weights, "file_sha256": None}
    if is_file(options.weights):
        try:
            with storage.local_file(storage.absolute(options.weights)) as path:
                source["file_sha256"] = file_sha256(path)
        except OSError as error:
            raise ImagebeamError(f"The weights file cannot be read: {error}") from error
    staged = read_staged(folder.model)
    if staged is not None:
        check_spec(folder, staged.spec, options.spec(staged.spec.weights_sha256))
        same_file = source["file_sha256"] is not None and source["file_sha256"] == staged.weights["file_sha256"]
        if same_file or source == staged.weights:
            return staged
    embedder = loaded or load_model(options)
    if staged is not None:
        check_spec(folder, staged.spec, embedder.spec)
        return staged
    if part := next(parquet.list_parts(storage.join(folder.output, folder.parts)), None):  # someone deleted model/
        check_spec(folder, parquet.read_spec(part[1]), embedder.spec)
    try:
        return stage(embedder, folder.model, source)
    except OSError as error:
        raise JobError(f"The model cannot be staged: {error}. {_how_to_go_on(folder)}") from error


def check_spec(folder: RunFolder, held: EmbedderSpec, wanted: EmbedderSpec) -> None:
    """Refuse to mix embeddings of two specs in one folder.

    Raises:
        ImagebeamError: naming the fields that differ.
    """
    if differences := held.differences(wanted):
        raise ImagebeamError(
            f"{folder.output} holds embeddings of another spec ({'; '.join(differences)}). Choose another --output, or "
            f"--overwrite."
        )


@contextlib.contextmanager
def running(folder: RunFolder, staged: ModelFacts, beam_args: Sequence[str]) -> Iterator[Run]:
    """A pipeline to fill; it runs when the block ends, with progress shown.

    Raises:
        ImagebeamError: for flags that Beam refuses.
        JobError: if the runner gives up. What is committed stays.
    """
    # DirectRunner would look for a Prism binary first and fetch it from the network.
    runner = [] if any(arg.split("=")[0] == "--runner" for arg in beam_args) else ["--runner=FnApiRunner"]
    options = PipelineOptions([*runner, *beam_args])
    values = options.get_all_options()
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:
        raise ImagebeamError(f"Beam does not take its flags: {error}") from error
    storage.delete(storage.join(folder.output, manifest.MANIFEST_FILE))
    reports = storage.join(folder.output, _REPORTS, secrets.token_hex(4))
    detached = bool(values["template_location"] or values["dry_run"])
    run = Run(folder, staged, pipeline, reports, time.time(), detached)
    PROGRESS.reset()
    yield run
    # Beam logs the traceback of what it raises too; --debug prints it.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    try:
        with ProgressBar():
            result = pipeline.run()
            state = None if detached else result.wait_until_finish()
    except ImagebeamError:
        raise
    except Exception as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        raise JobError(f"{_last_line(error)}. {_how_to_go_on(folder)}") from error
    if state not in (None, PipelineState.DONE):
        raise JobError(f"The runner ended the job as {state}. {_how_to_go_on(folder)}")


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Beam made an error of its own out of somebody's Control-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _last_line(error: Exception) -> str:
    """Beam hands a worker's error over as the text of its traceback, whose last line says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else repr(error)


def _how_to_go_on(folder: RunFolder) -> str:
    committed = sum(1 for _ in parquet.list_parts(storage.join(folder.output, folder.parts)))
    return f"{committed} units are committed in {folder.output}; the same command goes on from there."


@dataclass
class FinishRun(beam.PTransform):  # type: ignore[misc]
    """The uris `WriteReports` gives -> nothing: `finish` as the last step of a job that no launcher waits for."""

    run: Run
    max_failure_rate: float

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        """Wait for all files, then finish."""
        run = replace(self.run, pipeline=None, detached=False)
        return (
            files
            | "All" >> beam.combiners.ToList()
            | "Finish" >> beam.Map(_finish_in_job, run=run, max_failure_rate=self.max_failure_rate)
        )


def _finish_in_job(files: list[str], run: Run, max_failure_rate: float) -> None:
    """Fails the job for what makes a launcher end with exit code 3.

    Raises:
        JobError: naming the problems.
    """
    del files
    if problems := _reconcile(run, max_failure_rate).problems:
        raise JobError("; ".join(problems))  # the reports stay: a runner tries again what failed
    _delete_reports(run)


def finish(run: Run, max_failure_rate: float) -> Result:
    """Reconcile, remove what is superseded, write the manifest, print the summary; nothing for a detached run."""
    if run.detached:
        uri = storage.join(run.folder.output, manifest.MANIFEST_FILE)
        say(f"The job is described, not run. Where it runs, its last step reconciles it and writes {uri}.")
        return Result(Totals(), ())
    try:
        result = _reconcile(run, max_failure_rate)
        _delete_reports(run)
    except OSError as error:
        raise JobError(f"The run cannot be reconciled: {error}. {_how_to_go_on(run.folder)}") from error
    return result


def _delete_reports(run: Run) -> None:
    """This run's, and what killed ones left."""
    storage.delete_folder(storage.join(run.folder.output, _REPORTS))


def _reconcile(run: Run, max_failure_rate: float) -> Result:
    output, parts = run.folder.output, run.folder.parts
    reports = _read_reports(run)
    problems = manifest.reconcile(reports, output, parts)
    superseded = manifest.remove_superseded(reports, output, parts) if reports and not problems else 0
    totals = manifest.sum_up(reports)
    if not totals.embedded:
        problems.append(f"no {parts}: not one record became one")
    if totals.failure_rate > max_failure_rate:
        problems.append(
            f"{totals.failed:,} of {totals.records:,} records failed ({totals.failure_rate:.2%}), more than "
            f"--max_failure_rate {max_failure_rate}"
        )
    finished = time.time()
    progress = PROGRESS.snapshot()
    manifest.write_manifest(
        output,
        run.folder.run,
        run.staged,
        reports,
        folder=parts,
        superseded=superseded,
        timings={
            "started": _iso(run.started),
            "finished": _iso(finished),
            "seconds": round(finished - run.started, 3),
            "images_embedded_by_this_launcher": progress.images,
            "model_seconds": round(progress.model_seconds, 3),
        },
    )
    _print_summary(totals, problems, run.folder, superseded, finished - run.started)
    return Result(totals, tuple(problems))


def _read_reports(run: Run) -> list[UnitReport]:
    """All of the run's reports.

    Raises:
        JobError: if a file of them is missing; parts that no report names would be taken for superseded.
    """
    try:
        return read_reports(run.reports)
    except FileNotFoundError as error:
        raise JobError(f"{error}. {_how_to_go_on(run.folder)}") from error


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _print_summary(totals: Totals, problems: list[str], folder: RunFolder, superseded: int, seconds: float) -> None:
    fresh = totals.units - totals.units_skipped
    if totals.units and not fresh:
        say(f"Nothing to do: all {totals.units:,} units were committed before; no model was loaded.")
    say(
        f"{totals.embedded:,} {folder.parts} and {totals.failed:,} failures from {totals.records:,} records in "
        f"{seconds:,.1f} s ({fresh:,} units now, {totals.units_skipped:,} before)"
    )
    for kind, count in list(totals.failures.items())[:10]:
        say(f"  failed at {kind.replace('/', ': ')}: {count:,}")
    if totals.icc_profiles_ignored:
        say(f"  ICC colour profiles ignored: {totals.icc_profiles_ignored:,}")
    if superseded:
        say(f"  parts of changed input removed: {superseded:,}")
    say(f"  {storage.join(folder.output, folder.parts)}")
    say(f"  {storage.join(folder.output, manifest.MANIFEST_FILE)}")
    for problem in problems:
        say(f"PROBLEM: {problem}")
