"""Sample the records of an input: pick them from its work units, then read, decode and describe them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from transforms.core.batching import available_cores, decode_pool, map_ahead
from transforms.core.formats import InputFormat, LabelFrom
from transforms.core.label_counts import LabelCount
from transforms.core.types import Failure, Image, Record, Stage
from transforms.images.decode import ImageError, ImageOptions, decode_image
from transforms.images.isolated.decoder_pool import thread_time
from transforms.images.sniff import sniff
from transforms.inputs.plan import cut_shard, plan
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import ListUnit, RecordRef, Shard, ShardGroup, WorkUnit

READ_THROUGH = 20
"""Records read of the shards for one that is looked at: a shard can only be read in order."""


_DRAWN_ITEMS, _DRAWN_FROM, _DRAWN_UNIT = 64, 16, 512
"""Shards, groups of small ones or units of files: listed and drawn from at most; and records of such a unit."""


class Reservoir:
    """A uniform sample, without repetition, of the records of a stream of units; always the same one.

    Li's algorithm L: it draws a few numbers for each record that it takes, and none for those it passes over.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = random.Random(0)
        self._picks: list[WorkUnit | RecordRef | Failure] = []
        self._seen = 0
        self._next = 0
        self._weight = 1.0

    def add(self, unit: WorkUnit) -> None:
        """Offer a unit's records."""
        start, self._seen = self._seen, self._seen + unit.count
        while self._next < self._seen:
            # Of a list no more is kept than is needed.
            pick = unit.refs[self._next - start] if isinstance(unit, ListUnit) else unit
            if len(self._picks) < self._size:
                self._picks.append(pick)
            else:
                self._picks[self._random.randrange(self._size)] = pick
            self._next += 1
            if len(self._picks) == self._size:
                self._weight *= self._draw() ** (1 / self._size)
                self._next += math.floor(math.log(self._draw()) / math.log1p(-self._weight))

    def _draw(self) -> float:
        return 1 - self._random.random()  # Above zero, which has no logarithm.

    def records(self, options: ReadOptions) -> Iterator[Record | Failure]:
        """Read the records that were picked.

        Of a unit in a shard it is settled how many are taken; which ones, is drawn from as many of its first as can
        be read without reading more than `READ_THROUGH` records for one.
        """
        refs = tuple(pick for pick in self._picks if not isinstance(pick, WorkUnit))
        if refs:
            yield from read_records(ListUnit(InputFormat.FILES, refs), options)
        units = Counter(pick for pick in self._picks if isinstance(pick, WorkUnit))
        reach = READ_THROUGH * units.total() // max(1, len(units))
        for unit, picks in units.items():
            wanted = set(self._random.sample(range(max(picks, min(reach, unit.count))), picks))
            for index, record in enumerate(itertools.islice(read_records(unit, options), max(wanted) + 1)):
                if index in wanted:
                    yield record


@dataclass
class Drawn:
    """Images of an input, to try a model on.

    Attributes:
        images: uint8 RGB [height, width, 3].
        digests: SHA-256 of the bytes of each, 64 hex digits.
        records: of the input that can be read, estimated from its first 64 shards, or units of 512 files.
    """

    images: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    records: int = 0


def draw_images(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    read: ReadOptions,
    options: ImageOptions,
    size: int,
) -> Drawn:
    """Draw images of an input, from its first units and those of shards spread over what is listed.

    Always the same ones of the same input. What fails to be read or decoded is left out. Labels and kept columns are
    not looked at: a value that does not fit stops a run where it is reached, after what lies before it is committed.

    Args:
        patterns: see `list_inputs`.
        input_format: of all files, or None.
        read: which columns hold what.
        options: how they are decoded.
        size: images at most.

    Raises:
        ImagebeamError: as `list_inputs`.
    """
    read = dataclasses.replace(read, keep_columns=(), renamed=(), label_from=LabelFrom.NONE)
    items = list(itertools.islice(_drawn_from(patterns, input_format, read), _DRAWN_ITEMS))
    drawn = Drawn()
    reservoir = Reservoir(size)
    spread = random.Random(0).sample(items, min(len(items), _DRAWN_FROM))
    counted, unread_bytes = 0, 0
    for item in spread:
        cut = (unit for unit in cut_shard(item, _DRAWN_UNIT, read) if isinstance(unit, WorkUnit))
        units = list(cut if _is_counted(item) else itertools.islice(cut, 1))
        for unit in units[:1]:
            reservoir.add(unit)
        if _is_counted(item):
            counted += sum(unit.count for unit in units)
        else:
            unread_bytes += _bytes_of(item)

    def decode(record: Record | Failure) -> tuple[int, str, Image | None]:
        if isinstance(record, Failure):
            return 0, "", None
        digest = hashlib.sha256(record.data).hexdigest()
        try:
            return len(record.data), digest, decode_image(record.data, options)
        except ImageError:
            return len(record.data), digest, None

    sizes: list[int] = []
    for stored, digest, image in map_ahead(decode, reservoir.records(read), decode_pool(), 2 * available_cores()):
        sizes.append(stored)
        if image is not None:
            drawn.images.append(image.pixels)
            drawn.digests.append(digest)
    if sum(sizes):
        there = sum(size > 0 for size in sizes)
        records = counted * there / len(sizes) + unread_bytes * there / sum(sizes)
        drawn.records = round(records * len(items) / len(spread))
    return drawn


