"""The flags of workers: Dataflow machines or local processes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.common.beam_flags import runner_class
from pipelines.common.fields import Options, flag
from pipelines.options import dataflow
from transforms.core.batching import available_cores
from transforms.core.engines import PrecisionChoice, has_nvidia_gpu
from transforms.core.errors import ImagebeamError

MOST = 8
"""Processes that `auto` lets share a GPU at most."""

IMAGES_AT_ONCE = {PrecisionChoice.FLOAT32: 512}
"""Images in one batch of each of the processes that `auto` lets share a GPU, at most; where it is not here, no bound.

Of VGG16, which needs most memory of the architectures tried, two batches of 256 fitted into 80 GB, and three did not
(docs/gpu.md).
"""

LOCAL_RUNNERS = ("direct", "directrunner", "fnapirunner")
"""As `runner_class` names them."""


def parse_local_workers(text: str) -> int | Literal["auto"]:
    """A number of processes, or auto.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of processes from 1, or auto. Received: {text!r}.")
    return int(text)


@dataclass(frozen=True)
class WorkerOptions(Options):
    """What is set in one word for the workers: `gpu` for Dataflow's, `local_workers` for those of the local runner."""

    gpu: str | None = flag(
        f"GPU of every Dataflow worker, one of {', '.join(dataflow.GPUS)}; machine, disk and driver are set to fit "
        f"(default: none)",
        None,
        type=dataflow.gpu_type,
        metavar="TYPE",
    )
    local_workers: int | Literal["auto"] = flag(
        "processes of the local runner, each with a copy of the model; auto takes several where a GPU would wait for "
        "one process to decode",
        1,
        type=parse_local_workers,
        metavar="N|auto",
    )


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `WorkerOptions`."""
    WorkerOptions.add_arguments(parser, "workers")


def complete(
    beam_args: Sequence[str],
    options: WorkerOptions,
    *,
    patterns: Sequence[str],
    output: str,
    precision: PrecisionChoice = PrecisionChoice.FLOAT32,
    batch_size: int,
) -> tuple[str, ...]:
    """Complete Beam's arguments with the options of the workers.

    Args:
        beam_args: as given on the command line.
        options: the job's own.
        patterns: of the input.
        output: the run's folder.
        precision: that the model computes in.
        batch_size: images in a batch.

    Raises:
        ImagebeamError: as `dataflow.complete` does, or where `--local_workers` meets flags that say the same.
    """
    completed = dataflow.complete(beam_args, options.gpu, patterns=patterns, output=output)
    if options.local_workers == 1:
        return completed
    names = {argument.partition("=")[0] for argument in beam_args}
    if taken := sorted(names & {"--direct_num_workers", "--direct_running_mode"}):
        raise ImagebeamError(f"--local_workers sets {taken[0]} too. Received: both. Leave one out.")
    if "--runner" in names:
        from apache_beam.options.pipeline_options import PipelineOptions

        runner = PipelineOptions(list(beam_args)).get_all_options()["runner"]
        if runner_class(runner) not in LOCAL_RUNNERS:
            raise ImagebeamError(
                f"--local_workers is for the local runner. Received: --local_workers {options.local_workers}, "
                f"--runner {runner}. Leave one out."
            )
    count = suggested(precision, batch_size) if options.local_workers == "auto" else options.local_workers
    if count == 1:
        return completed
    # JAX's first process would take three quarters of the GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return (*completed, f"--direct_num_workers={count}", "--direct_running_mode=multi_processing")


def suggested(precision: PrecisionChoice, batch_size: int) -> int:
    """Processes that `auto` takes: one where the CPU runs the model, since its engine uses every core.

    Beside a GPU one process decodes 900 to 1,700 images a second and waits for its own lock: half as many as there are
    cores, as far as the GPU's memory holds their batches while the model is compiled.
    """
    if not has_nvidia_gpu():
        return 1
    fitting = IMAGES_AT_ONCE[precision] // batch_size if precision in IMAGES_AT_ONCE else MOST
    return max(1, min(available_cores() // 2, fitting, MOST))
