"""`imagebeam classify`: predict labels for image shards or for embeddings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.common.fields import Options, flag, one_of, refuse_both
from pipelines.common.flags import JobParser, parse
from pipelines.options.engine import ENGINE_HELP
from pipelines.options.extraction import InputOptions, OutputOptions
from pipelines.options.workers import WorkerOptions, add_worker_arguments, complete
from transforms.core.engines import Engine
from transforms.core.errors import ImagebeamError
from transforms.core.formats import TruncatedImages
from transforms.core.installed import require
from transforms.core.limits import MAX_IMAGE_PIXELS
from transforms.core.text import spelled

if TYPE_CHECKING:
    from pipelines.runtime.finish import Result
    from transforms.classify.predictions import PredictionLayout
    from transforms.classify.staged import TrainedClassifier
    from transforms.core.spec import EmbedderSpec
    from transforms.images.decode import ImageOptions
    from transforms.parts.part_files import PartOptions

DESCRIPTION = """\
Label images with a trained classifier: every input record ends as one row in OUT/predictions or one in OUT/failures.
After a crash, the same command goes on where it stopped."""

EXAMPLES = (
    "imagebeam classify --input 'new/**/*.jpg' --classifier out/classifier --output out/labels",
    "imagebeam classify --embeddings out/photos --classifier out/classifier --output out/labels --threshold 0.8",
)

_LABEL_COLUMN = {
    "label_column": "TFRecord feature, column of Parquet, a manifest or --embeddings with the label, if there is one "
    "(default: label)"
}

_MULTI_LABEL_THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelOptions(Options):
    """Which classifier predicts, and which predictions are written."""

    classifier: str = flag("output of train or finetune, local or gs://", metavar="DIR")
    top_k: int = flag(
        "number of labels that are listed for each image, the most probable first", 5, type=int, metavar="K"
    )
    threshold: float | None = flag(
        "lowest probability, from 0 to 1, of a predicted label: below it `predicted` is null, or, with a multi-label "
        "classifier, leaves the label out (default: none; 0.5 with a multi-label classifier)",
        None,
        type=float,
        metavar="PROBABILITY",
    )
    keep_embedding: bool = flag("store the embedding beside the label", False, action="store_true")
    batch_size: int = flag("images in a batch", 32, type=int, metavar="N")
    max_image_pixels: int = flag(
        "largest image in pixels (width times height); a larger one is a failure and is not decoded",
        MAX_IMAGE_PIXELS,
        type=int,
        metavar="N",
    )
    truncated_images: TruncatedImages = flag(
        "what a JPEG whose data stops early is: a failure, or an image that is grey where data is missing",
        TruncatedImages.REFUSE,
        **one_of(TruncatedImages),
    )
    engine: Engine = flag(ENGINE_HELP, Engine.AUTO, **one_of(Engine))

    def __post_init__(self) -> None:
        if not self.classifier:
            raise ImagebeamError(f"--classifier is a folder. Received: {self.classifier!r}.")
        for name in ("top_k", "batch_size", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise ImagebeamError(f"--{name} is at least 1. Received: {getattr(self, name)}.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ImagebeamError(f"--threshold is a probability, 0 to 1. Received: {self.threshold}.")

    def image_options(self, spec: EmbedderSpec) -> ImageOptions:
        """How images are decoded for an embedder of `spec`."""
        from transforms.embed.model_sources import image_options

        accept = self.truncated_images == TruncatedImages.ACCEPT
        return image_options(spec, self.max_image_pixels, accept_truncated=accept)

    def threshold_of(self, classifier: TrainedClassifier) -> float:
        """The threshold given, or the default for this classifier."""
        if self.threshold is not None:
            return self.threshold
        return _MULTI_LABEL_THRESHOLD if classifier.multi_label else 0.0


@dataclass(frozen=True)
class VectorOptions(Options):
    """Vectors to label in place of images."""

    embeddings: tuple[str, ...] = flag(
        "outputs of extract whose vectors are labelled, in place of images; may be given several times",
        (),
        nargs="+",
        action="extend",
        metavar="DIR",
    )
    allow_unfinished: bool = flag(
        "read the committed parts of an extract run that has not finished", False, action="store_true"
    )
    label_column: str = flag("column of the embeddings with the labels", "label", metavar="NAME")

    def __post_init__(self) -> None:
        if not all(self.embeddings):
            raise ImagebeamError(f"--embeddings names folders. Received: {spelled(self.embeddings)}.")
        if self.allow_unfinished and not self.embeddings:
            raise ImagebeamError("--allow_unfinished goes with --embeddings.")


@dataclass(frozen=True)
class ClassifyOptions:
    """Everything `run` needs, checked when made. Either `input` or `vectors.embeddings` is read."""

    label: LabelOptions
    output: OutputOptions
    input: InputOptions | None = None
    vectors: VectorOptions = dataclasses.field(default_factory=VectorOptions)
    workers: WorkerOptions = dataclasses.field(default_factory=WorkerOptions)
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from transforms.parts.schemas import PREDICTION_COLUMNS

        self._refuse_idle_flags()
        if (self.input is None) == (not self.vectors.embeddings):
            raise ImagebeamError("Give either --input, to label images, or --embeddings, to label vectors.")
        for name in _used_by_predictions(column.name for column in self.input.keep_columns) if self.input else ():
            raise ImagebeamError(
                f"--keep_columns cannot take a name the output uses itself ({', '.join(PREDICTION_COLUMNS)}), in "
                f"whatever case. Received: {name!r}. Rename it with --keep_columns NAME=NEW."
            )

    def _refuse_idle_flags(self) -> None:
        """Refuse flags of images where vectors are labelled, and of vectors where none are stored."""
        if self.input is None:
            refuse_both(
                self.vectors.given("embeddings"),
                self.label.given("batch_size", "max_image_pixels", "truncated_images", "engine"),
                "Where vectors are labelled, no image is decoded.",
            )
        if not self.label.keep_embedding:
            stored = self.output.given("embedding_type", "embedding_dtype")
            if stored:
                raise ImagebeamError(f"No embedding is stored without --keep_embedding. Received: {stored[0]}.")


def _used_by_predictions(names: Iterable[str]) -> list[str]:
    """Those of some names of columns that a part of predictions uses itself, in whatever case."""
    from transforms.parts.schemas import PREDICTION_COLUMNS

    return [name for name in names if name.casefold() in PREDICTION_COLUMNS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam classify`."""
    InputOptions.add_arguments(parser, "input", defaults={"input": None}, most_used=["input"], texts=_LABEL_COLUMN)
    VectorOptions.add_arguments(parser, "embeddings", leave_out=["label_column"], most_used=["embeddings"])
    LabelOptions.add_arguments(parser, "labels", most_used=["classifier", "top_k", "threshold"])
    OutputOptions.add_arguments(parser, "output", leave_out=["reuse"], most_used=["output", "overwrite"])
    parser.set_defaults(reuse=None)  # Of predictions nothing is taken over.
    add_worker_arguments(parser)


