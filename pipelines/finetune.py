"""`imagebeam finetune`: image shards -> a backbone and a dense classifier trained together."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import say
from pipelines.fields import Options, flag
from pipelines.flags import JobParser, parse
from pipelines.options import InputOptions, ModelOptions
from pipelines.train import TrainResult, conclude, describe_rows, installed_versions, save_models
from pipelines.training_options import ClassifierOptions, FitOptions, HeadOptions, RowOptions
from transforms.errors import ImagebeamError
from transforms.models import size_text
from transforms.spec import Precision
from transforms.tuning import Augmentation

if TYPE_CHECKING:
    import keras

    from pipelines.head_training import Lesson
    from transforms.checkpoint import Checkpoint
    from transforms.fitting import FitState
    from transforms.image_dataset import ImageSet
    from transforms.row_index import RowIndex
    from transforms.spec import EmbedderSpec
    from transforms.tuning import TunedLayer

DESCRIPTION = """\
Train a backbone and a classifier together on image shards: first the classifier alone, then with it the layers that
are not frozen, at a lower rate. Run again after a crash, the same command goes on where it was."""


def _augmentations(text: str) -> tuple[Augmentation, ...]:
    """Parse "flip,zoom"."""
    try:
        return tuple(Augmentation(name) for name in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"choose of {', '.join(Augmentation)}. Received: {text!r}") from None


@dataclass(frozen=True)
class TuneOptions(Options):
    """What learns besides the head, and how: the second phase."""

    freeze_layers: int | None = flag(
        "leave the first N layers of the model as they are, counted as `imagebeam layers` lists them (default: none)",
        None,
        type=int,
        metavar="N",
    )
    freeze_until: str | None = flag("leave all layers up to and with this one as they are", None, metavar="LAYER")
    freeze_all: bool = flag("leave the whole model as it is and train the classifier alone", False, action="store_true")
    augment: tuple[Augmentation, ...] = flag(
        "random changes of the training images, in this order (default: none)",
        (),
        type=_augmentations,
        metavar="|".join(Augmentation) + ",...",
    )
    tune_epochs: int = flag("times the training images are seen, at most", 10, type=int, metavar="N")
    tune_learning_rate: float = flag("AdamW's, at the start", 1e-5, type=float, metavar="RATE")
    tune_patience: int = flag(
        "stop after so many epochs without a lower validation loss; 0 to do all epochs", 3, type=int, metavar="EPOCHS"
    )
    max_failure_rate: float = flag(
        "train only if no larger share of the records gives no image, 0 to 1", 0.01, type=float, metavar="SHARE"
    )

    def __post_init__(self) -> None:
        frozen = {"freeze_layers": self.freeze_layers, "freeze_until": self.freeze_until, "freeze_all": self.freeze_all}
        given = [f"--{name}" for name, value in frozen.items() if value is not None and value is not False]
        if len(given) > 1:
            raise ImagebeamError(f"Layers are frozen by one flag. Received: {', '.join(given)}.")
        if self.freeze_layers is not None and self.freeze_layers < 0:
            raise ImagebeamError(f"--freeze_layers is at least 0. Received: {self.freeze_layers}.")
        if self.tune_patience < 0:
            raise ImagebeamError(f"--tune_patience is at least 0. Received: {self.tune_patience}.")
        if not 0 <= self.max_failure_rate <= 1:
            raise ImagebeamError(f"--max_failure_rate is a share, from 0 to 1. Received: {self.max_failure_rate}.")
        if len(set(self.augment)) < len(self.augment):
            raise ImagebeamError(f"--augment takes each name once. Received: {','.join(self.augment)}.")
        FitOptions(epochs=self.tune_epochs, learning_rate=self.tune_learning_rate)


@dataclass(frozen=True)
class FinetuneOptions:
    """Everything `run` needs, checked when made."""

    input: InputOptions
    model: ModelOptions
    classifier: ClassifierOptions
    rows: RowOptions = field(default_factory=RowOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    tune: TuneOptions = field(default_factory=TuneOptions)

    def __post_init__(self) -> None:
        spec = self.model.spec()
        if spec.image_size is None:
            raise ImagebeamError("Images are trained on in batches of one size. Give --image_size HEIGHTxWIDTH.")
        if spec.precision != Precision.FLOAT32:
            raise ImagebeamError(
                f"A model learns in float32. Received: precision={spec.precision}. Give it to extract, whose "
                "--weights takes what comes out of this."
            )
        if len(spec.layers) > 1:
            raise ImagebeamError(f"A classifier takes one --layer. Received: {', '.join(spec.layers)}.")


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
    from pipelines.head_training import train_head, use_deterministic_ops
    from transforms import weights
    from transforms.classifier import join
    from transforms.classifier_folder import ClassifierFolder, ResultFile
    from transforms.embedder import assemble, load_backbone
    from transforms.plots import training_curves
    from transforms.results import evaluate
    from transforms.row_index import index_rows
    from transforms.tuning import freeze

    began = time.monotonic()
    use_deterministic_ops()
    output = ClassifierFolder(options.classifier.output, overwrite=options.classifier.overwrite)
    spec = options.model.spec()
    with tempfile.TemporaryFile() as pixels, tempfile.TemporaryDirectory() as folder:
        images = _read_images(options, spec, pixels)
        labels = dataclasses.replace(options.rows.label_rules(), column="label")
        index = index_rows(images, labels, options.rows.split_rules())
        rows = describe_rows(index)
        say(f"Loading {spec.model} with weights {options.model.weights}")
        backbone = load_backbone(spec, options.model.weights)
        first = len(backbone.layers) if options.tune.freeze_all else options.tune.freeze_layers or 0
        layers = freeze(backbone, spec, first=first, until=options.tune.freeze_until)
        _print_layers(layers)
        base = dataclasses.replace(spec, weights_sha256=weights.digest(backbone))
        if output.claim(_identity(options, base, index)):
            say(f"Going on with the run in {output.uri}")
        lesson = _embed(assemble(spec, backbone), images, index)
        head, state = train_head(lesson, options.head, options.fit, watched=True)
        phases = {"head": dataclasses.asdict(state)}
        if any(layer.trainable for layer in layers):
            state = _tune(options, spec, backbone, head, images, index, output.checkpoint)
            phases["tuning"] = dataclasses.asdict(state)
        backbone.trainable = True  # as any saved model's
        tuned = dataclasses.replace(spec, weights_sha256=weights.digest(backbone))
        embedder = assemble(spec, backbone)
        predictions, weights_file = (Path(folder) / name for name in (ResultFile.PREDICTIONS, ResultFile.BACKBONE))
        evaluation = evaluate(
            join(embedder, "embedding", head), dataclasses.replace(images, spec=tuned), index, predictions
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
            "base": {"weights": options.model.weights, "weights_sha256": base.weights_sha256},
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


def _read_images(options: FinetuneOptions, spec: EmbedderSpec, file: Any) -> ImageSet:
    """All images, decoded; refuses to go on without too many of them."""
    import pyarrow as pa

    from transforms import storage
    from transforms.image_dataset import read_images
    from transforms.shards import inspect_input

    patterns = tuple(storage.absolute(pattern) for pattern in options.input.input)
    read = options.input.read_options()
    split = options.rows.split_column
    if split is not None and split not in dict(read.keep_columns):
        read = dataclasses.replace(read, keep_columns=(*read.keep_columns, (split, pa.null())))
    read = inspect_input(patterns, options.input.input_format, read)
    say(f"Reading and decoding images to {size_text(spec.image_size)}")
    images = read_images(
        patterns,
        options.input.input_format,
        read,
        options.model.image_options(spec),
        spec,
        file,
        batch_size=options.model.batch_size,
    )
    failed, total = len(images.failures), len(images.failures) + len(images.table)
    if failed:
        first = images.failures[0]
        what = f"{failed:,} of {total:,} records gave no image; the first is {first.key}: {first.message}"
        if failed > options.tune.max_failure_rate * total or failed == total:
            raise ImagebeamError(f"{what}. That is more than --max_failure_rate {options.tune.max_failure_rate}.")
        say(f"WARNING: {what}")
    return images


def _identity(options: FinetuneOptions, base: EmbedderSpec, index: RowIndex) -> dict[str, Any]:
    """Everything that decides the weights: what two runs must share for one to go on where the other was killed."""
    groups = (options.rows, options.head, options.fit, options.tune)
    return {
        **{name: value for group in groups for name, value in dataclasses.asdict(group).items()},
        "fingerprint": base.fingerprint,
        "rows_sha256": index.sha256,
    }


def _print_layers(layers: Sequence[TunedLayer]) -> None:
    from rich.console import Console
    from rich.table import Table

    from transforms.tuning import count_parameters

    tuned, parameters = count_parameters(layers)
    printed = Table("layer", "type", "output shape", "parameters", "trainable", box=None)
    for column in printed.columns:
        column.overflow = "fold"
    for layer in layers:
        shape = "x".join("?" if size is None else str(size) for size in layer.output_shape)
        trainable = "yes" if layer.trainable else "no" if layer.parameters else ""
        printed.add_row(layer.name, layer.type, shape, f"{layer.parameters:,}", trainable)
    Console(width=None if sys.stdout.isatty() else 120).print(printed)
    say(f"{tuned:,} of {parameters:,} parameters of the model are trainable")


def _embed(embedder: keras.Model, images: ImageSet, index: RowIndex) -> Lesson:
    """The vectors of the images as they are before tuning: what the head learns from alone."""
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    from pipelines.head_training import Lesson
    from transforms.sources import MatrixSource, Sources, moments
    from transforms.splits import Split

    say(f"Embedding {len(images.table):,} images for the first phase")
    wanted = [split for split in (Split.TRAIN, Split.VALIDATION) if len(index.rows(split))]
    held: dict[Split, list[np.ndarray]] = {split: [] for split in wanted}
    for group in images.groups:
        for split in wanted:
            chosen = group.start + index.chosen(group, split)
            if len(chosen):
                held[split].append(embedder.predict_on_batch(images.pixels[chosen]))
    sources = {split: MatrixSource(np.concatenate(vectors), index.rows(split)) for split, vectors in held.items()}
    if not all(np.isfinite(source.vectors).all() for source in sources.values()):
        raise ImagebeamError("The model gives NaN or infinity for some images. Use other --weights.")
    train = sources[Split.TRAIN]
    mean, variance = moments(StandardScaler().fit(train.vectors))
    return Lesson(
        Sources(train, sources.get(Split.VALIDATION), mean, variance),
        index.targets,
        index.counts[Split.TRAIN.code],
        index.multi_label,
    )


def _tune(
    options: FinetuneOptions,
    spec: EmbedderSpec,
    backbone: keras.Model,
    head: keras.Model,
    images: ImageSet,
    index: RowIndex,
    checkpoint: Checkpoint,
) -> FitState:
    """Train the head and what is not frozen of the backbone, in place."""
    from pipelines.epochs import EpochBar
    from transforms.classifier import balanced_weights, compile_head
    from transforms.fitting import fit
    from transforms.image_dataset import image_batches
    from transforms.sources import EpochOrder
    from transforms.splits import Split
    from transforms.tuning import build_training_model

    how, tune = options.fit, options.tune
    train, validation = index.rows(Split.TRAIN), index.rows(Split.VALIDATION)
    batches = -(-len(train) // options.model.batch_size)
    counts = index.counts[Split.TRAIN.code]
    weights = balanced_weights(counts, len(train), multi_label=index.multi_label) if how.balance_classes else None
    model = compile_head(
        build_training_model(spec, backbone, head, tune.augment, multi_label=index.multi_label, seed=how.seed),
        steps=batches * tune.tune_epochs,
        learning_rate=tune.tune_learning_rate,
        schedule=how.learning_rate_schedule,
        weight_decay=how.weight_decay,
        label_smoothing=how.label_smoothing,
        class_weights=weights,
        multi_label=index.multi_label,
    )
    order = EpochOrder(how.seed)
    with EpochBar(tune.tune_epochs, batches, options.model.batch_size) as bar:
        return fit(
            model,
            image_batches(images, train, index.targets, options.model.batch_size, order),
            image_batches(images, validation, index.targets, options.model.batch_size) if len(validation) else None,
            epochs=tune.tune_epochs,
            patience=tune.tune_patience,
            begin_epoch=order.begin_epoch,
            checkpoint=checkpoint,
            checkpoint_seconds=how.checkpoint_seconds,
            watcher=bar,
        )


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
