"""Check and complete the options of a Dataflow job before any work starts."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipelines.common.beam_flags import runner_class
from pipelines.options.endpoints import check_endpoints
from transforms.core.errors import ImagebeamError
from transforms.models.architectures import nearest

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

GPUS = {
    "nvidia-l4": "g2-standard-8",
    "nvidia-tesla-t4": "n1-standard-8",
    "nvidia-tesla-p4": "n1-standard-8",
    "nvidia-tesla-p100": "n1-standard-8",
    "nvidia-tesla-v100": "n1-standard-8",
    "nvidia-tesla-a100": "a2-highgpu-1g",
    "nvidia-a100-80gb": "a2-ultragpu-1g",
    "nvidia-h100-80gb": "a3-highgpu-1g",
}
"""GPU type, as Dataflow names it -> a machine with one of them: of the fixed series the only or a middling one."""

HARNESS_THREADS = 2
"""Units a worker process works on at a time: while one is written and the next one opened, the other keeps the model
busy. Decoding has threads of its own."""

GPU_DISK_GB = 50
"""The GPU image brings CUDA and cuDNN; Dataflow's default disk of 25 GB hardly holds it unpacked."""

_REQUIRED = ("project", "region", "temp_location", "sdk_container_image")


def gpu_type(text: str) -> str:
    """One of `GPUS`.

    Raises:
        argparse.ArgumentTypeError: for any other, with the nearest.
    """
    if text not in GPUS:
        raise argparse.ArgumentTypeError(f"{nearest(text, tuple(GPUS))} Received: {text!r}")
    return text


def complete(beam_args: Sequence[str], gpu: str | None, *, patterns: Sequence[str], output: str) -> tuple[str, ...]:
    """Beam's arguments with what Dataflow needs besides; those given win. Those of another runner stay as they are.

    Args:
        beam_args: as given on the command line.
        gpu: type of the GPU of every worker.
        patterns: of the input.
        output: the run's folder.

    Raises:
        ImagebeamError: if something is missing, cannot be seen by workers elsewhere, or does not fit together, or
            nothing answers where the job is to be submitted.
    """
    if not beam_args and gpu is None:
        return ()
    from apache_beam.options.pipeline_options import PipelineOptions

    from transforms import storage

    given = PipelineOptions(list(beam_args))
    values = given.get_all_options()
    check_endpoints(values)
    if values["template_location"] and values["dry_run"]:
        raise ImagebeamError(
            f"Beam writes no template in a dry run. Received: --template_location {values['template_location']!r} with "
            f"--dry_run. Leave --dry_run out: a template is not submitted either."
        )
    if not _is_dataflow(values["runner"]):
        if gpu is not None:
            raise ImagebeamError(
                f"--gpu asks Dataflow for machines; other runners take what their workers have. Received: "
                f"--gpu {gpu} with {values['runner'] or 'the local runner'}. Add --runner DataflowRunner, or "
                f"leave it out."
            )
        return tuple(beam_args)
    if missing := [name for name in _REQUIRED if not (values[name] or _stands_in(name, given))]:
        raise ImagebeamError(
            f"A job on Dataflow needs {', '.join(f'--{name}' for name in missing)} too (docs/dataflow.md)."
        )
    for name, uri in [("--output", output), *(("--input", pattern) for pattern in patterns)]:
        if storage.is_local(storage.absolute(uri)):
            raise ImagebeamError(
                f"Dataflow's workers see no files of this machine: {name} must start with gs://. Received: {uri!r}."
            )
    check_image(values["sdk_container_image"])
    return (*beam_args, *_defaults(given, gpu))


def _is_dataflow(runner: str | None) -> bool:
    """By any of the names Beam takes for it."""
    return runner_class(runner) in ("dataflow", "dataflowrunner")


def _stands_in(name: str, given: PipelineOptions) -> bool:
    """Whether another flag says what the missing one would; who launches a template says the region."""
    other = {
        "temp_location": "staging_location",
        "sdk_container_image": "setup_file",
        "region": "template_location",
    }.get(name)
    return other is not None and bool(given.get_all_options()[other])


def _defaults(given: PipelineOptions, gpu: str | None) -> Iterator[str]:
    values = given.get_all_options()
    # Beam would pickle the launcher's main module, which workers have as a package.
    if values["save_main_session"] is None:
        yield "--no_save_main_session"
    # One process a machine, so one model: Dataflow's default is one a core, each with a copy on the one GPU.
    if not any("use_multiple_sdk_containers" in experiment for experiment in values["experiments"] or ()):
        yield "--experiments=no_use_multiple_sdk_containers"
    if values["number_of_worker_harness_threads"] is None:
        yield f"--number_of_worker_harness_threads={HARNESS_THREADS}"
    if gpu is None:
        return
    if not any(option.startswith("worker_accelerator=") for option in values["dataflow_service_options"] or ()):
        # Of the job, not of a transform: a transform's resource hint would part it from its neighbours.
        yield f"--dataflow_service_options=worker_accelerator=type:{gpu};count:1;install-nvidia-driver"
    if values["machine_type"] is None:
        yield f"--machine_type={GPUS[gpu]}"
    if values["disk_size_gb"] is None:
        yield f"--disk_size_gb={GPU_DISK_GB}"


def check_image(image: str | None) -> None:
    """Refuse a worker image whose tag names another Python or Beam than this launcher runs.

    The tags that docs/dataflow.md makes do, as in ``imagebeam:0.1.0-py3.11-beam2.77.0``. Of another tag nothing can be
    told here: then Beam's worker refuses the job's first bundle, naming both environments.

    Raises:
        ImagebeamError: naming what differs.
    """
    import apache_beam as beam

    tag = (image or "").rpartition("/")[2].partition("@")[0].partition(":")[2]
    here = {"py": f"{sys.version_info.major}.{sys.version_info.minor}", "beam": beam.__version__}
    for name, version in here.items():
        there = re.search(rf"(?:^|-){name}(\d+(?:\.\d+)*)(?:-|$)", tag)
        if there is not None and there[1] != version:
            raise ImagebeamError(
                f"The worker image has {_NAMES[name]} {there[1]}, this launcher runs {version}: what one pickles the "
                f"other may not read. Received: --sdk_container_image {image!r}. Launch from that image, or build "
                f"one from this release (docs/dataflow.md)."
            )


_NAMES = {"py": "Python", "beam": "Beam"}
