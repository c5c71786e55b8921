"""Read, decode and embed the records of work units, and commit each unit as a part."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import apache_beam as beam
import numpy as np

from transforms import storage
from transforms.core.batching import (
    MODEL_CALLS,
    MapAhead,
    available_cores,
    batch_by_shape,
    decode_pool,
    map_ahead,
    positive,
)
from transforms.core.busy import Busy, Stopwatch
from transforms.core.errors import ImagebeamError
from transforms.core.field_types import convert_fields
from transforms.core.limits import MAX_RECORD_BYTES
from transforms.core.text import storable
from transforms.core.types import Failure, Image, Record, Row, Stage
from transforms.embed.model_sources import image_options
from transforms.images.decode import ImageError, ImageOptions, decode_image, prepare_pillow
from transforms.images.errors import NOT_AN_IMAGE
from transforms.images.isolated.decoder_pool import thread_time
from transforms.parts.part_files import PartOptions
from transforms.readers.image_files import read_file
from transforms.readers.options import ReadOptions
from transforms.readers.read import open_records
from transforms.readers.units import ListUnit, RecordRef, WorkUnit
from transforms.reuse.digest_index import ReusedRun
from transforms.reuse.known_rows import Conditions, KnownRow, KnownRows, NothingKnown
from transforms.runs.commit_units import (
    BegunUnit,
    CommitUnits,
    PartLayout,
    UnitModel,
    UnitModelSource,
    UnitResult,
    count_batch,
)

Batch = list["Decoded | _Twin"]
"""All of images to embed, or all of twins of such."""

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A record of whose image a row is known: it need not be embedded, nor its file be read. Its bytes are dropped."""

    record: Record
    row: KnownRow

    @property
    def key(self) -> str:
        """Of the record."""
        return self.record.key


@dataclass(frozen=True, slots=True)
class _Twin:
    """A record whose image is that of an earlier one: `index` is its place in the unit, `of` that of the other."""

    index: int
    of: int
    record: Record
    icc_profile_ignored: bool


Item = Record | Failure | RecordRef | TakenOver
"""What a unit's records are before they are decoded."""


@dataclass(frozen=True)
class EmbedOptions:
    """How a unit's records become rows.

    Attributes:
        images: the image policy's settings.
        batch_size: images in one call of the model at most.
        pixel_budget: pixels in one call of the model at most, where images keep their own sizes; it bounds the model's
            memory. At a fixed size `batch_size` alone does.
        max_record_bytes: an image file of more bytes is a failure, before it is read.

    Raises:
        ImagebeamError: for a batch_size below 1, or a value of another type.
    """

    images: ImageOptions
    batch_size: int = 32
    pixel_budget: int = 32 * 224 * 224
    max_record_bytes: int = MAX_RECORD_BYTES

    def __post_init__(self) -> None:
        convert_fields(self, "images", "pixel_budget", "max_record_bytes")
        object.__setattr__(self, "batch_size", positive("batch_size", self.batch_size))

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
    records: Iterable[Item],
    embedder: ImageModel,
    options: EmbedOptions,
    on_batch: BatchDone | None = None,
    known: KnownRows | None = None,
) -> UnitResult:
    """Decode and embed records, as `RecordsAhead` does; every one ends as one row or one failure."""
    with contextlib.closing(RecordsAhead(records, embedder, options, on_batch, known)) as begun:
        return begun.finish()


