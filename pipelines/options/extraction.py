"""The flags that jobs share: input, model and output."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipelines.common.fields import Options, flag, one_of
from pipelines.options.kept_columns import KeptColumn, parse_kept_columns
from transforms.core.engines import PrecisionChoice
from transforms.core.errors import ImagebeamError
from transforms.core.formats import KEEP_TYPES, EmbeddingDtype, EmbeddingType, InputFormat, LabelFrom, TruncatedImages
from transforms.core.limits import MAX_IMAGE_PIXELS, MAX_RECORD_BYTES
from transforms.core.spec import EmbedderSpec, Interpolation, JpegDecode, Pooling, Precision, Preprocessing, ResizeMode
from transforms.core.text import spelled
from transforms.models.architectures import Architecture
from transforms.models.own_model import OwnModel

if TYPE_CHECKING:
    from transforms.images.decode import ImageOptions
    from transforms.models.config import EmbedderConfig
    from transforms.readers.options import ReadOptions

ImageSize = tuple[int, int] | Literal["default", "native"]
"""(height, width) in pixels, the size the model was trained at, or each image's own."""


def _input_format(text: str) -> InputFormat | None:
    """Parse "auto" into None, anything else into a member."""
    if text == "auto":
        return None
    if text not in [*InputFormat]:
        raise argparse.ArgumentTypeError(f"choose one of auto, {', '.join(InputFormat)}. Received: {text!r}")
    return InputFormat(text)


def parse_image_size(text: str) -> ImageSize:
    """Parse "HEIGHTxWIDTH", "native" or "default", as `--image_size` takes them."""
    if text == "default":
        return "default"
    if text == "native":
        return "native"
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f"write HEIGHTxWIDTH in pixels, such as 224x224, or native. Received: {text!r}"
        )
    return int(height), int(width)


def parse_dicom_frame(text: str) -> int | str:
    """Parse a number from 1, or "middle", as `--dicom_frame` takes them."""
    if text == "middle":
        return text
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"write a number from 1, or middle. Received: {text!r}")
    return int(text)


def resolve_image_size(image_size: ImageSize, architecture: Architecture | OwnModel) -> tuple[int, int] | None:
    """What `--image_size` means for a model: (height, width) in pixels, or None for each image's own."""
    if image_size == "native":
        return None
    if image_size == "default":
        return architecture.default_image_size
    return image_size


def _prefix(text: str) -> str:
    """A prefix as absolute uris have it, its last slash kept."""
    from transforms import storage

    prefix = storage.absolute(text)
    return storage.join(prefix, "") if text.endswith("/") else prefix


@dataclass(frozen=True)
class InputOptions(Options):
    """Which records a job reads; `input_format` None goes by each file's extension."""

    input: tuple[str, ...] = flag(
        "files, folders or patterns with wildcards (*, **) and braces, local or gs://; may be given several times",
        nargs="+",
        action="extend",
        metavar="PATTERN",
    )
    input_format: InputFormat | None = flag(
        "how records are stored (default: auto, by each file's extension)",
        None,
        type=_input_format,
        metavar="|".join(["auto", *InputFormat]),
    )
    image_column: str = flag("TFRecord feature or Parquet column with the encoded image", "image", metavar="NAME")
    label_column: str = flag(
        "TFRecord feature, Parquet or manifest column with the label, where there is one", "label", metavar="NAME"
    )
    uri_column: str = flag("manifest column that names the image files", "uri", metavar="NAME")
    label_from: LabelFrom = flag(
        "where labels come from: the label column (or folders named label=NAME), the first folder below the input, or "
        "the folder an image lies in; auto is the column where there is one, else, of image files and tars, the first "
        "folder",
        LabelFrom.AUTO,
        **one_of(LabelFrom),
    )
    keep_columns: tuple[KeptColumn, ...] = flag(
        f"input columns to copy into the output, under a NEW name if given; TYPE is one of {', '.join(KEEP_TYPES)}, "
        "or list<TYPE> in quotes (default: what holds the values of a sample of the records)",
        (),
        type=parse_kept_columns,
        metavar="NAME[=NEW][:TYPE],...",
    )

    max_record_bytes: int = flag(
        "largest record in bytes; a larger one is a failure and is not read", MAX_RECORD_BYTES, type=int, metavar="N"
    )
    allow_uri_prefix: tuple[str, ...] = flag(
        "what paths in manifests and shards may begin with, besides their own folder; several may be given (default: "
        "nothing)",
        (),
        nargs="+",
        action="extend",
        metavar="PREFIX",
    )
    follow_links: bool = flag(
        "also take the files that symbolic links in a folder lead to outside of it", False, action="store_true"
    )

    def __post_init__(self) -> None:
        if not self.input or not all(self.input):
            raise ImagebeamError(
                f"--input names at least one file, folder or pattern. Received: {spelled(self.input)}."
            )
        check_uris("--input", *self.input)
        for name, value in (("--image_column", self.image_column), ("--label_column", self.label_column)):
            if not value:
                raise ImagebeamError(f"{name} is the name of a column. Received: {value!r}.")
        _refuse_below_one("--max_record_bytes", self.max_record_bytes)
        _refuse_repeated("--keep_columns", (column.name for column in self.keep_columns), any_case=True)

    def read_options(self) -> ReadOptions:
        """What readers need of this, with Arrow types."""
        from transforms.readers.options import ReadOptions

        kept = tuple((column.name, column.arrow_type) for column in self.keep_columns)
        renamed = tuple((column.name, column.source) for column in self.keep_columns if column.name != column.source)
        prefixes = tuple(_prefix(prefix) for prefix in self.allow_uri_prefix)
        return ReadOptions(
            self.image_column,
            self.label_column,
            kept,
            self.max_record_bytes,
            prefixes,
            self.follow_links,
            self.label_from,
            self.uri_column,
            renamed,
        )


