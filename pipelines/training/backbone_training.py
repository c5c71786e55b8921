"""Run fine-tuning: cache the images, embed them once, train the backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipelines.common.console import print_table, say
from pipelines.options.finetuning import FinetuneOptions
from transforms.core.errors import ImagebeamError
from transforms.core.text import printable, size_text, spelled

if TYPE_CHECKING:
    import keras

    from transforms.core.spec import EmbedderSpec
    from transforms.readers.options import ReadOptions
    from transforms.training.backbone import TunedLayer
    from transforms.training.checkpoint import Checkpoint
    from transforms.training.fit import FitState
    from transforms.training_data.image_cache import ImageSet
    from transforms.training_data.row_index import RowIndex


def inspect_images(options: FinetuneOptions) -> ReadOptions:
    """Look at the input: what is read of it, the columns that splits and groups are told by among it.

    Raises:
        ImagebeamError: where the input is not what the flags say.
    """
    import pyarrow as pa

    from transforms.inputs.inspection import inspect_input
    from transforms.training_data.image_cache import OWN_COLUMNS

    read = options.input.read_options()
    for column, flag in ((options.rows.split_column, "--split_column"), (options.rows.group_column, "--group_column")):
        if column is not None and column not in OWN_COLUMNS:  # One of the two at most.
            read = dataclasses.replace(read, keep_columns=((column, pa.null()),), kept_by=flag)
    return inspect_input(_patterns(options), options.input.input_format, read)


def hold_images(options: FinetuneOptions, read: ReadOptions, spec: EmbedderSpec, file: BinaryIO) -> ImageSet:
    """All images of the input, decoded.

    Args:
        options: what is read, and how many records may fail.
        read: as `inspect_images` gives it.
        spec: how images become pixels.
        file: temporary, local; the pixels are mapped into memory from there.

    Raises:
        ImagebeamError: where more records than allowed gave no image.
    """
    from transforms.training_data.image_cache import read_images

    say(f"Reading and decoding images to {size_text(spec.image_size)}")
    images = read_images(
        _patterns(options),
        options.input.input_format,
        read,
        options.model.image_options(spec),
        spec,
        file,
        batch_size=options.model.batch_size,
    )
    failed, total = len(images.failures), len(images.failures) + len(images.table)
    if not total:
        raise ImagebeamError(
            "There is nothing to learn from: the input has no records. Received: --input "
            f"{spelled(options.input.input)}."
        )
    if failed:
        first = images.failures[0]
        what = f"{failed:,} of {total:,} records gave no image; the first is {first.key}: {first.message}"
        if failed > options.tune.max_failure_rate * total or failed == total:
            raise ImagebeamError(f"{what}. That is more than --max_failure_rate {options.tune.max_failure_rate}.")
        say(f"WARNING: {what}")
    return images


def _patterns(options: FinetuneOptions) -> tuple[str, ...]:
    from transforms import storage

    return tuple(storage.absolute(pattern) for pattern in options.input.input)


def print_layers(layers: Sequence[TunedLayer]) -> None:
    """Print which layers learn."""
    from rich.table import Table

    from transforms.training.backbone import count_parameters

    tuned, parameters = count_parameters(layers)
    printed = Table("keras", "weights", "layer", "type", "output shape", "parameters", "trainable", box=None)
    for layer in layers:
        shape = "x".join("?" if size is None else str(size) for size in layer.output_shape)
        trainable = "yes" if layer.trainable else "no" if layer.parameters else ""
        numbers = str(layer.keras_number), str(layer.number or "")
        names = _plain(layer.name), _plain(layer.type)
        printed.add_row(*numbers, *names, shape, f"{layer.parameters:,}", trainable)
    print_table(printed)
    say(f"{tuned:,} of {parameters:,} parameters of the model are trainable")


def check_unfreezing(options: FinetuneOptions, layers: Sequence[TunedLayer]) -> None:
    """Refuse an unfreezing that has not come to the first layer when the epochs are over.

    Raises:
        ImagebeamError: if that is so.
    """
    per_epoch, learning = options.tune.unfreeze_per_epoch, sum(layer.trainable for layer in layers)
    if per_epoch and (needed := -(-learning // per_epoch)) > options.fit.epochs:
        raise ImagebeamError(
            f"{learning} layers are to learn, {per_epoch} more with each epoch, which takes {needed} epochs. Received: "
            f"--unfreeze_per_epoch {per_epoch} and --epochs {options.fit.epochs}. Raise one of them."
        )


def _plain(name: str) -> str:
    """A name of a model's file, which is neither markup nor anything that a terminal obeys."""
    from rich.markup import escape

    return escape(printable(name))


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
    from pipelines.training.head_training import fit_as_told
    from transforms.training.backbone import build_training_model, first_epochs
    from transforms.training_data.image_cache import image_batches
    from transforms.training_data.splits import Split

    tune, how, multi_label, batch_size = options.tune, options.fit, index.multi_label, options.model.batch_size
    begin = first_epochs(backbone, tune.unfreeze_per_epoch) if tune.unfreeze_per_epoch else {}
    train, validation = index.rows(Split.TRAIN), index.rows(Split.VALIDATION)
    return fit_as_told(
        build_training_model(spec, backbone, head, tune.augment, multi_label=multi_label, seed=how.seed),
        dataclasses.replace(how, batch_size=batch_size),
        index.counts[Split.TRAIN.code],
        len(train),
        lambda order: image_batches(images, train, index.targets, batch_size, order),
        image_batches(images, validation, index.targets, batch_size) if len(validation) else None,
        multi_label=multi_label,
        checkpoint=checkpoint,
        watched=True,
        each_epoch=True,
        first_epochs=begin,
    )
