"""`imagebeam export`: export a classifier or embedder to another runtime and compare it with the Keras model."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from pipelines.common.fields import Options, flag, one_of
from pipelines.common.flags import JobParser, parse
from transforms.core.errors import ImagebeamError, using
from transforms.core.formats import InputFormat
from transforms.models.export import Agreement, ExportFormat

if TYPE_CHECKING:
    import keras
    import numpy as np

DESCRIPTION = """\
Export a trained classifier (image in, probabilities out) or an embedder for other runtimes, by Keras' own export. The
exported file is run on images beside the Keras model, and is kept only where both give the same output."""

EXAMPLES = (
    "imagebeam export out/classifier --format onnx --output out/classifier.onnx",
    "imagebeam export out/photos --format tflite --output out/embedder.tflite --images 'photos/*.jpg'",
)

_KERAS_FILES = ("image_classifier.keras", "classifier.keras")
"""What is exported of a classifier's folder: the first of these that is there."""

_BATCHES = (1, 7)
"""Rows of the batches that are compared: two sizes, since an export may fix it."""

_DEFAULT_SIDE = 224
"""Pixels, for models that take images of any size."""


@dataclass(frozen=True)
class ExportOptions(Options):
    """What is exported, as what, and how exactly."""

    source: str = flag("output of train, finetune or extract, or a .keras file; local or gs://")
    format: ExportFormat = flag(
        "format of what is written", metavar="|".join(ExportFormat), type=one_of(ExportFormat)["type"]
    )
    output: str = flag(
        "where to write: a folder for saved_model, else a file that ends in .tflite, .onnx or .xml; local or gs://",
        metavar="X",
    )
    images: tuple[str, ...] = flag(
        "image files, folders or patterns to compare on; the first eight images are used (default: crops of "
        "photographs that scikit-learn brings; for a model of vectors, random vectors)",
        (),
        nargs="+",
        action="extend",
        metavar="PATTERN",
    )
    max_difference: float = flag(
        "largest difference from the Keras model's output that is accepted, as a share of the largest output",
        1e-4,
        type=float,
        metavar="SHARE",
    )
    overwrite: bool = flag("replace what is there", False, action="store_true")

    def __post_init__(self) -> None:
        for name in ("source", "output"):
            if not getattr(self, name):
                raise ImagebeamError(f"The {name} is a file or folder. Received: ''.")
        if not self.output.endswith(self.format.ending):
            raise ImagebeamError(
                f"--format {self.format} writes a file whose name ends in {self.format.ending}. Received: --output "
                f"{self.output}."
            )
        if not 0 <= self.max_difference < float("inf"):
            raise ImagebeamError(f"--max_difference is at least 0. Received: {self.max_difference}.")


def run(options: ExportOptions) -> Agreement:
    """Export, compare, write.

    Raises:
        ImagebeamError: if there is no model, the format needs a package, or the exported model gives something else.
    """
    from transforms import storage

    output, uri = storage.absolute(options.output), _find_model(storage.absolute(options.source))
    if not options.overwrite and (storage.exists(output) or any(True for _ in storage.list_folder(output))):
        raise ImagebeamError(f"{output} is there. Choose another --output, or replace it with --overwrite.")

    from transforms.models import export
    from transforms.training.head import load

    export.check_packages(options.format)
    with storage.local_file(uri) as path:
        model, labels = load(path), _labels(path)
    batches = list(_batches(model, options.images))
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"model{options.format.ending}"
        say(f"Exporting {uri}")
        export.export(model, options.format, written, batches[0])
        agreement = export.compare(model, export.open_exported(options.format, written), batches)
        say(
            f"Largest difference from the Keras model on {agreement.rows} {_rows_of(model)}: "
            f"{agreement.difference:.3g}, which is {agreement.relative:.2g} of the largest output"
        )
        if not agreement.relative <= options.max_difference:
            raise ImagebeamError(
                f"The exported model gives something else than the Keras model: {agreement.relative:.3g} is more than "
                f"--max_difference {options.max_difference:g}. Nothing is written. Choose another --format."
            )
        with using("The output", f"--output {output!r}"):
            _publish(written, output, labels)
    say(f"  {output}")
    return agreement


