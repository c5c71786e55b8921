"""The steps of fine-tuning as the flags say: images held ready, their first vectors, the backbone trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipelines.common.console import say
from pipelines.options.finetuning import FinetuneOptions
from transforms.core.errors import ImagebeamError
from transforms.core.text import printable
from transforms.models.architectures import size_text

if TYPE_CHECKING:
    import keras

    from pipelines.runtime.head_training import Lesson
    from transforms.core.spec import EmbedderSpec
    from transforms.training.backbone import TunedLayer
    from transforms.training.checkpoint import Checkpoint
    from transforms.training.fit import FitState
    from transforms.training.image_cache import ImageSet
    from transforms.training.row_index import RowIndex


def hold_images(options: FinetuneOptions, spec: EmbedderSpec, file: BinaryIO) -> ImageSet:
    """All images of the input, decoded.

    Args:
        options: what is read, and how many records may fail.
        spec: how images become pixels.
        file: temporary, local; the pixels are mapped into memory from there.

    Raises:
        ImagebeamError: where the input is not what the flags say, or more records than allowed gave no image.
    """
    import pyarrow as pa

    from transforms import storage
    from transforms.inputs.inspection import inspect_input
    from transforms.training.image_cache import read_images

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


def print_layers(layers: Sequence[TunedLayer]) -> None:
    """Print which layers learn."""
    from rich.console import Console
    from rich.table import Table

    from transforms.training.backbone import count_parameters

    tuned, parameters = count_parameters(layers)
    printed = Table("layer", "type", "output shape", "parameters", "trainable", box=None)
    for column in printed.columns:
        column.overflow = "fold"
    for layer in layers:
        shape = "x".join("?" if size is None else str(size) for size in layer.output_shape)
        trainable = "yes" if layer.trainable else "no" if layer.parameters else ""
        printed.add_row(_plain(layer.name), _plain(layer.type), shape, f"{layer.parameters:,}", trainable)
    Console(width=None if sys.stdout.isatty() else 120).print(printed)
    say(f"{tuned:,} of {parameters:,} parameters of the model are trainable")


def _plain(name: str) -> str:
    """A name of a model's file, which is neither markup nor anything that a terminal obeys."""
    from rich.markup import escape

    return escape(printable(name))


def embed_images(embedder: keras.Model, images: ImageSet, index: RowIndex, batch_size: int) -> Lesson:
    """The vectors of the images as they are before tuning: what the head learns from alone.

    Raises:
        ImagebeamError: if some are not finite.
    """
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    from pipelines.runtime.head_training import Lesson
    from transforms.models.prediction import predict_rows
    from transforms.training.sources import MatrixSource, Sources, moments
    from transforms.training.splits import Split

    say(f"Embedding {len(images.table):,} images for the first phase")
    sources: dict[Split, MatrixSource] = {}
    for split in (Split.TRAIN, Split.VALIDATION):
        rows = index.rows(split)
        if len(rows):
            batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
            vectors = [predict_rows(embedder, images.pixels[batch], batch_size) for batch in batches]
            sources[split] = MatrixSource(np.concatenate(vectors), rows)
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


def tune_backbone(
    options: FinetuneOptions,
    spec: EmbedderSpec,
    backbone: keras.Model,
    head: keras.Model,
    images: ImageSet,
    index: RowIndex,
    checkpoint: Checkpoint,
) -> FitState:
    """Train the head and what is not frozen of the backbone, in place.

    Raises:
        ImagebeamError: if training diverges.
    """
    from pipelines.runtime.head_training import fit_as_told
    from transforms.training.backbone import build_training_model
    from transforms.training.image_cache import image_batches
    from transforms.training.splits import Split

    tune, multi_label, batch_size = options.tune, index.multi_label, options.model.batch_size
    how = dataclasses.replace(
        options.fit,
        epochs=tune.tune_epochs,
        batch_size=batch_size,
        learning_rate=tune.tune_learning_rate,
        patience=tune.tune_patience,
    )
    train, validation = index.rows(Split.TRAIN), index.rows(Split.VALIDATION)
    return fit_as_told(
        build_training_model(spec, backbone, head, tune.augment, multi_label=multi_label, seed=how.seed),
        how,
        index.counts[Split.TRAIN.code],
        len(train),
        lambda order: image_batches(images, train, index.targets, batch_size, order),
        image_batches(images, validation, index.targets, batch_size) if len(validation) else None,
        multi_label=multi_label,
        checkpoint=checkpoint,
        watched=True,
    )
