"""Build and run a Beam pipeline, show its progress and shorten its errors to one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipelines.common import log
from pipelines.common.beam_flags import runner_class
from pipelines.common.console import ProgressBar
from pipelines.options.extraction import OutputOptions
from pipelines.options.workers import LOCAL_RUNNERS
from pipelines.runtime.finish import Finish, Result, Run, finish
from pipelines.runtime.input_source import Source
from pipelines.runtime.run_folder import RunFolder
from transforms.core.errors import ColumnTypeError, ImagebeamError, JobError, without_arguments
from transforms.core.progress import PROGRESS
from transforms.runs import lease, manifest
from transforms.runs.manifest import ModelFacts
from transforms.runs.reports import new_reports_folder

if TYPE_CHECKING:
    from transforms.embed.embed_units import EmbedUnits

_JAVA_FRAME = re.compile(r"\s*(at \S+\(|\.\.\. \d+ more)")

_COLUMN_TYPE_ERROR = re.compile(r"([a-z_]+\.)*ColumnTypeError: ")
"""How a runner hands on an error as text."""

_WHILE_RUNNING = re.compile(r" \[while running '[^']*'\]$")
"""What Beam adds to an error: a name of the pipeline's, which tells a user nothing."""

_NO_PRISM = "Unable to fetch remote prism binary"

_WORKER_LOST = "Channel closed prematurely"
"""What Beam's local runner says when one of its worker processes is gone."""


def open_pipeline(beam_args: Sequence[str]) -> beam.Pipeline:
    """Create an empty pipeline, so that mistakes in Beam's flags are reported before anything is written.

    Raises:
        ImagebeamError: for flags that Beam refuses.
    """
    # DirectRunner would look for a Prism binary first and fetch it from the network.
    runner = [] if any(arg.split("=")[0] == "--runner" for arg in beam_args) else ["--runner=FnApiRunner"]
    try:
        options = PipelineOptions([*runner, *beam_args])
        _check_local_runner(options)
        pipeline = beam.Pipeline(_local_runner(options), options)
    except ValueError as error:
        raise ImagebeamError(f"Beam does not take its flags: {error}") from error
    # Beam removes its folder at the end of the run, and so not where an error comes before.
    weakref.finalize(pipeline, shutil.rmtree, pipeline.local_tempdir, ignore_errors=True)
    return pipeline


def _check_local_runner(options: PipelineOptions) -> None:
    """Refuse what Beam's local runner notices when the work is to begin, or when all of it is done.

    Raises:
        ImagebeamError: naming the flag.
    """
    values = options.get_all_options()
    if runner_class(values["runner"]) not in LOCAL_RUNNERS:
        return
    if values["direct_num_workers"] < 0:
        raise ImagebeamError(
            "--direct_num_workers is a number of workers from 1, or 0 for one a core. Received: "
            f"{values['direct_num_workers']}."
        )
    profile = [f"--{name}" for name in ("profile_cpu", "profile_memory") if values[name]]
    if profile and not (values["profile_cpu"] and values["profile_location"]):
        raise ImagebeamError(
            "Beam's local runner profiles with --profile_cpu, which may have --profile_memory beside it, and "
            f"--profile_location FOLDER. Received: {' '.join(profile)}"
            f"{'' if values['profile_location'] else ' without --profile_location'}."
        )


def _local_runner(options: PipelineOptions) -> FnApiRunner | None:
    """Beam's local runner with worker processes that are this one's children, where such are asked for.

    Beam starts each through a shell, which stays: were it killed alone, its worker would live on, unseen by the runner.
    """
    local = options.view_as(DirectOptions)
    name = (options.view_as(StandardOptions).runner or "").rpartition(".")[2]
    if os.name != "posix" or name != FnApiRunner.__name__ or local.direct_running_mode != "multi_processing":
        return None
    local.direct_running_mode = None  # or the runner would choose its own command
    command = f"exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


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
    except OSError as error:
        raise JobError(f"The output cannot be written: {error}. {folder.how_to_go_on()}") from error
    started = log.SETTINGS.started or time.time()
    run = Run(folder, staged, pipeline, reports, options.max_failure_rate, started, detached, options.prune)
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
            wrong = _COLUMN_TYPE_ERROR.sub("", line)
            raise ImagebeamError(f"{wrong}. {folder.how_to_go_on(' with that type')}") from error
        if isinstance(error, ImagebeamError):
            raise ImagebeamError(_WHILE_RUNNING.sub("", str(error))) from error
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
    if _NO_PRISM in str(error):
        return (
            f"{str(error).rstrip('.')}. Without a network give the file with --prism_location, or leave --runner out: "
            "the local runner needs none"
        )
    text = without_arguments(str(error))
    lines = [line for line in text.splitlines() if line.strip() and not _JAVA_FRAME.match(line)]
    return _WHILE_RUNNING.sub("", lines[-1].strip()).rstrip(".") if lines else repr(error)


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
    from transforms.inputs.plan_units import Patterns, PlanUnits  # reads every format, which labelling vectors does not

    with running(folder, staged, pipeline, options) as run:
        _ = (
            run.pipeline
            | "Patterns" >> beam.Create([Patterns(source.patterns)])
            | "Plan units"
            >> PlanUnits(source.input_format, options.rows_per_unit, source.read, folder.cuts, leave_compressed=True)
            | label >> units
            | "Finish" >> Finish(run)
        )
    return finish(run)