@dataclass(frozen=True)
class ModelOptions(Options):
    """What turns an image into a vector, and how many images at once."""

    model: str = flag(
        "a model of keras.applications, spelled as Keras spells it, or your own Keras 3 file, FILE.keras",
        "VGG16",
        metavar="NAME",
    )
    weights: str = flag(
        "a keyword, or a file: .weights.h5, .h5, .keras, .npz, .safetensors or, of VGG16 and VGG19, .onnx",
        "imagenet",
        metavar="imagenet|none|random:SEED|FILE",
    )
    layers: tuple[str, ...] = flag(
        "layer whose output is pooled; may be given several times (default: the last one before the classifier)",
        (),
        name="--layer",
        action="append",
        metavar="NAME",
    )
    pooling: Pooling = flag("how a feature map becomes a vector", Pooling.AVG, **one_of(Pooling))
    image_size: ImageSize = flag(
        "size in pixels that images are resized to; native keeps each image's own, default is the size that the model "
        "was trained at",
        "default",
        type=parse_image_size,
        metavar="HEIGHTxWIDTH|native|default",
    )
    interpolation: Interpolation = flag("filter used when resizing", Interpolation.BILINEAR, **one_of(Interpolation))
    resize_mode: ResizeMode = flag(
        "how an image of another aspect ratio is resized", ResizeMode.STRETCH, **one_of(ResizeMode)
    )
    precision: PrecisionChoice = flag(
        "what the model computes in; its vectors are float32. auto takes the fastest on this machine whose vectors "
        "hardly differ from float32 ones; int8 is calibrated and measured on the input, and runs on OpenVINO",
        PrecisionChoice.FLOAT32,
        **one_of(PrecisionChoice),
    )
    jpeg_decode: JpegDecode = flag(
        "scaled decodes large JPEGs at a fraction of their size (at least twice the image size), which is faster and "
        "changes the vectors a little",
        JpegDecode.EXACT,
        **one_of(JpegDecode),
    )
    preprocessing: Preprocessing | None = flag(
        "how RGB values from 0 to 255 are scaled for a model FILE.keras, by Keras' names (default: none)",
        None,
        **one_of(Preprocessing),
    )
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

    dicom_frame: int | str = flag(
        "which frame of a DICOM file is embedded", 1, type=parse_dicom_frame, metavar="N|middle"
    )

    def __post_init__(self) -> None:
        self.config()  # refuses what can be refused before any framework is imported
        _refuse_repeated("--layer", self.layers)
        _refuse_below_one("--batch_size", self.batch_size)
        _refuse_below_one("--max_image_pixels", self.max_image_pixels)

    def image_options(self, spec: EmbedderSpec) -> ImageOptions:
        """How images are decoded for an embedder of `spec`."""
        from transforms.embed.model_sources import image_options

        accept = self.truncated_images == TruncatedImages.ACCEPT
        return image_options(spec, self.max_image_pixels, accept_truncated=accept)

    def config(self) -> EmbedderConfig:
        """The embedder these options ask for; at float32 where a trial is to tell."""
        from transforms.models.config import EmbedderConfig

        return EmbedderConfig(
            model=self.model,
            weights=self.weights,
            layers=self.layers,
            pooling=self.pooling,
            image_size=self.image_size,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            precision=Precision.FLOAT32 if self.precision == PrecisionChoice.AUTO else str(self.precision),
            preprocessing=self.preprocessing,
            dicom_frame=self.dicom_frame,
            jpeg_decode=self.jpeg_decode,
        )