def _is_counted(item: Shard | ShardGroup | WorkUnit) -> bool:
    """Whether it says how many records it has, before they are read: files, and Parquet's footers."""
    return isinstance(item, ListUnit) or item.format == InputFormat.PARQUET


def _drawn_from(
    patterns: Sequence[str], input_format: InputFormat | None, read: ReadOptions
) -> Iterator[Shard | ShardGroup | WorkUnit]:
    """What `plan` gives, where manifests are units of the files that they list."""
    for item in plan(patterns, input_format, _DRAWN_UNIT, options=read):
        if isinstance(item, Shard | ShardGroup) and item.format == InputFormat.MANIFEST:
            yield from (unit for unit in cut_shard(item, _DRAWN_UNIT, read) if isinstance(unit, WorkUnit))
        else:
            yield item


def _bytes_of(item: Shard | ShardGroup | WorkUnit) -> int:
    if isinstance(item, ShardGroup):
        return sum(shard.file.size for shard in item.shards)
    return item.file.size if isinstance(item, Shard) else 0


@dataclass
class Sample:
    """What a sample of the records looks like.

    Attributes:
        records: looked at.
        sizes: (width, height) in pixels, as stored, of those that decode.
        formats: of those that decode, in Pillow's names.
        failures: of the others, by "stage/error_type".
        decode_seconds: for one image on one core, on the average; resizing is a part of it.
        cores: that decode side by side.
        images: the first few decoded ones, for the model.
        labels: of those that can be read.
    """

    records: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    decode_seconds: float = 0.0
    cores: int = field(default_factory=available_cores)
    images: list[np.ndarray] = field(default_factory=list)
    labels: LabelCount = field(default_factory=LabelCount)

    @property
    def failure_rate(self) -> float:
        """Share of the records that failed, 0 to 1."""
        return self.failures.total() / self.records if self.records else 0.0


def look_at(records: Iterable[Record | Failure], options: ImageOptions, *, images: int, pixels: int) -> Sample:
    """Decode records and describe them.

    Args:
        records: what the reader gave.
        options: the image policy's settings.
        images: decoded ones kept at most.
        pixels: in those at most, though one image is kept whatever its size.
    """
    sample = Sample()
    seconds = 0.0
    labels: list[str | None] = []

    def look(record: Record | Failure) -> tuple[str, Image | None, float]:
        return _look(record, options)

    def noted() -> Iterator[Record | Failure]:
        for record in records:
            if isinstance(record, Record):
                labels.append(record.label)
            yield record

    for kind, image, taken in map_ahead(look, noted(), decode_pool(), 2 * sample.cores):
        sample.records += 1
        if image is None:
            sample.failures[kind] += 1
            continue
        seconds += taken
        sample.sizes.append((image.width, image.height))
        sample.formats[kind] += 1
        pixels -= image.pixels.shape[0] * image.pixels.shape[1]
        if len(sample.images) < images and (pixels >= 0 or not sample.images):
            sample.images.append(image.pixels)
    sample.labels = LabelCount.of(labels)
    sample.decode_seconds = seconds / max(1, len(sample.sizes))
    return sample


def _look(record: Record | Failure, options: ImageOptions) -> tuple[str, Image | None, float]:
    """(format, image, seconds of a processor that decoding took), or (why not, None, ...)."""
    if isinstance(record, Failure):
        return f"{record.stage}/{record.error_type}", None, 0.0
    started = thread_time()
    try:
        image = decode_image(record.data, options)
    except ImageError as error:
        return f"{Stage.DECODE}/{error.error_type}", None, 0.0
    taken = thread_time() - started
    return sniff(record.data) or "unknown", image, taken
