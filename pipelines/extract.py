"""`imagebeam extract`: embed image shards and write Parquet."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from pipelines.options.workers import WorkerOptions, add_worker_arguments, complete

if TYPE_CHECKING:
    from pipelines.runtime.finish import Result

DESCRIPTION = """\
Turn image shards into fixed-length embeddings: every input record ends as one row in OUT/embeddings or one in
OUT/failures. After a crash, the same command goes on where it stopped."""

EXAMPLES = (
    "imagebeam extract --input 'photos/**/*.jpg' --output out/photos",
    "imagebeam extract --input 'gs://BUCKET/shards/*.tar' --output gs://BUCKET/out --model ResNet50V2",
)


@dataclass(frozen=True)
class ExtractOptions:
    """Everything `run` needs, checked when made."""

    input: InputOptions
    model: ModelOptions
    output: OutputOptions
    engine: EngineOptions = field(default_factory=EngineOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.engine.check(self.model)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam extract`."""
    add_input_arguments(parser)
    add_model_arguments(parser)
    EngineOptions.add_arguments(parser, "engine")
    add_output_arguments(parser)
    add_worker_arguments(parser)


def run(options: ExtractOptions) -> Result:
    """Run the job and wait for it.

    Raises:
        ImagebeamError: for what the user can mend, before any work starts where it can be known then.
    """
    from pipelines.runtime import input_source, model_staging, run_folder
    from transforms.models.availability import check_available

    beam_args = complete(
        options.beam_args,
        options.workers,
        patterns=options.input.input,
        output=options.output.output,
        precision=options.model.precision,
        batch_size=options.model.batch_size,
    )
    check_available(options.model.config())
    run_folder.open_output_apart(options.output.output, options.input)
    source = input_source.open_input(options.input)
    run_folder.refuse_output(options.output, source)

    # Beam takes seconds to import, which an error above does not wait for.
    from pipelines.runtime import launch
    from pipelines.runtime.model_loader import ModelLoader
    from pipelines.runtime.reuse import open_reused
    from transforms.embed.embed_units import EmbedOptions, EmbedUnits
    from transforms.parts.part_files import PartOptions

    pipeline = launch.open_pipeline(beam_args)
    # A model that cannot be had must not begin a new generation of parts.
    loader = ModelLoader(options.model, options.engine, source, options.workers.gpu is not None)
    loaded = loader.load(loader.config(None)) if options.output.overwrite else None
    with run_folder.claim_output(options.output, source) as folder:
        staged = model_staging.stage_model(loader, folder, loaded, overwrite=options.output.overwrite)
        images = options.model.image_options(staged.spec)
        embed_units = EmbedUnits(
            model=staged,
            output=folder.output,
            read=source.read,
            embed=EmbedOptions(images, options.model.batch_size),
            part=PartOptions(options.output.embedding_type, options.output.embedding_dtype, source.read.keep_columns),
            retry_failed=options.output.retry_failed,
            generation=folder.generation,
            reuse=open_reused(options.output, folder, staged.spec, images),
        )
        return launch.work_images(source, embed_units, "Embed units", folder, staged, pipeline, options.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where the run finished but a check did not hold."""
    parser = JobParser("extract", DESCRIPTION, EXAMPLES, beam=True)
    add_arguments(parser)
    args, beam_args = parse(parser, sys.argv[1:] if argv is None else argv)
    result = run(
        ExtractOptions(
            InputOptions.from_args(args),
            ModelOptions.from_args(args),
            OutputOptions.from_args(args),
            EngineOptions.from_args(args),
            WorkerOptions.from_args(args),
            tuple(beam_args),
        )
    )
    return result.exit_code


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("extract"))
