"""`imagebeam layers`: list a model's layers, their output shapes and the vector lengths."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.common.cache import cache_folder
from pipelines.common.fields import Options, flag
from pipelines.common.flags import JobParser, parse
from pipelines.options.extraction import ImageSize, ModelOptions, parse_image_size, resolve_image_size
from transforms.core.errors import ImagebeamError
from transforms.core.text import size_text
from transforms.models.architectures import Architecture
from transforms.models.layer_tables import LayerInfo, list_layers
from transforms.models.own_model import OwnModel, find_model

DESCRIPTION = """\
List a model's layers: the names --layer takes, their output shapes, and the length of the vector that average or
maximum pooling makes of each. The last two columns number the layers: as Keras counts them, for finetune's
--freeze_keras_layers, and those with weights alone, for --freeze_layers. The classifier's layers are listed at the
default size only: they take no other."""

EXAMPLES = (
    "imagebeam layers --model ResNet50V2",
    "imagebeam layers --model VGG16 --image_size 299x299 --format json",
)


@dataclass(frozen=True)
class LayersOptions(Options):
    """Which model to list, at which size, and how."""

    model: str = flag("a model of keras.applications, or your own FILE.keras", ModelOptions.model, metavar="NAME")
    image_size: ImageSize = flag(
        "input size in pixels; native for any size, default for the size that the model was trained at",
        ModelOptions.image_size,
        type=parse_image_size,
        metavar="HEIGHTxWIDTH|native|default",
    )
    format: str = flag("format of what is printed", "table", choices=("table", "json"), metavar="table|json")

    def __post_init__(self) -> None:
        if self.resolved_size is not None:
            self.architecture.check_size(self.resolved_size)

    @property
    def architecture(self) -> Architecture | OwnModel:
        """The model asked for."""
        return find_model(self.model)

    @property
    def resolved_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, or None for any."""
        return resolve_image_size(self.image_size, self.architecture)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam layers`."""
    LayersOptions.add_arguments(parser, "model")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0."""
    parser = JobParser("layers", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    options = LayersOptions.from_args(args)
    architecture, image_size = options.architecture, options.resolved_size
    cache = None
    with contextlib.suppress(ImagebeamError):  # Without a cache it takes longer.
        cache = cache_folder()
    layers = list_layers(architecture, image_size, cache)
    if options.format == "json":
        about = {
            "model": architecture.name,
            "image_size": image_size,
            "default_size": _default(architecture),
            "min_size": architecture.min_size,
            "layers": [
                {**dataclasses.asdict(layer), "keras_number": number, "number": weighted}
                for layer, number, weighted in _numbered(layers)
            ],
        }
        sys.stdout.write(json.dumps(about, indent=2) + "\n")
    else:
        sys.stdout.write(_table(architecture, image_size, layers))
    return 0


def _default(architecture: Architecture | OwnModel) -> int | tuple[int, int] | None:
    """The side of a built-in model's images in pixels; (height, width) of one's own, None where it takes any."""
    if isinstance(architecture, OwnModel):
        return None if None in architecture.input_size else architecture.default_image_size
    return architecture.default_size


def _numbered(layers: Sequence[LayerInfo]) -> Iterator[tuple[LayerInfo, int, int | None]]:
    """Each layer with its number as Keras counts, and its number among those with weights, both from 1."""
    weighted = itertools.count(1)
    for number, layer in enumerate(layers, 1):
        yield layer, number, next(weighted) if layer.parameters else None


def _table(
    architecture: Architecture | OwnModel, image_size: tuple[int, int] | None, layers: Sequence[LayerInfo]
) -> str:
    """Plain aligned text, one line a layer, so that grep and awk read it too."""
    rows = [("layer", "type", "output shape", "dimension", "keras", "weights")]
    for layer, number, weighted in _numbered(layers):
        shape = "x".join("?" if size is None else str(size) for size in layer.output_shape)
        rows.append((layer.name, layer.type, shape, str(layer.dimension or "-"), str(number), str(weighted or "-")))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        f"{architecture.name}, image size {size_text(image_size)}; "
        f"default {size_text(architecture.default_image_size) if _default(architecture) else 'none'}, "
        f"smallest {architecture.min_size}x{architecture.min_size}",
        "",
        *("  ".join([*map(str.ljust, row, widths), row[5]]) for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("layers"))
