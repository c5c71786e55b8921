"""`imagebeam finetune`: train a backbone and a dense classifier together on image shards."""

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
from pipelines.options.finetuning import FIT, FinetuneOptions, TuneOptions
from pipelines.options.training import ClassifierOptions, FitOptions, HeadOptions, RowOptions
from pipelines.training.result import TrainResult, conclude, describe_rows, installed_versions, save_models
from transforms.core.installed import require
from transforms.core.spec import Precision
from transforms.models.architectures import Architecture

if TYPE_CHECKING:
    from pipelines.training.first_phase import FirstPhase
    from transforms.core.spec import EmbedderSpec
    from transforms.readers.options import ReadOptions
    from transforms.training_data.row_index import RowIndex

DESCRIPTION = """\
Train a backbone and a classifier together on image shards: first the classifier alone, as train does, then with it the
layers that are not frozen, for --epochs. The result is shown beside that of the classifier alone. After a crash, the
same command goes on where it stopped."""

EXAMPLES = (
    "imagebeam finetune --input photos --output out/tuned --freeze_layers 7",
    "imagebeam finetune --input photos --output out/tuned --freeze_until block3_pool --augment flip,zoom --epochs 20",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam finetune`."""
    InputOptions.add_arguments(parser, "input", leave_out=["keep_columns"], most_used=["input", "label_column"])
    ClassifierOptions.add_arguments(parser, "output", most_used=["output", "overwrite", "assert_accuracy_at_least"])
    ModelOptions.add_arguments(parser, "model", leave_out=["precision"], most_used=["model", "weights", "image_size"])
    TuneOptions.add_arguments(parser, "layers, and the classifier before them", most_used=["freeze_layers", "augment"])
    RowOptions.add_arguments(parser, "rows", leave_out=["label_column"], most_used=["test_split", "group_column"])
    HeadOptions.add_arguments(parser, "what the classifier is made of")
    FitOptions.add_arguments(
        parser,
        "fitting",
        defaults=vars(FIT),
        leave_out=["batch_size", "checkpoint_seconds"],
        most_used=["epochs", "learning_rate"],
    )
    # What has no flag here: nothing is copied, learning needs float32, and an epoch on images is worth a checkpoint.
    parser.set_defaults(keep_columns=(), precision=Precision.FLOAT32, checkpoint_seconds=0.0)


def run(options: FinetuneOptions) -> TrainResult:
    """Run the job.

    Raises:
        ImagebeamError: for what the user can mend; nothing is overwritten then.
    """
    from pipelines.runtime.run_folder import open_output_apart
    from transforms.training.output import ClassifierFolder, ResultFile

    require("matplotlib", "sklearn")
    # Pictures among them, which would be of a class of their own.
    open_output_apart(options.classifier.output, options.input, ResultFile)
    output = ClassifierFolder(options.classifier.output, overwrite=options.classifier.overwrite)
    read = _open_input(options)

    from pipelines.training.backbone_training import check_unfreezing, hold_images, print_layers, tune_backbone
    from pipelines.training.first_phase import learn_from_vectors
    from pipelines.training.head_training import use_deterministic_ops
    from transforms.classify.evaluate import evaluate
    from transforms.models.embedder import identify, load_backbone, make_embedder
    from transforms.training.backbone import freeze
    from transforms.training.head import load
    from transforms.training_data.row_index import index_rows

    began = time.monotonic()
    use_deterministic_ops()
    config = options.model.config()
    say(f"Loading {config.description}")
    backbone = load_backbone(config)
    spec = identify(config, backbone)
    layers = freeze(backbone, spec, options.tune.frozen(), config.model)
    check_unfreezing(options, layers)
    learns = any(layer.trainable for layer in layers)
    with tempfile.TemporaryFile() as pixels, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = hold_images(options, read, spec, pixels)
        labels = dataclasses.replace(options.rows.label_rules(), column="label")
        index = index_rows(images, labels, options.rows.split_rules())
        rows = describe_rows(index)
        print_layers(layers)
        if output.claim(_identity(options, spec, index)):
            say(f"Going on with the run in {output.uri}")
        embedder = make_embedder(config, spec, backbone).model
        first = learn_from_vectors(options, embedder, images, index, output.checkpoint, learns=learns)
        phases = {"head": first.summary}
        if learns:
            state = tune_backbone(options, spec, backbone, first.head, images, index, output.checkpoint)
            phases["tuning"] = dataclasses.asdict(state)
        backbone.trainable = True  # as any saved model's
        tuned = identify(config, backbone)
        files = save_models(first.head, embedder, "embedding", tuned, index, folder)
        backbone.save_weights(folder / ResultFile.BACKBONE)
        predictions = folder / ResultFile.PREDICTIONS
        evaluation = evaluate(
            load(folder / ResultFile.IMAGE_CLASSIFIER),  # what is measured is what was written
            dataclasses.replace(images, spec=tuned),
            index,
            predictions,
            all_probabilities=options.classifier.all_probabilities,
        )
        if options.classifier.skip_image_classifier:
            del files[ResultFile.IMAGE_CLASSIFIER]
        training = phases["tuning" if learns else "head"]
        summary = {
            "evaluated_on": evaluation.split,
            **evaluation.metrics,
            "compared": _compare(first, predictions, learns=learns),
            "rows": rows,
            "failures": images.failure_counts,
            "training": {"seconds": round(time.monotonic() - began, 3), **training, "phases": phases},
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "embedding_column": "embedding",
            "fingerprint": tuned.fingerprint,
            "spec": tuned.to_dict(),
            "base": {"weights": options.model.weights, "weights_sha256": spec.weights_sha256},
            "options": dataclasses.asdict(options),
            "versions": installed_versions(),
        }
        files |= {
            ResultFile.BACKBONE: folder / ResultFile.BACKBONE,
            ResultFile.PREDICTIONS: predictions,
            ResultFile.CURVES: _curves(training),
            ResultFile.CONFUSION: evaluation.confusion,
        }
        output.publish(files, summary)
    _print_compared(summary, learned=learns)
    return conclude(summary, output.uri, options.classifier.assert_accuracy_at_least)


def _open_input(options: FinetuneOptions) -> ReadOptions:
    """What is known without loading a framework, and how the input is read.

    Raises:
        ImagebeamError: for input that is not there, and a model or layer that cannot be had.
    """
    from pipelines.training.backbone_training import inspect_images
    from transforms.models.availability import check_available
    from transforms.models.layer_tables import check_layer_names

    config = options.model.config()
    check_available(config)
    if options.tune.freeze_until is not None and isinstance(config.architecture, Architecture):
        check_layer_names(config.model, [options.tune.freeze_until], "--freeze_until")
    return inspect_images(options)


def _identity(options: FinetuneOptions, base: EmbedderSpec, index: RowIndex) -> dict[str, Any]:
    """Everything that decides the weights: what two runs must share for one to go on where the other was killed."""
    groups = (options.rows, options.head, options.fit, options.tune)
    return {
        **{name: value for group in groups for name, value in dataclasses.asdict(group).items()},
        "batch_size": options.model.batch_size,
        "fingerprint": base.fingerprint,
        "rows_sha256": index.sha256,
    }


def _compare(first: FirstPhase, predictions: Path, *, learns: bool) -> list[dict[str, Any]]:
    """Accuracies of this classifier and of what needs no tuning on the same held-out rows, in JSON terms."""
    from pipelines.training.accuracy_table import describe
    from transforms.training.compare import read_answers

    if not first.answers:
        return []
    ours = read_answers(predictions)
    methods = {"fine-tuned" if learns else "this classifier": ours, **first.answers}
    return [{"method": name, **describe(answers, ours)} for name, answers in methods.items()]


def _print_compared(summary: dict[str, Any], *, learned: bool) -> None:
    from pipelines.training.accuracy_table import accuracy_cell, difference_cell, print_accuracies

    found = summary["compared"]
    if not found:
        return
    split = summary["evaluated_on"]
    print_accuracies(
        ("method", "accuracy", "to the first"),
        [
            (one["method"], accuracy_cell(one), difference_cell(one) if number else "")
            for number, one in enumerate(found)
        ],
        f"On the same {summary['rows'][split]:,} {split} images; intervals of 95 %",
    )
    better = [one for one in found if one["difference_interval_95"][0] > 0]
    if better and learned:
        best = max(better, key=lambda one: float(one["accuracy"]))
        say(
            f"WARNING: {best['method']}: right more often than the tuned model, beyond chance. More images, "
            "another --learning_rate or more frozen layers may help; else take imagebeam train"
        )


def _curves(training: dict[str, Any]) -> bytes:
    from transforms.plots.training import penalty_curves, training_curves

    if "history" in training:
        return training_curves(training["history"], training["best_epoch"])
    return penalty_curves(training["candidates"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where the run finished but a check did not hold."""
    parser = JobParser("finetune", DESCRIPTION, EXAMPLES)
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
