"""Records to embeddings: the durable unit-to-part transform."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import numpy as np

from transforms.core.batching import MODEL_CALLS, batch_by_shape, decode_pool, map_ahead
from transforms.core.types import Failure, Image, Record, Row, Stage
from transforms.images.decode import ImageError, ImageOptions, decode_image, prepare_pillow
from transforms.images.errors import NOT_AN_IMAGE
from transforms.inputs.image_files import read_file
from transforms.inputs.read import open_records
from transforms.inputs.types import MAX_RECORD_BYTES, ReadOptions, RecordRef, WorkUnit
from transforms.runs.commit_units import CommitUnits, PartLayout, UnitModel, UnitModelSource, UnitResult, count_batch

Batch = list["Decoded"]

_PROBE_SIZE = (224, 224)
"""Height and width of the image that shows whether a model works, where images keep their own sizes."""


class ImageModel(UnitModel, Protocol):
    """Whatever turns images into vectors: an `embedder.Embedder`, a `classify.Classifier`, or a fake in tests.

    Two threads call it at once.
    """

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images of one shape, uint8 RGB [n, height, width, 3] -> column name -> float32 [n, dimension]."""


class ModelSource(Protocol):
    """Whatever can give the model to a worker: `staged.StagedModel`, or a fake in tests."""

    def load(self) -> ImageModel:
        """Load it; called once a process."""


class ImageModelSource(ModelSource, UnitModelSource, Protocol):
    """A `ModelSource` that knows what the model will say of itself."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A record on its way to the model, its bytes dropped. `index` is its place in the unit."""

    index: int
    record: Record
    image: Image
    sha256: str


@dataclass(frozen=True)
class EmbedOptions:
    """How a unit's records become rows.

    Attributes:
        images: the image policy's settings.
        batch_size: images in one call of the model at most.
        pixel_budget: pixels in one call of the model at most, where images keep their own sizes; it bounds the model's
            memory. At a fixed size `batch_size` alone does.
        max_record_bytes: an image file of more bytes is a failure, before it is read.
    """

    images: ImageOptions
    batch_size: int = 32
    pixel_budget: int = 32 * 224 * 224
    max_record_bytes: int = MAX_RECORD_BYTES

    @property
    def batch_pixels(self) -> int:
        """Pixels in one call of the model at most."""
        if self.images.image_size is None:
            return self.pixel_budget
        return self.batch_size * self.images.image_size[0] * self.images.image_size[1]

    @property
    def ahead(self) -> int:
        """Records between the reader and the model: two batches, or fewer where one image may be very large."""
        return 2 * self.batch_size if self.images.image_size is not None else 8


BatchDone = Callable[[int, float], None]


def embed_records(
    records: Iterable[Record | Failure | RecordRef],
    embedder: ImageModel,
    options: EmbedOptions,
    on_batch: BatchDone | None = None,
) -> UnitResult:
    """Decode and embed records; every one ends as one row or one failure.

    Reading and decoding run ahead of the model, in other threads.

    Args:
        records: what the reader gave; its failures pass through, and files that it left unread are read.
        embedder: the model.
        options: see `EmbedOptions`.
        on_batch: called after each call of the model with the number of images embedded and the seconds it took.

    Raises:
        Exception: whatever the model raises when it cannot embed a whole batch, not one image of it: then the
            machine is at fault rather than an image, and nothing should be committed.
    """
    rows: dict[int, Row] = {}
    failures: dict[int, Failure] = {}
    icc_profiles_ignored = 0

    def decode(item: tuple[int, Record | Failure | RecordRef]) -> tuple[int, Decoded | Failure]:
        index, record = item
        if isinstance(record, RecordRef):
            record = read_file(record, options.max_record_bytes)
        return index, _decode(index, record, options.images)

    def decoded() -> Iterator[Decoded]:
        for index, outcome in map_ahead(decode, enumerate(records), decode_pool(), options.ahead, _size):
            if isinstance(outcome, Failure):
                failures[index] = outcome
            else:
                yield outcome

    def shape_of(item: Decoded) -> tuple[int, ...]:
        return item.image.pixels.shape

    def embed(batch: Batch) -> tuple[float, list[tuple[Decoded, Row | Failure]], float]:
        started = time.perf_counter()
        outcomes = _embed_batch(batch, embedder)
        return started, outcomes, time.perf_counter()

    ended = 0.0
    batches = batch_by_shape(decoded(), shape_of, options.batch_size, options.batch_pixels)
    for started, outcomes, end in map_ahead(embed, batches, _model_pool(), MODEL_CALLS):
        embedded, seconds = len(rows), end - max(started, ended)  # without what the batch before overlaps with it
        ended = max(ended, end)
        for item, outcome in outcomes:
            icc_profiles_ignored += item.image.icc_profile_ignored
            if isinstance(outcome, Failure):
                failures[item.index] = outcome
            else:
                rows[item.index] = outcome
        if on_batch is not None:
            on_batch(len(rows) - embedded, max(0.0, seconds))
    return UnitResult(_in_order(rows), _in_order(failures), icc_profiles_ignored)


@functools.cache
def _model_pool() -> ThreadPoolExecutor:
    """The process's threads that call the model: while a device computes for the one, the other's batch is copied."""
    return ThreadPoolExecutor(MODEL_CALLS, thread_name_prefix="model")