def run(options: ClassifyOptions) -> Result:
    """Run the job and wait for it.

    Raises:
        ImagebeamError: for what the user can mend, before any work starts where it can be known then.
    """
    from transforms.classify.staged import open_classifier

    require("sklearn")
    patterns = options.input.input if options.input else options.vectors.embeddings
    beam_args = complete(
        options.beam_args,
        options.workers,
        patterns=patterns,
        output=options.output.output,
        batch_size=options.label.batch_size,
    )
    options = dataclasses.replace(options, beam_args=beam_args)
    classifier = open_classifier(options.label.classifier)
    if options.input is None:
        return _label_vectors(options, classifier)
    return _label_images(options, options.input, classifier)


def _label_images(options: ClassifyOptions, images: InputOptions, classifier: TrainedClassifier) -> Result:
    from pipelines.runtime import input_source, run_folder
    from transforms.inputs.inspection import LABEL_LISTS
    from transforms.parts.part_files import PREDICTIONS

    run_folder.open_output_apart(options.output.output, images)
    source = input_source.open_input(images, LABEL_LISTS if classifier.multi_label else None)
    described = _Described(source.describe(), classifier, options.label)
    run_folder.refuse_output(options.output, described, PREDICTIONS)

    # Beam takes seconds to import, which an error above does not wait for.
    from pipelines.runtime import launch, model_loader
    from pipelines.runtime.measure_labels import measure_labels
    from transforms.classify.staged import stage_classifier
    from transforms.embed.embed_units import EmbedOptions, EmbedUnits
    from transforms.parts.part_files import PartOptions

    pipeline = launch.open_pipeline(options.beam_args)
    with run_folder.claim_output(options.output, described, PREDICTIONS) as folder:
        staged = stage_classifier(classifier, folder.model, keep_embedding=options.label.keep_embedding, images=True)
        decoded = options.label.image_options(classifier.spec)
        assert staged.embedder is not None
        embedder = model_loader.settle_staged(
            staged.embedder,
            options.label.engine,
            source,
            decoded,
            elsewhere_on_gpus=options.workers.gpu is not None,
        )
        staged = dataclasses.replace(staged, embedder=embedder)
        part = PartOptions(options.output.embedding_type, options.output.embedding_dtype, source.read.keep_columns)
        label_units = EmbedUnits(
            model=staged,
            output=folder.output,
            read=source.read,
            embed=EmbedOptions(decoded, options.label.batch_size),
            part=_layout(options, classifier, part),
            retry_failed=options.output.retry_failed,
            generation=folder.generation,
        )
        result = launch.work_images(source, label_units, "Label units", folder, staged, pipeline, options.output)
        measure_labels(result, folder.output, classifier, images.label_column)
    return result


def _refuse_own_embeddings(options: ClassifyOptions) -> None:
    """Refuse to write into a run that is read: with --overwrite, its manifest and model would be replaced.

    Raises:
        ImagebeamError: naming both flags.
    """
    from transforms import storage

    output = storage.real(storage.absolute(options.output.output)).rstrip("/")
    for name in options.vectors.embeddings:
        if storage.real(storage.absolute(name)).rstrip("/") == output:
            raise ImagebeamError(
                f"The output is the run whose vectors are labelled. Received: --embeddings {name!r}, --output "
                f"{options.output.output!r}. Choose another --output."
            )


