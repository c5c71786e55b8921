"""`imagebeam finetune`: image shards -> a backbone and a dense classifier trained together."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from pipelines.common.flags import JobParser, parse
from pipelines.options.extraction import InputOptions, ModelOptions
from pipelines.options.finetuning import FinetuneOptions, TuneOptions
from pipelines.options.training import ClassifierOptions, FitOptions, HeadOptions, RowOptions
from pipelines.runtime.training_result import TrainResult, conclude, describe_rows, installed_versions, save_models
from transforms.core.spec import Precision
from transforms.models.architectures import Architecture

if TYPE_CHECKING:
    from transforms.core.spec import EmbedderSpec
    from transforms.training.row_index import RowIndex

DESCRIPTION = """\
Train a backbone and a classifier together on image shards: first the classifier alone, then with it the layers that
are not frozen, at a lower rate. Run again after a crash, the same command goes on where it was."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam finetune`."""
    InputOptions.add_arguments(parser, "input", leave_out=["keep_columns"])
    RowOptions.add_arguments(parser, "rows", leave_out=["label_column"])
    ModelOptions.add_arguments(parser, "model", leave_out=["precision"])
    HeadOptions.add_arguments(parser, "classifier")
    FitOptions.add_arguments(
        parser, "first phase: the classifier alone", leave_out=["batch_size", "checkpoint_seconds"]
    )
    # What has no flag here: nothing is copied, learning needs float32, and an epoch on images is worth a checkpoint.
    parser.set_defaults(keep_columns=(), precision=Precision.FLOAT32, checkpoint_seconds=0.0)
    TuneOptions.add_arguments(parser, "second phase: the classifier and the layers that are not frozen")
    ClassifierOptions.add_arguments(parser, "output")


def run(options: FinetuneOptions) -> TrainResult:
    """Run the job.

    Raises:
        ImagebeamError: for what the user can mend; nothing is overwritten then.
    """
    from transforms.training.output import ClassifierFolder, ResultFile

    output = ClassifierFolder(options.classifier.output, overwrite=options.classifier.overwrite)
    _refuse_early(options)

    from pipelines.runtime.backbone_training import embed_images, hold_images, print_layers, tune_backbone
    from pipelines.runtime.head_training import train_head, use_deterministic_ops
    from transforms.classify.evaluate import evaluate
    from transforms.models.embedder import assemble, identify, load_backbone
    from transforms.plots.training import training_curves
    from transforms.training.backbone import freeze
    from transforms.training.head import join
    from transforms.training.row_index import index_rows

    began = time.monotonic()
    use_deterministic_ops()
    config = options.model.config()
    say(f"Loading {config.description}")
    backbone = load_backbone(config)
    spec = identify(config, backbone)
    with tempfile.TemporaryFile() as pixels, tempfile.TemporaryDirectory() as folder:
        images = hold_images(options, spec, pixels)
        labels = dataclasses.replace(options.rows.label_rules(), column="label")
        index = index_rows(images, labels, options.rows.split_rules())
        rows = describe_rows(index)
        first = len(backbone.layers) if options.tune.freeze_all else options.tune.freeze_layers or 0
        layers = freeze(backbone, spec, first=first, until=options.tune.freeze_until)
        print_layers(layers)
        if output.claim(_identity(options, spec, index)):
            say(f"Going on with the run in {output.uri}")
        lesson = embed_images(assemble(spec, backbone), images, index, options.model.batch_size)
        head, state = train_head(lesson, options.head, options.fit, watched=True)
        phases = {"head": dataclasses.asdict(state)}
        if any(layer.trainable for layer in layers):
            state = tune_backbone(options, spec, backbone, head, images, index, output.checkpoint)
            phases["tuning"] = dataclasses.asdict(state)
        backbone.trainable = True  # as any saved model's
        tuned = identify(config, backbone)
        embedder = assemble(spec, backbone)
        predictions, weights_file = (Path(folder) / name for name in (ResultFile.PREDICTIONS, ResultFile.BACKBONE))
        evaluation = evaluate(
            join(embedder, "embedding", head),
            dataclasses.replace(images, spec=tuned),
            index,
            predictions,
            all_probabilities=options.classifier.all_probabilities,
        )
        backbone.save_weights(weights_file)
        saved = None if options.classifier.skip_image_classifier else embedder
        summary = {
            "evaluated_on": evaluation.split,
            **evaluation.metrics,
            "rows": rows,
            "failures": images.failure_counts,
            "training": {"seconds": round(time.monotonic() - began, 3), **dataclasses.asdict(state), "phases": phases},
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "embedding_column": "embedding",
            "fingerprint": tuned.fingerprint,
            "spec": tuned.to_dict(),
            "base": {"weights": options.model.weights, "weights_sha256": spec.weights_sha256},
            "options": dataclasses.asdict(options),
            "versions": installed_versions(),
        }
        files = {
            **save_models(head, saved, "embedding", tuned, index, Path(folder)),
            ResultFile.BACKBONE: weights_file,
            ResultFile.PREDICTIONS: predictions,
            ResultFile.CURVES: training_curves(state.history, state.best_epoch),
            ResultFile.CONFUSION: evaluation.confusion,
        }
        output.publish(files, summary)
    return conclude(summary, output.uri, options.classifier.assert_accuracy_at_least)


def _refuse_early(options: FinetuneOptions) -> None:
    """What is known without loading a framework.

    Raises:
        ImagebeamError: for input that is not there, and a model or layer that cannot be had.
    """
    from transforms import storage
    from transforms.inputs.inspection import inspect_input
    from transforms.models.availability import check_available
    from transforms.models.layer_tables import check_layer_names

    config = options.model.config()
    check_available(config)
    if options.tune.freeze_until is not None and isinstance(config.architecture, Architecture):
        check_layer_names(config.model, [options.tune.freeze_until], "--freeze_until")
    patterns = tuple(storage.absolute(pattern) for pattern in options.input.input)
    inspect_input(patterns, options.input.input_format, options.input.read_options())


def _identity(options: FinetuneOptions, base: EmbedderSpec, index: RowIndex) -> dict[str, Any]:
    """Everything that decides the weights: what two runs must share for one to go on where the other was killed."""
    groups = (options.rows, options.head, options.fit, options.tune)
    return {
        **{name: value for group in groups for name, value in dataclasses.asdict(group).items()},
        "fingerprint": base.fingerprint,
        "rows_sha256": index.sha256,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where the run finished but a check did not hold."""
    parser = JobParser("finetune", DESCRIPTION)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    result = run(
        FinetuneOptions(
            InputOptions.from_args(args),
            ModelOptions.from_args(args),
            ClassifierOptions.from_args(args),
            RowOptions.from_args(args),
            HeadOptions.from_args(args),
            FitOptions.from_args(args),
            TuneOptions.from_args(args),
        )
    )
    return 3 if result.problems else 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("finetune"))
