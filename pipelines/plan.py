"""`imagebeam plan`: count the input, try the model and estimate the time of a run. Writes nothing."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.common.console import say
from pipelines.common.fields import Options, flag
from pipelines.common.flags import JobParser, parse
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import (
    InputOptions,
    ModelOptions,
    OutputOptions,
    add_input_arguments,
    add_model_arguments,
    add_output_arguments,
)
from pipelines.options.workers import add_worker_arguments
from pipelines.runtime.plan_text import Estimate, Plan, to_dict, to_text
from transforms.core.errors import ImagebeamError
from transforms.core.formats import EmbeddingDtype
from transforms.core.text import counted

if TYPE_CHECKING:
    import numpy as np

    from pipelines.runtime.input_source import Source
    from pipelines.runtime.run_folder import RunFolder
    from transforms.embed.embed_units import EmbedOptions, ImageModel
    from transforms.embed.inventory import Inventory
    from transforms.embed.sampling import Drawn, Sample

DESCRIPTION = """\
Look at what extract would do with the same flags: shards and work units, the length of the vectors, image sizes and
formats, the share of records that would fail, the time on this machine, and the bytes written. Nothing is written.
With --output, plan also tells how much of that run is done already."""

EXAMPLES = (
    "imagebeam plan --input 'photos/**/*.jpg'",
    "imagebeam plan --input 'gs://BUCKET/shards/*.tar' --model ResNet50V2 --output gs://BUCKET/out --format json",
)

NO_OUTPUT = "-"
"""What stands for --output where it is not given."""

TIMED_CALLS = 2
"""Calls of the model that are timed, after one that is not."""

_ROW_BYTES = 60
"""A row's other columns, compressed; more than half of it is the digest."""

_PART_BYTES = 6_000
"""A part's footer."""


@dataclass(frozen=True)
class LookOptions(Options):
    """The depth and the output format of a plan."""

    sample: int = flag("number of records that are read and decoded", 200, type=int, metavar="N")
    format: str = flag("format of what is printed", "text", choices=("text", "json"), metavar="text|json")

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ImagebeamError(f"--sample is at least 1. Received: {self.sample}.")


@dataclass(frozen=True)
class PlanOptions:
    """Everything `run` needs, checked when made."""

    input: InputOptions
    model: ModelOptions
    output: OutputOptions
    look: LookOptions
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        self.engine.check(self.model)


def run(options: PlanOptions) -> Plan:
    """Look at the input and time the model; writes nothing.

    Raises:
        ImagebeamError: where extract would refuse to start.
    """
    from pipelines.runtime import input_source
    from transforms.embed.inventory import take_inventory
    from transforms.embed.sampling import Drawn, Reservoir, look_at
    from transforms.images.decode import prepare_pillow
    from transforms.models.availability import check_available

    check_available(options.model.config())
    source = input_source.open_input(options.input)
    folder = _look_into_output(options.output, source)
    from transforms.embed.embed_units import EmbedOptions  # imports Beam, which takes seconds
    from transforms.reuse.known_rows import Conditions
    from transforms.runs.retries import Retries

    embed = EmbedOptions(options.model.image_options(options.model.config().spec("")), options.model.batch_size)
    reservoir = Reservoir(options.look.sample)
    say("Counting records")
    conditions = Conditions.of(embed.images, source.read.max_record_bytes)
    earlier = None
    if folder is not None and not options.output.overwrite:
        earlier = Retries(folder.output, conditions, options.output.retry_failed)
    inventory = take_inventory(
        source.patterns,
        source.input_format,
        options.output.rows_per_unit,
        source.read,
        on_unit=reservoir.add,
        earlier=earlier,
        generation="" if folder is None else folder.generation,
    )
    prepare_pillow()
    say(f"Looking at {min(options.look.sample, inventory.records):,} of {counted(inventory.records, 'record')}")
    sample = look_at(reservoir.records(source.read), embed.images, images=embed.batch_size, pixels=embed.batch_pixels)
    started = time.perf_counter()
    embedder = _load(options, folder, Drawn(sample.images, records=inventory.records))
    load_seconds = time.perf_counter() - started
    estimate = None
    if sample.images:
        say("Timing the model")
        first_call, rate = time_model(embedder, sample.images, embed)
        estimate = _estimate(options.output, inventory, sample, embedder.dimensions, load_seconds + first_call, rate)
    return Plan(
        options.model.model,
        embedder.dimensions,
        inventory,
        sample,
        estimate,
        None if folder is None else folder.output,
        options.output.max_failure_rate,
    )


