"""Decode labelled images once, as extract does, into one file of pixels for training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa

from transforms.core.batching import decode_pool, map_ahead
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.spec import EmbedderSpec
from transforms.core.types import Failure, Record, Stage
from transforms.images.decode import ImageError, ImageOptions, decode_image, prepare_pillow
from transforms.images.errors import NOT_AN_IMAGE
from transforms.inputs.plan import cut_shard, plan
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import WorkUnit
from transforms.training_data.batches import to_dataset
from transforms.training_data.embeddings import RowGroup
from transforms.training_data.vector_sources import EpochOrder

LABEL = "label"
"""The column with the label, whatever it was called in the input."""

OWN_COLUMNS = ("key", "uri", LABEL, "sha256")
"""Of an `ImageSet`, as of a part of embeddings, whatever the input's columns are called."""

_ROWS_PER_UNIT = 2048

_AHEAD = 64
"""Records between the reader and the file."""

_BATCHES_AHEAD = 4
"""Batches of images that wait for the model: they cost it far more time than it takes to gather them."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with their labels: a `dataset.RowSet` whose arrays are pixels.

    Attributes:
        pixels: uint8 RGB [rows, height, width, 3], mapped from a file.
        table: key, uri, label, sha256 and the kept columns.
        groups: stretches of as many rows as a model is to take at once.
        spec: of the embedder that the images are for.
        failures: records that gave no image.
    """

    pixels: np.ndarray
    table: pa.Table
    groups: tuple[RowGroup, ...]
    spec: EmbedderSpec
    failures: tuple[Failure, ...]

    column: ClassVar[str] = "pixels"

    @property
    def schema(self) -> pa.Schema:
        """Of the columns but the pixels."""
        return self.table.schema

    @property
    def failure_counts(self) -> dict[str, int]:
        """Failures by "stage/error_type"."""
        return dict(Counter(f"{failure.stage}/{failure.error_type}" for failure in self.failures))

    def read(self, groups: Iterable[RowGroup], columns: Sequence[str]) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Columns of groups, in the order given; pixels are not among them, `vectors` gives those."""
        table = self.table.select([name for name in columns if name != self.column])
        for group in groups:
            yield group, table.slice(group.start, group.rows)

    def vectors(self, group: RowGroup, table: pa.Table) -> np.ndarray:  # noqa: ARG002 - pixels are not in the table
        """The pixels of a group."""
        return self.pixels[group.start : group.start + group.rows]


def read_images(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    read: ReadOptions,
    options: ImageOptions,
    spec: EmbedderSpec,
    file: BinaryIO,
    *,
    batch_size: int,
) -> ImageSet:
    """Read and decode every record once; its pixels go to a file, which training maps instead of holding them.

    Args:
        patterns: of the input.
        input_format: of every file, or None to go by the names.
        read: which columns hold what.
        options: the image policy's settings, with a fixed size.
        spec: of the embedder that the images are for.
        file: local, empty, to write to: height x width x 3 bytes an image.
        batch_size: rows of a group.

    Raises:
        ImagebeamError: if an image, or the rest of a shard, cannot be read, and not for what it holds.
        OSError: if the file cannot be written.
    """
    assert options.image_size is not None
    prepare_pillow()
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []

    def decode(record: Record | Failure) -> tuple[dict[str, Any], np.ndarray] | Failure:
        return _decode(record, options)

    records = _records(patterns, input_format, read)
    for outcome in map_ahead(decode, records, decode_pool(), _AHEAD, _size):
        if isinstance(outcome, Failure):
            _refuse_fault(outcome)
            failures.append(outcome)
        else:
            row, pixels = outcome
            file.write(np.ascontiguousarray(pixels).data)
            rows.append(row)
    file.flush()
    shape = (len(rows), *options.image_size, 3)
    mapped = np.memmap(file, np.uint8, "r", shape=shape) if rows else np.empty(shape, np.uint8)
    groups = tuple(
        RowGroup(ImageSet.column, number, start, min(batch_size, len(rows) - start))
        for number, start in enumerate(range(0, len(rows), batch_size))
    )
    return ImageSet(mapped, pa.Table.from_pylist(rows, _schema(read)), groups, spec, tuple(failures))


def _records(
    patterns: Sequence[str], input_format: InputFormat | None, read: ReadOptions
) -> Iterator[Record | Failure]:
    for item in plan(patterns, input_format, _ROWS_PER_UNIT, options=read):
        for unit in cut_shard(item, _ROWS_PER_UNIT, read):
            if isinstance(unit, WorkUnit):
                yield from read_records(unit, read)


def _size(record: Record | Failure) -> int:
    return len(record.data) if isinstance(record, Record) else 0


def _refuse_fault(failure: Failure) -> None:
    """Stop if the machine could not read an image, rather than train without it.

    Raises:
        ImagebeamError: if that is so.
    """
    if failure.retryable:
        raise ImagebeamError(
            f"{failure.uri} cannot be read because of the machine or the storage ({failure.error_type}: "
            f"{failure.message}). Run the same command again once it can."
        )


def _schema(read: ReadOptions) -> pa.Schema:
    text = [(name, pa.string()) for name in OWN_COLUMNS]
    return pa.schema([*text, *read.keep_columns])


def _decode(record: Record | Failure, options: ImageOptions) -> tuple[dict[str, Any], np.ndarray] | Failure:
    if isinstance(record, Failure):
        return record
    sha256 = hashlib.sha256(record.data).hexdigest()
    try:
        pixels = decode_image(record.data, options).pixels
    except ImageError as error:
        known = None if error.error_type == NOT_AN_IMAGE else sha256
        return Failure(record.key, record.uri, Stage.DECODE, error.error_type, str(error), known)
    return {**record.extras, "key": record.key, "uri": record.uri, LABEL: record.label, "sha256": sha256}, pixels


def image_batches(
    images: ImageSet,
    rows: np.ndarray,
    targets: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    order: EpochOrder | None = None,
) -> Any:
    """Rows as a dataset of batches, the last of which may be smaller.

    Args:
        images: all of them.
        rows: numbers of those wanted.
        targets: row numbers [n] -> targets [n, ...], such as `RowIndex.targets`.
        batch_size: images.
        order: shuffle, in the order of its epoch; None to keep the rows as they are.

    Returns:
        What `batches.to_dataset` gives, of (uint8 [batch_size, height, width, 3], targets).
    """

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        places = rows if order is None else order.generator().permutation(rows)
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            yield images.pixels[chosen], targets(chosen)

    example = images.pixels[:0], targets(np.empty(0, np.int64))
    return to_dataset(batches, example, len(rows), batch_size, _BATCHES_AHEAD)