@dataclass(frozen=True)
class OutputOptions(Options):
    """The output folder, the storage of rows, and the behaviour of reruns."""

    output: str = flag("folder of the run, local or gs://", metavar="DIR")
    embedding_type: EmbeddingType = flag(
        "Arrow type of the vectors; list is for readers that do not know fixed-size lists",
        EmbeddingType.FIXED_SIZE_LIST,
        **one_of(EmbeddingType),
    )
    embedding_dtype: EmbeddingDtype = flag(
        "type of the stored values; Spark and Delta cannot read float16, in which a value beyond 65,504 is a failure",
        EmbeddingDtype.FLOAT32,
        **one_of(EmbeddingDtype),
    )
    rows_per_unit: int = flag(
        "most records in a work unit, and rows in its part; a crash costs the units in work",
        2048,
        type=int,
        metavar="N",
    )
    overwrite: bool = flag(
        "compute every unit again; old parts stay until the new ones are committed", False, action="store_true"
    )
    prune: bool = flag(
        "remove the rows of inputs that are not found any more; without it they stay, and the exit code is 3",
        False,
        action="store_true",
    )
    reuse: tuple[str, ...] = flag(
        "outputs of other runs with the same spec, whose vectors are taken over where they hold the same image; may be "
        "given several times (default: none)",
        (),
        nargs="+",
        action="extend",
        metavar="DIR",
    )
    retry_failed: bool = flag("try the failed records of committed units again", False, action="store_true")
    max_failure_rate: float = flag(
        "share of the records, from 0 to 1, that may fail; with more failures the exit code is 3",
        0.01,
        type=float,
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ImagebeamError(f"--output is a folder. Received: {self.output!r}.")
        check_uris("--output", self.output)
        _refuse_below_one("--rows_per_unit", self.rows_per_unit)
        if not 0 <= self.max_failure_rate <= 1:
            raise ImagebeamError(
                f"--max_failure_rate is a share of the records, from 0 to 1. Received: {self.max_failure_rate}."
            )
        if not all(self.reuse):
            raise ImagebeamError(f"--reuse names folders. Received: {spelled(self.reuse)}.")
        check_uris("--reuse", *self.reuse)
        if self.overwrite and self.reuse:
            raise ImagebeamError("--overwrite computes every vector again. Received: --reuse as well.")
        if self.overwrite and self.retry_failed:
            raise ImagebeamError("--overwrite computes failed units again too. Received: --retry_failed as well.")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `InputOptions`."""
    InputOptions.add_arguments(parser, "input", most_used=["input", "keep_columns"])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `ModelOptions`."""
    ModelOptions.add_arguments(parser, "model", most_used=["model", "weights", "layers", "pooling", "image_size"])


def add_output_arguments(parser: argparse.ArgumentParser, **settings: Any) -> None:
    """Declare the flags of `OutputOptions`; the settings are those of `Options.add_arguments`."""
    OutputOptions.add_arguments(parser, "output", most_used=["output", "overwrite"], **settings)


def check_uris(name: str, *uris: str) -> None:
    """Refuse what only looks like a path or URL, such as gs:/bucket.

    Raises:
        ImagebeamError: naming the flag, and what was probably meant.
    """
    from transforms import storage

    for uri in uris:
        try:
            storage.absolute(uri)
        except ImagebeamError as error:
            raise ImagebeamError(f"{name}: {error}") from None


def _refuse_repeated(name: str, values: Iterable[str], *, any_case: bool = False) -> None:
    """Refuse a value given twice; SQL readers cannot tell columns apart whose names differ by case alone."""
    values = list(values)
    for value, count in Counter(value.casefold() if any_case else value for value in values).items():
        if count > 1:
            given = next(one for one in values if one == value or (any_case and one.casefold() == value))
            case = ", in whatever case" if any_case else ""
            raise ImagebeamError(f"{name} takes each name once{case}. Received: {given!r} {count} times.")


def _refuse_below_one(name: str, value: int) -> None:
    if value < 1:
        raise ImagebeamError(f"{name} is at least 1. Received: {value}.")