def _look_into_output(options: OutputOptions, source: Source) -> RunFolder | None:
    from pipelines.runtime import run_folder

    if options.output == NO_OUTPUT:
        return None
    try:
        return run_folder.check_output(options, source)
    except OSError as error:
        raise ImagebeamError(f"The output cannot be read: {error}. Received: --output {options.output!r}.") from error


def _load(options: PlanOptions, folder: RunFolder | None, drawn: Drawn) -> ImageModel:
    """The model asked for, on the engine that a trial on some images chooses.

    ImageNet's weights are not fetched for this, since random ones take as long.
    """
    from pipelines.runtime import model_staging
    from pipelines.runtime.model_loader import ModelLoader
    from transforms.models.staged import read_staged

    loader = ModelLoader(options.model, options.engine)
    staged = None if folder is None or options.output.overwrite else read_staged(folder.model)
    held = None if staged is None else staged.spec
    config, weights = loader.config(held), options.model.weights
    is_random = not config.has_own_weights and weights in ("imagenet", "none")
    if folder is not None and held is not None and is_random:
        model_staging.check_spec(folder, held, config.spec(held.weights_sha256, held.graph_sha256))
    if staged is not None and held is not None and held.calibration is not None:
        return loader.settle(staged).load()
    if weights == "imagenet" and is_random:
        config = dataclasses.replace(config, weights="none")
    verdict = loader.try_out(config, drawn, settled=held is not None)
    if folder is not None and held is not None and not is_random:
        model_staging.check_spec(folder, held, verdict.loaded.embedder.spec)
    for line in verdict.lines:
        say(line)
    return verdict.model


def time_model(embedder: ImageModel, images: Sequence[np.ndarray], options: EmbedOptions) -> tuple[float, float]:
    """Seconds of the first call, and images per second of the next ones.

    Args:
        embedder: the model.
        images: uint8 RGB [height, width, 3]; repeated to fill a batch where all have one size.
        options: the size of the run's batches.
    """
    import numpy as np

    from transforms.core.batching import batch_by_shape

    if options.images.image_size is not None:
        images = list(itertools.islice(itertools.cycle(images), options.batch_size))
    batches = [
        np.stack(batch)
        for batch in batch_by_shape(images, lambda image: image.shape, options.batch_size, options.batch_pixels)
    ]
    started = time.perf_counter()
    for batch in batches:
        embedder.embed(batch)
    warm = time.perf_counter()
    for batch in batches * TIMED_CALLS:
        embedder.embed(batch)
    return warm - started, TIMED_CALLS * len(images) / (time.perf_counter() - warm)


def _estimate(
    output: OutputOptions,
    inventory: Inventory,
    sample: Sample,
    dimensions: Mapping[str, int],
    startup_seconds: float,
    rate: float,
) -> Estimate:
    committed = inventory.committed
    records = inventory.records - committed.records + committed.tried_again
    images = round(records * (1 - sample.failure_rate))
    units = inventory.units - committed.units
    decode_rate = sample.cores / sample.decode_seconds
    value_bytes = 2 if output.embedding_dtype == EmbeddingDtype.FLOAT16 else 4
    return Estimate(
        records=records,
        images=images,
        # Decoding runs ahead of the model; but where the model runs on the same cores, they share them.
        seconds=startup_seconds + images / rate + images / decode_rate if images else 0.0,
        startup_seconds=startup_seconds,
        model_images_per_second=rate,
        decode_images_per_second=decode_rate,
        output_bytes=images * (sum(dimensions.values()) * value_bytes + _ROW_BYTES) + units * _PART_BYTES,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam plan`: those of extract, and its own."""
    add_input_arguments(parser)
    add_model_arguments(parser)
    EngineOptions.add_arguments(parser, "engine")
    add_output_arguments(
        parser,
        defaults={"output": NO_OUTPUT},
        texts={"output": "folder of the run that extract would write, local or gs:// (default: none)"},
    )
    add_worker_arguments(parser)
    LookOptions.add_arguments(parser, "plan", most_used=["sample", "format"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0."""
    parser = JobParser("plan", DESCRIPTION, EXAMPLES, beam=True)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    options = PlanOptions(
        InputOptions.from_args(args),
        ModelOptions.from_args(args),
        OutputOptions.from_args(args),
        LookOptions.from_args(args),
        EngineOptions.from_args(args),
    )
    plan = run(options)
    sys.stdout.write((json.dumps(to_dict(plan), indent=2) if options.look.format == "json" else to_text(plan)) + "\n")
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("plan"))