def _in_order(items: dict[int, Any]) -> list[Any]:
    return [items[index] for index in sorted(items)]


def _size(item: tuple[int, Record | Failure | RecordRef]) -> int:
    """Bytes that a record holds, or will hold once it is read."""
    record = item[1]
    if isinstance(record, RecordRef):
        return record.size or 0
    return len(record.data) if isinstance(record, Record) else 0


def _decode(index: int, record: Record | Failure, options: ImageOptions) -> Decoded | Failure:
    if isinstance(record, Failure):
        return record
    sha256 = hashlib.sha256(record.data).hexdigest()
    try:
        image = decode_image(record.data, options)
        return Decoded(index, dataclasses.replace(record, data=b""), image, sha256)
    except ImageError as error:
        known = None if error.error_type == NOT_AN_IMAGE else sha256  # Of what is no image nothing is told.
        return Failure(record.key, record.uri, Stage.DECODE, error.error_type, str(error), known)


def _embed_batch(batch: Batch, embedder: ImageModel) -> list[tuple[Decoded, Row | Failure]]:
    """Run the model on images of one shape; where it fails, once more, then in halves down to the images at fault.

    Raises:
        Exception: the model's own, if it fails for every one of several images, or for a black image too.
    """
    try:
        return list(_call(batch, embedder))
    except Exception as error:
        outcomes = _halved(batch, embedder)
        failed = sum(isinstance(outcome, Failure) for _, outcome in outcomes)
        if failed and (failed == len(batch) > 1 or not _is_working(embedder)):
            raise
        if isinstance(error, MemoryError):
            return [(item, _retryable(outcome)) for item, outcome in outcomes]
        return outcomes


def _is_working(embedder: ImageModel) -> bool:
    """Whether the model still embeds a plain image: the device may be gone."""
    height, width = embedder.spec.image_size or _PROBE_SIZE
    try:
        embedder.embed(np.zeros((1, height, width, 3), np.uint8))
    except Exception:
        return False
    return True


def _retryable(outcome: Row | Failure) -> Row | Failure:
    return dataclasses.replace(outcome, retryable=True) if isinstance(outcome, Failure) else outcome


def _halved(batch: Batch, embedder: ImageModel) -> list[tuple[Decoded, Row | Failure]]:
    try:
        return list(_call(batch, embedder))
    except Exception as error:
        if len(batch) == 1:
            return [(batch[0], _embed_failure(batch[0], type(error).__name__, str(error)))]
        middle = len(batch) // 2
        return _halved(batch[:middle], embedder) + _halved(batch[middle:], embedder)


def _call(batch: Batch, embedder: ImageModel) -> Iterator[tuple[Decoded, Row | Failure]]:
    vectors = embedder.embed(np.stack([item.image.pixels for item in batch]))
    finite = np.logical_and.reduce([np.isfinite(matrix).all(axis=1) for matrix in vectors.values()])
    for position, item in enumerate(batch):
        if finite[position]:
            yield item, _row(item, {column: matrix[position] for column, matrix in vectors.items()})
        else:
            yield item, _embed_failure(item, "not_finite", "the embedding has NaN or infinite values")


def _row(item: Decoded, vectors: Mapping[str, np.ndarray]) -> Row:
    record, image = item.record, item.image
    return Row(
        record.key, record.uri, record.label, image.width, image.height, item.sha256, vectors, extras=record.extras
    )


def _embed_failure(item: Decoded, error_type: str, message: str) -> Failure:
    return Failure(item.record.key, item.record.uri, Stage.EMBED, error_type, message[:500], item.sha256)


@dataclass
class EmbedUnits(beam.PTransform):  # type: ignore[misc]
    """Work units -> parts under `output`; element in: `WorkUnit`, element out: `UnitReport`.

    A unit is read, decoded, embedded and written inside one DoFn: only units and reports cross stage boundaries,
    never bytes or pixels. A unit whose part is there already, of the same version, is skipped.

    Attributes:
        model: gives the embedder to a worker process, once.
        output: the run's folder.
        read: which columns hold what.
        embed: image policy and batches.
        part: how rows are stored.
        retry_failed: work the failed records of committed units again.
        generation: of the run; a part of another one is not committed.
    """

    model: ImageModelSource
    output: str
    read: ReadOptions
    embed: EmbedOptions
    part: PartLayout
    retry_failed: bool = False
    generation: str = ""

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Spread the units over the workers, and embed each."""
        work = _ReadAndEmbed(self.read, self.embed)
        return units | CommitUnits(self.model, self.output, work, self.part, self.retry_failed, self.generation)


@dataclass(frozen=True)
class _ReadAndEmbed:
    """The `UnitWork` of `EmbedUnits`."""

    columns: ReadOptions
    options: EmbedOptions

    def setup(self) -> None:
        prepare_pillow()

    def read(self, unit: WorkUnit) -> Iterator[Record | Failure | RecordRef]:
        return open_records(unit, self.columns)

    def work(self, items: Iterable[Record | Failure | RecordRef], model: ImageModel) -> UnitResult:
        options = dataclasses.replace(self.options, max_record_bytes=self.columns.max_record_bytes)
        return embed_records(items, model, options, count_batch)