def _label_vectors(options: ClassifyOptions, classifier: TrainedClassifier) -> Result:
    import apache_beam as beam

    from pipelines.runtime import launch, run_folder
    from pipelines.runtime.finish import Finish, finish
    from pipelines.runtime.measure_labels import measure_labels
    from transforms import storage
    from transforms.classify.predictions import ClassifyEmbeddings, kept_columns
    from transforms.classify.staged import stage_classifier
    from transforms.models.staged import read_staged
    from transforms.parts.part_files import PREDICTIONS, PartOptions
    from transforms.parts.schemas import PREDICTION_COLUMNS
    from transforms.readers.column_types import is_list_type
    from transforms.training_data.embeddings import MODEL_FOLDER, open_embeddings
    from transforms.training_data.row_index import check_label_column

    _refuse_own_embeddings(options)
    for name in options.vectors.embeddings:
        if extracted := read_staged(storage.join(storage.absolute(name), MODEL_FOLDER)):
            classifier.check(extracted.spec, name)
    pipeline = launch.open_pipeline(options.beam_args)
    embeddings = open_embeddings(
        options.vectors.embeddings, classifier.column, allow_unfinished=options.vectors.allow_unfinished
    )
    classifier.check(embeddings.spec, ", ".join(embeddings.folders))
    column = options.vectors.label_column
    if is_list_type(check_label_column(embeddings.schema, column)) and not classifier.multi_label:
        raise ImagebeamError(
            f"The classifier gives an image one label, and the column holds lists. Received: --label_column {column!r}."
        )
    kept = kept_columns(embeddings)
    for name in _used_by_predictions(name for name, _ in kept):
        raise ImagebeamError(
            f"The embeddings keep a column {name!r}, and predictions use the names {', '.join(PREDICTION_COLUMNS)} "
            f"themselves. Received: --embeddings {', '.join(options.vectors.embeddings)}. Extract into another "
            f"--output with --keep_columns {name}=NEW, and with --reuse, which takes the vectors over."
        )
    source: dict[str, Any] = {"embeddings": list(embeddings.folders)}
    if options.vectors.given("label_column"):
        source["label_column"] = column
    described = _Described(source, classifier, options.label)
    run_folder.refuse_output(options.output, described, PREDICTIONS)
    with run_folder.claim_output(options.output, described, PREDICTIONS) as folder:
        staged = stage_classifier(classifier, folder.model, keep_embedding=options.label.keep_embedding, images=False)
        part = PartOptions(options.output.embedding_type, options.output.embedding_dtype, kept)
        label_units = ClassifyEmbeddings(
            staged,
            folder.output,
            embeddings,
            _layout(options, classifier, part),
            folder.generation,
            column,
            options.vectors.allow_unfinished,
        )
        with launch.running(folder, staged, pipeline, options.output) as run:
            _ = (
                run.pipeline
                | "Folders" >> beam.Create([embeddings.folders])
                | "Label units" >> label_units
                | "Finish" >> Finish(run)
            )
        result = finish(run)
        measure_labels(result, folder.output, classifier, column, overlapping=len(embeddings.folders) > 1)
    return result


@dataclass(frozen=True)
class _Described:
    """A `run_folder.Described`: the input, the classifier and the output options."""

    source: dict[str, Any]
    classifier: TrainedClassifier
    label: LabelOptions

    def describe(self) -> dict[str, Any]:
        return {
            **self.source,
            "classifier_sha256": self.classifier.sha256,
            "top_k": self.label.top_k,
            "threshold": self.label.threshold_of(self.classifier),
            "keep_embedding": self.label.keep_embedding,
        }


def _layout(options: ClassifyOptions, classifier: TrainedClassifier, part: PartOptions) -> PredictionLayout:
    from transforms.classify.predictions import PredictionLayout

    threshold = options.label.threshold_of(classifier)
    return PredictionLayout(classifier.labels, classifier.multi_label, options.label.top_k, threshold, part)


def _input_options(args: argparse.Namespace) -> InputOptions | None:
    """The flags of the input; None without --input, where the others have nothing to say."""
    if args.input:
        return InputOptions.from_args(args)
    for field in dataclasses.fields(InputOptions):
        value = getattr(args, field.name)
        if field.name not in ("input", "label_column") and value not in (None, field.default):
            raise ImagebeamError(f"--{field.name} goes with --input, and not with --embeddings. Received: {value}.")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where the run finished but a check did not hold."""
    parser = JobParser("classify", DESCRIPTION, EXAMPLES, beam=True)
    add_arguments(parser)
    args, beam_args = parse(parser, sys.argv[1:] if argv is None else argv)
    result = run(
        ClassifyOptions(
            LabelOptions.from_args(args),
            OutputOptions.from_args(args),
            _input_options(args),
            VectorOptions.from_args(args),
            WorkerOptions.from_args(args),
            tuple(beam_args),
        )
    )
    return result.exit_code


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("classify"))