class RecordsAhead:
    """The records of one unit on their way to the model; reading, decoding and the first batches begin at once.

    Reading and decoding run ahead of the model, in other threads. The model is called once for equal images, and not at
    all for those whose rows are known.

    Args:
        records: what the reader gave; its failures pass through, and files that it left unread are read.
        embedder: the model.
        options: see `EmbedOptions`.
        on_batch: called after each call of the model, in the thread that waits in `finish`, with the number of images
            embedded and the seconds it took.
        known: rows that are taken over.
        after: the unit before, which may still be at work: its records are all drawn before these are, so that two
            units hold little more memory than one, and an image that it has too waits until its rows are known.
    """

    def __init__(
        self,
        records: Iterable[Item],
        embedder: ImageModel,
        options: EmbedOptions,
        on_batch: BatchDone | None = None,
        known: KnownRows | None = None,
        after: RecordsAhead | None = None,
    ) -> None:
        self._options, self._embedder, self._on_batch = options, embedder, on_batch
        self._known = known or NothingKnown()
        self._rows: dict[int, Row] = {}
        self._failures: dict[int, Failure] = {}
        self._firsts: dict[str, int] = {}
        self._twins: list[_Twin] = []
        self._reused = self._equal = self._icc_profiles_ignored = 0
        self._watch, self._cores = Stopwatch(), available_cores()
        self._drawn, self._listed, self._settled = threading.Event(), threading.Event(), threading.Event()
        self._ended = 0.0
        self._after = after
        batches = batch_by_shape(
            self._decoded(records, after), self._shape_of, options.batch_size, options.batch_pixels
        )
        self._outcomes = MapAhead(self._embed, batches, _model_pool(), MODEL_CALLS)

    def finish(self) -> UnitResult:
        """Wait for all of them; every one ends as one row or one failure.

        Raises:
            Exception: whatever the model raises when it cannot embed a whole batch, not one image of it: then the
                machine is at fault rather than an image, and nothing should be committed.
        """
        ended = 0.0 if self._after is None else self._after._ended
        self._after = None  # or each would hold on to all before it
        for started, outcomes, end in self._outcomes:
            embedded, seconds = 0, end - max(started, ended)  # without what the batch before overlaps with it
            self._ended = ended = max(ended, end)
            self._watch.add(Busy.MODEL, max(0.0, seconds))
            for item, outcome in outcomes:
                if isinstance(outcome, Failure):
                    self._icc_profiles_ignored += item.image.icc_profile_ignored
                    self._failures[item.index] = outcome
                else:
                    embedded += 1
                    self._rows[item.index] = outcome
            if self._on_batch is not None and outcomes:
                self._on_batch(embedded, max(0.0, seconds))
        rows, failures = self._rows, self._failures
        for twin in sorted(self._twins, key=lambda twin: twin.index):
            if twin.of in rows:
                self._equal += 1
                rows[twin.index] = _row_like(twin.record, rows[twin.of])
            else:
                self._icc_profiles_ignored += twin.icc_profile_ignored
                failures[twin.index] = dataclasses.replace(failures[twin.of], key=twin.record.key, uri=twin.record.uri)
        ignored = self._icc_profiles_ignored + sum(row.icc_profile_ignored for row in rows.values())
        seconds_by_stage = self._watch.seconds
        return UnitResult(_in_order(rows), _in_order(failures), ignored, self._reused, self._equal, seconds_by_stage)

    @property
    def outcomes(self) -> list[Row | Failure]:
        """One for each record, in their order; to be asked for after `finish` and before `settle`."""
        return _in_order({**self._rows, **self._failures})

    def settle(self) -> None:
        """Say that the rows are where `KnownRows` finds them, or will not be."""
        self._rows, self._failures = {}, {}  # The unit after this one holds on to it.
        self._settled.set()

    def close(self) -> None:
        """Stop, wherever it is, with the unit before; a unit after it no longer waits for it."""
        if self._after is not None:
            self._after.close()
        for event in (self._drawn, self._listed, self._settled):
            event.set()
        self._outcomes.close()

    def _decoded(self, records: Iterable[Item], before: RecordsAhead | None) -> Iterator[Decoded | _Twin]:
        if before is not None:
            before._drawn.wait()
        numbered = self._timed(enumerate(records))
        for index, outcome in map_ahead(self._decode, numbered, decode_pool(), self._options.ahead, _size):
            found = self._look_again(outcome, before) if before is not None else outcome
            if isinstance(found, Failure):
                self._failures[index] = found
            elif isinstance(found, TakenOver):
                self._rows[index] = _take_over(found.record, found.row)
                self._equal += found.row.is_recent
                self._reused += not found.row.is_recent
            elif (first := self._firsts.setdefault(found.sha256, index)) != index:
                yield _Twin(index, first, found.record, found.image.icc_profile_ignored)
            else:
                yield found
        self._listed.set()

    def _look_again(
        self, outcome: Decoded | TakenOver | Failure, before: RecordsAhead
    ) -> Decoded | TakenOver | Failure:
        """Take over the row of an image that the unit before has too, once that is settled."""
        if not isinstance(outcome, Decoded) or isinstance(self._known, NothingKnown):
            return outcome
        before._listed.wait()
        if outcome.sha256 not in before._firsts:
            return outcome
        before._settled.wait()
        row = self._known.by_digest(outcome.sha256)
        return outcome if row is None else TakenOver(outcome.record, row)

    def _decode(self, item: tuple[int, Item]) -> tuple[int, Decoded | TakenOver | Failure]:
        index, record = item
        if isinstance(record, TakenOver):
            return index, record
        if isinstance(record, RecordRef):
            started = time.perf_counter()
            record = read_file(record, self._options.max_record_bytes)
            self._watch.add(Busy.READING, (time.perf_counter() - started) / self._cores)
        started = thread_time()  # The processor's time, since the model may hold the processor meanwhile.
        outcome = _decode(index, record, self._options.images, self._known)
        self._watch.add(Busy.DECODING, (thread_time() - started) / self._cores)
        return index, outcome

    def _timed(self, items: Iterable[T]) -> Generator[T, None, None]:
        """Yield the items, and count the seconds that reading takes."""
        try:
            started = time.perf_counter()
            for item in items:
                self._watch.add(Busy.READING, time.perf_counter() - started)
                yield item
                started = time.perf_counter()
            self._watch.add(Busy.READING, time.perf_counter() - started)
        finally:
            self._drawn.set()

    def _shape_of(self, item: Decoded | _Twin) -> tuple[int, ...]:
        # Twins wait as twice as many images would, or a unit of equal images would be drawn to its end at once.
        twin_shape = (1, max(1, 2 * self._options.batch_pixels // self._options.batch_size))
        return twin_shape if isinstance(item, _Twin) else item.image.pixels.shape

    def _embed(self, batch: Batch) -> tuple[float, list[tuple[Decoded, Row | Failure]], float]:
        self._twins.extend(item for item in batch if isinstance(item, _Twin))
        started = time.perf_counter()
        images = [item for item in batch if isinstance(item, Decoded)]
        outcomes = _embed_batch(images, self._embedder) if images else []
        return started, outcomes, time.perf_counter()


@functools.cache
def _model_pool() -> ThreadPoolExecutor:
    """The process's threads that call the model: while a device computes for the one, the other's batch is copied."""
    return ThreadPoolExecutor(MODEL_CALLS, thread_name_prefix="model")


def _in_order(items: dict[int, Any]) -> list[Any]:
    return [items[index] for index in sorted(items)]


def _size(item: tuple[int, Item]) -> int:
    """Bytes that a record holds, or will hold once it is read."""
    record = item[1]
    if isinstance(record, RecordRef):
        return record.size or 0
    return len(record.data) if isinstance(record, Record) else 0


def _decode(
    index: int, record: Record | Failure, options: ImageOptions, known: KnownRows
) -> Decoded | TakenOver | Failure:
    if isinstance(record, Failure):
        return record
    sha256 = hashlib.sha256(record.data).hexdigest()
    if (row := known.by_digest(sha256)) is not None:
        return TakenOver(dataclasses.replace(record, data=b""), row)
    try:
        image = decode_image(record.data, options)
        return Decoded(index, dataclasses.replace(record, data=b""), image, sha256)
    except ImageError as error:
        kept = None if error.error_type == NOT_AN_IMAGE else sha256  # Of what is no image nothing is told.
        return Failure(record.key, record.uri, Stage.DECODE, error.error_type, str(error), kept)


def _unread_record(ref: RecordRef) -> Record:
    return Record(ref.key, storable(ref.uri), b"", ref.label, dict(ref.extras))


def _take_over(record: Record, known: KnownRow) -> Row:
    """The row of a record whose vectors are known. Everything but vectors, size and digest is the record's."""
    return Row(
        record.key,
        record.uri,
        record.label,
        known.width,
        known.height,
        known.sha256,
        known.vectors,
        record.extras,
        known.icc_profile_ignored,
    )


def _row_like(record: Record, row: Row) -> Row:
    """The row of a record whose image is that of `row`."""
    return dataclasses.replace(row, key=record.key, uri=record.uri, label=record.label, extras=record.extras)


def _embed_batch(batch: list[Decoded], embedder: ImageModel) -> list[tuple[Decoded, Row | Failure]]:
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


def _halved(batch: list[Decoded], embedder: ImageModel) -> list[tuple[Decoded, Row | Failure]]:
    try:
        return list(_call(batch, embedder))
    except Exception as error:
        if len(batch) == 1:
            return [(batch[0], _embed_failure(batch[0], type(error).__name__, str(error)))]
        middle = len(batch) // 2
        return _halved(batch[:middle], embedder) + _halved(batch[middle:], embedder)


def _call(batch: list[Decoded], embedder: ImageModel) -> Iterator[tuple[Decoded, Row | Failure]]:
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
        record.key,
        record.uri,
        record.label,
        image.width,
        image.height,
        item.sha256,
        vectors,
        record.extras,
        image.icc_profile_ignored,
    )


def _embed_failure(item: Decoded, error_type: str, message: str) -> Failure:
    return Failure(item.record.key, item.record.uri, Stage.EMBED, error_type, message[:500], item.sha256)


_READ = ReadOptions()


@dataclass
class EmbedUnits(beam.PTransform):  # type: ignore[misc]
    """Embed work units and commit them as parts. Elements in: as `PlanUnits` gives them; elements out: `UnitReport`.

    A `Note` of `PlanUnits`, on files that it left out, passes: of the two a report alone has `commit`.

    A unit is read, decoded, embedded and written inside one DoFn: only units and reports cross stage boundaries,
    never bytes or pixels. A unit whose part is there already, of the same version, is skipped.

    Attributes:
        model: what `stage_model` returned: workers load it, once a process.
        output: the run's folder.
        read: which columns hold what; the same as that of `PlanUnits`.
        embed: image policy and batches; None for what the model's spec says, in batches of 32.
        part: how rows are stored; None for the default, with the columns that `read` keeps.
        retry_failed: work the failed records of committed units again.
        generation: of the run; a part of another one is not committed.
        reuse: other runs whose rows are taken over, beside those of this one's own parts.

    Raises:
        ImagebeamError: for an argument of another type, for an output that is no path or URL, for images that are
            decoded otherwise than the model's spec says, or for a part of other columns than those that are read.
    """

    model: ImageModelSource
    output: str
    read: ReadOptions = _READ
    embed: EmbedOptions | None = None
    part: PartLayout | None = None
    retry_failed: bool = False
    generation: str = ""
    reuse: tuple[ReusedRun, ...] = ()

    def __post_init__(self) -> None:
        if not all(hasattr(self.model, name) for name in ("spec", "dimensions", "load")):
            raise ImagebeamError(f"model is what stage_model returned. Received: {self.model!r}.")
        convert_fields(self, "output", "read", "embed", "retry_failed", "generation", "reuse")
        if not all(hasattr(self._part, name) for name in ("folder", "refuse", "to_table")):
            raise ImagebeamError(f"part is a PartOptions. Received: {self.part!r}.")
        if not self.output:
            raise ImagebeamError(f"output is a folder. Received: {self.output!r}.")
        self.output = storage.absolute(self.output)
        self._options.images.check_spec(self.model.spec)
        if isinstance(self.part, PartOptions) and self.part.keep_columns != self.read.keep_columns:
            kept, read = (
                ", ".join(f"{name}: {kind}" for name, kind in columns) or "none"
                for columns in (self.part.keep_columns, self.read.keep_columns)
            )
            raise ImagebeamError(
                f"A part has the columns that are read. Received: part with keep_columns {kept}; read with {read}. "
                "Give both the same."
            )

    @property
    def _part(self) -> PartLayout:
        return PartOptions(keep_columns=self.read.keep_columns) if self.part is None else self.part

    @property
    def _options(self) -> EmbedOptions:
        return self.embed or EmbedOptions(image_options(self.model.spec))

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Spread the units over the workers, and embed each."""
        work = _ReadAndEmbed(self.read, self._options)
        return units | CommitUnits(
            self.model, self.output, work, self._part, self.retry_failed, self.generation, self.reuse
        )


@dataclass(frozen=True)
class _ReadAndEmbed:
    """The `UnitWork` of `EmbedUnits`."""

    columns: ReadOptions
    options: EmbedOptions
    known: KnownRows | None = None

    @property
    def conditions(self) -> Conditions:
        return Conditions.of(self.options.images, self.columns.max_record_bytes)

    def knowing(self, known: KnownRows) -> _ReadAndEmbed:
        return dataclasses.replace(self, known=known)

    def setup(self) -> None:
        prepare_pillow()

    def read(self, unit: WorkUnit) -> Iterator[Item]:
        """The unit's records, but for files whose rows are known, which are not read."""
        if not isinstance(unit, ListUnit) or self.known is None:
            return open_records(unit, self.columns)
        taken = {ref.key: row for ref in unit.refs if (row := self._known_row(ref)) is not None}
        return _in_list_order(unit, taken, self.columns) if taken else open_records(unit, self.columns)

    def _known_row(self, ref: RecordRef | Failure) -> KnownRow | None:
        if self.known is None or isinstance(ref, Failure) or ref.version is None:
            return None
        if (ref.size or 0) > self.columns.max_record_bytes:
            return None
        return self.known.by_file(storable(ref.uri), ref.version)

    def begin(self, items: Iterable[Item], model: ImageModel, after: BegunUnit | None) -> RecordsAhead:
        options = dataclasses.replace(self.options, max_record_bytes=self.columns.max_record_bytes)
        before = after if isinstance(after, RecordsAhead) else None
        return RecordsAhead(items, model, options, count_batch, self.known, before)


def _in_list_order(unit: ListUnit, taken: Mapping[str, KnownRow], options: ReadOptions) -> Iterator[Item]:
    """The records of a list in order: those in `taken`, by key, as they are known, the others read."""
    others = tuple(ref for ref in unit.refs if ref.key not in taken)
    read = open_records(dataclasses.replace(unit, refs=others), options) if others else iter(())
    for ref in unit.refs:
        if isinstance(ref, RecordRef) and ref.key in taken:
            yield TakenOver(_unread_record(ref), taken[ref.key])
        else:
            yield next(read)