def _find_model(source: str) -> str:
    from transforms import storage

    if source.endswith(".keras"):
        if not storage.exists(source):
            raise ImagebeamError(f"There is no such model file. Received: {source}.")
        return source
    for name in _KERAS_FILES:
        if storage.exists(uri := storage.join(source, *name.split("/"))):
            return uri
    from transforms.models.staged import read_staged

    for folder in (storage.join(source, "model"), source):
        if staged := read_staged(folder):
            return staged.model_uri
    raise ImagebeamError(
        f"There is no model in {source}: no {', '.join(_KERAS_FILES)} or model/spec.json. Name what train, finetune or "
        "extract was given as --output, or a .keras file."
    )


def _labels(path: Path | str) -> bytes | None:
    """The content of labels.json, where the model is a classifier's."""
    from transforms.training.head import read_labels, to_json

    try:
        return to_json(read_labels(path))
    except ValueError:
        return None


def _rows_of(model: keras.Model) -> str:
    return "images" if len(model.input_shape) == 4 else "vectors"


def _batches(model: keras.Model, patterns: Sequence[str]) -> Iterator[np.ndarray]:
    """Batches that the model takes.

    Raises:
        ImagebeamError: if the model takes neither images nor vectors, or there are too few images.
    """
    import numpy as np

    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) not in (2, 4) or (len(shape) == 2 and patterns):
        what = "takes vectors, and no --images" if isinstance(shape, tuple) and len(shape) == 2 else "takes no images"
        raise ImagebeamError(f"{model.name} {what}. Its input is {shape}.")
    if len(shape) == 4 and shape[-1] != 3:
        raise ImagebeamError(
            f"{model.name} takes no RGB images [n, height, width, 3], on which what is exported is compared. Its input "
            f"is {shape}. Export a model around it that does, or call model.export of Keras."
        )
    rows: Any
    if len(shape) == 2:
        rows = np.abs(np.random.default_rng(0).normal(size=(sum(_BATCHES), shape[1]))).astype(np.float32)
    else:
        size = (shape[1] or _DEFAULT_SIDE, shape[2] or _DEFAULT_SIDE)
        images = _read_images(patterns, size) if patterns else _photographs(size)
        rows = np.stack(images).astype(model.inputs[0].dtype)
    yield rows[: _BATCHES[0]]
    if len(rows) > _BATCHES[0]:
        yield rows[_BATCHES[0] : sum(_BATCHES)]


def _read_images(patterns: Sequence[str], size: tuple[int, int]) -> list[np.ndarray]:
    """Pixels of the first few images, uint8 [height, width, 3]."""
    from transforms import storage
    from transforms.images.decode import ImageError, ImageOptions, decode_image
    from transforms.inputs.discover import list_inputs

    images = []
    for shard in itertools.islice(list_inputs(patterns, InputFormat.FILES), sum(_BATCHES)):
        try:
            images.append(decode_image(storage.read_bytes(shard.file.uri), ImageOptions(image_size=size)).pixels)
        except ImageError as error:
            raise ImagebeamError(f"{shard.file.uri} gives no image to compare on: {error}") from error
    return images


def _photographs(size: tuple[int, int]) -> list[np.ndarray]:
    """Crops of the two photographs of scikit-learn, uint8 [height, width, 3]."""
    import numpy as np
    import PIL.Image
    from sklearn.datasets import load_sample_images

    random, crops = np.random.default_rng(0), []
    for number in range(sum(_BATCHES)):
        photograph = PIL.Image.fromarray(load_sample_images().images[number % 2])
        side = int(random.integers(100, min(photograph.size)))
        left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
        crops.append(np.asarray(photograph.crop((left, top, left + side, top + side)).resize(size[::-1])))
    return crops


def _publish(written: Path, output: str, labels: bytes | None) -> None:
    """Move the exported files to their place, with the class names beside them; the main file last."""
    from transforms import storage

    if written.is_dir():
        files = sorted((path for path in written.rglob("*") if path.is_file()), key=lambda path: path.suffix == ".pb")
        for path in files:
            storage.publish_file(storage.join(output, *path.relative_to(written).parts), path)
        names = storage.join(output, "labels.json")
    else:
        stem = output.removesuffix(written.suffix)
        for path in sorted(written.parent.glob(f"{written.stem}.*"), key=lambda path: path == written):
            storage.publish_file(f"{stem}{path.suffix}", path)
        names = f"{stem}.labels.json"
    if labels is not None:
        storage.publish(names, labels)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam export`."""
    (source,) = (field for field in dataclasses.fields(ExportOptions) if field.name == "source")
    parser.add_argument("source", metavar="DIR|FILE.keras", help=source.metadata["help"])
    ExportOptions.add_arguments(parser, "export", leave_out=("source",))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = JobParser("export", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    run(ExportOptions.from_args(args))
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("export"))
