"""Whole runs of `imagebeam extract` in a few milliseconds: a model that costs nothing, and plain loops for Beam.

What is left out is the runner alone: flags, the input's planning, the lease, units, reports and the manifest are the
job's own.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import os
import struct
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import google_crc32c
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from pipelines.cli import run_job
from pipelines.options.extraction import OutputOptions
from pipelines.runtime import launch, model_staging
from pipelines.runtime.finish import Result, Run, finish
from pipelines.runtime.input_source import Source
from pipelines.runtime.run_folder import RunFolder
from tests.support.fakes import ChannelMeans, FakeModel
from transforms.core.spec import EmbedderSpec
from transforms.embed.embed_units import EmbedUnits, ImageModel, _ReadAndEmbed
from transforms.inputs.plan_units import _cut, _list
from transforms.inputs.shard_index import CutMemory
from transforms.inputs.uncut_shards import UncutShards
from transforms.models.staged import StagedEngine
from transforms.readers.units import Note, UnitChain, WorkUnit
from transforms.runs import lease
from transforms.runs.commit_units import CommitUnits, _CommitUnit
from transforms.runs.manifest import ModelFacts, UnitReport
from transforms.runs.reports import FILES, publish_group, to_line
from transforms.storage.local import TEMPORARY_PREFIX

T = TypeVar("T")
Means = dict[str, np.ndarray | None]
Image = tuple[bytes, np.ndarray | None]
"""A file, and the mean of each channel; None of a file that is no image."""

FLAGS = ("--model", "VGG16", "--weights", "random:0", "--image_size", "native", "--max_failure_rate", "1")


@dataclass
class StagedFake(FakeModel):
    """A `FakeModel` that takes images as they are, and says where its weights are from."""

    embedder: ImageModel = field(default_factory=lambda: ChannelMeans(EmbedderSpec("VGG16", "0" * 64, image_size=None)))
    weights: dict[str, str | None] = field(default_factory=lambda: {"source": "none"})
    engine: StagedEngine = field(default_factory=StagedEngine)
    files: list[str] = field(default_factory=list)


def stage_fake(*_: object, **__: object) -> StagedFake:
    """Stands in for `model_staging.stage_model`."""
    return StagedFake()


class PlainPipeline:
    """Stands in for a Beam pipeline of a job over images: one unit after the other."""

    runner = None

    def __init__(self) -> None:
        self.options = PipelineOptions([])
        self._steps: tuple[Source, EmbedUnits, RunFolder, Run, OutputOptions] | None = None

    def fill(self, source: Source, units: EmbedUnits, folder: RunFolder, run: Run, options: OutputOptions) -> None:
        self._steps = (source, units, folder, run, options)

    def run(self) -> PlainPipeline:
        assert self._steps is not None
        source, units, folder, run, options = self._steps
        memory = CutMemory(folder.cuts, options.rows_per_unit, source.read.image_column)
        commit = _CommitUnit(
            CommitUnits(
                *(units.model, units.output, _work(units), units._part),
                *(units.retry_failed, units.generation, units.reuse),
            )
        )
        lines: dict[int, list[str]] = {number: [] for number in range(FILES)}
        listed = _list(source.patterns, source.input_format, options.rows_per_unit, source.read)
        cut = (_cut(item, options.rows_per_unit, source.read, memory, True, True) for item in listed)
        for report in one_bundle(commit, itertools.chain.from_iterable(cut)):
            number, line = to_line(report)
            lines[number].append(line)
        for group in lines.items():
            publish_group(group, run.reports)
        return self

    def wait_until_finish(self) -> str:
        return str(PipelineState.DONE)


def one_bundle(
    commit: _CommitUnit, items: Iterable[WorkUnit | UnitChain | UncutShards | Note]
) -> Iterator[UnitReport | Note]:
    """What the function gives for these elements, called as Beam calls it."""
    commit.setup()
    commit.start_bundle()
    try:
        for item in items:
            yield from commit.process(item)
        yield from (last.value for last in commit.finish_bundle())
    finally:
        commit.teardown()


def _work(units: EmbedUnits) -> _ReadAndEmbed:
    return _ReadAndEmbed(units.read, units._options)


def _work_images(
    source: Source,
    units: EmbedUnits,
    label: str,
    folder: RunFolder,
    staged: ModelFacts,
    pipeline: PlainPipeline,
    options: OutputOptions,
) -> Result:
    with launch.running(folder, staged, pipeline, options) as run:
        pipeline.fill(source, units, folder, run, options)
    return finish(run)


def _gone(me: Callable[[], lease.Holder] = lease._me) -> lease.Holder:
    """Who holds a lease: a process that is gone as soon as somebody asks, as one that was killed is."""
    return dataclasses.replace(me(), process_started="gone")


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Runs in this process use `StagedFake` and plain loops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_staging, "stage_model", stage_fake)
        patch.setattr(launch, "open_pipeline", lambda _: PlainPipeline())
        patch.setattr(launch, "work_images", _work_images)
        patch.setattr(lease, "_me", _gone)
        yield


def extract(patterns: Iterable[object], output: str | Path, *flags: object) -> int:
    """Run the job; its exit code."""
    return run_job("extract", ["--input", *map(str, patterns), "--output", str(output), *FLAGS, *map(str, flags)])


@dataclass(frozen=True)
class Layout:
    """An input, and what must become of it.

    Attributes:
        patterns: for `--input`.
        means: key -> the mean of each channel, as Pillow reads the image; None of a record that must fail.
        shards: files that can be damaged.
    """

    patterns: list[str | Path]
    means: Means
    shards: list[Path]


def images(count: int, bad: Collection[int]) -> list[Image]:
    """PNGs of noise in three sizes, with their means; those numbered in `bad` are none."""
    found: list[Image] = []
    for index in range(count):
        random = np.random.default_rng(index)
        if index in bad:
            found.append((b"\xff" + random.bytes(index % 3 * 50), None))
            continue
        pixels = random.integers(0, 256, (32 + index % 3, 33, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        read = np.asarray(PIL.Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"), np.float64)
        found.append((buffer.getvalue(), read.mean(axis=(0, 1))))
    return found


def write_layout(folder: str | Path, kind: str, records: Sequence[Image], shards: int) -> Layout:
    """Write `images` as files of a format, in so many shards.

    Args:
        folder: to write to.
        kind: a key of `KINDS`.
        records: what `images` gave.
        shards: how many files, or folders of files.
    """
    Path(folder).mkdir(parents=True)
    return KINDS[kind](Path(folder), records, shards)


def _files(folder: Path, records: Sequence[Image], shards: int) -> Layout:
    means: Means = {}
    for index, (data, mean) in enumerate(records):
        path = folder / f"class{index % shards}" / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        means[str(path)] = mean
    return Layout([folder], means, [])


def _split(folder: Path, records: Sequence[T], shards: int, extension: str) -> Iterator[tuple[Path, Sequence[T]]]:
    for shard in range(shards):
        yield folder / f"shard{shard}.{extension}", records[shard::shards]


def _tar(folder: Path, records: Sequence[Image], shards: int) -> Layout:
    means: Means = {}
    paths = []
    for path, part in _split(folder, records, shards, "tar"):
        with tarfile.open(path, "w") as tar:
            for index, (data, mean) in enumerate(part):
                member = tarfile.TarInfo(f"{index:05d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                means[f"{path}#{index:05d}"] = mean
        paths.append(path)
    return Layout([folder], means, paths)


def _tfrecord(folder: Path, records: Sequence[Image], shards: int) -> Layout:
    means: Means = {}
    paths = []
    for path, part in _split(folder, records, shards, "tfrecord"):
        path.write_bytes(b"".join(_framed(_example(data)) for data, _ in part))
        means |= {f"{path}#{index}": mean for index, (_, mean) in enumerate(part)}
        paths.append(path)
    return Layout([folder], means, paths)


def _framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _example(data: bytes) -> bytes:
    """A serialised `tf.train.Example` of one bytes feature named image."""
    feature = _field(1, _field(1, data))
    return _field(1, _field(1, _field(1, b"image") + _field(2, feature)))


def _field(number: int, data: bytes) -> bytes:
    length, size = len(data), bytearray()
    while length >= 0x80:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes([*size, length]) + data


def _parquet(folder: Path, records: Sequence[Image], shards: int) -> Layout:
    means: Means = {}
    paths = []
    for path, part in _split(folder, records, shards, "parquet"):
        pq.write_table(pa.table({"image": pa.array([data for data, _ in part], pa.binary())}), path, row_group_size=3)
        means |= {f"{path}#{index}": mean for index, (_, mean) in enumerate(part)}
        paths.append(path)
    return Layout([folder], means, paths)


def _manifest(folder: Path, records: Sequence[Image], shards: int) -> Layout:
    """CSV lists of files; of each second bad record the file is not there."""
    means: Means = {}
    paths = []
    (folder / "images").mkdir()
    for path, part in _split(folder, list(enumerate(records)), shards, "csv"):
        rows = [("uri", "label")]
        for row, (index, (data, mean)) in enumerate(part):
            image = folder / "images" / f"{index:03d}.png"
            if mean is not None or index % 2:
                image.write_bytes(data)
            rows.append((f"images/{image.name}", "ab"[index % 2]))
            means[f"{path}#{row}"] = mean
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        paths.append(path)
    return Layout([folder / "*.csv"], means, paths)


KINDS = {"files": _files, "tar": _tar, "tfrecord": _tfrecord, "parquet": _parquet, "manifest": _manifest}
"""Input format -> writes one."""


def rows_of(output: str | Path) -> dict[str, np.ndarray]:
    """Vectors by key, of the parts alone; a row that comes twice is an error."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(Path(output).glob("embeddings/part-*.parquet")):
        table = pq.read_table(path, partitioning=None)
        for key, vector in zip(table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            assert key not in found, f"{key} has two rows"
            found[key] = np.array(vector)
    return found


def failed_of(output: str | Path) -> set[str]:
    """Keys of the failures; one that comes twice is an error."""
    found = [
        key
        for path in sorted(Path(output).glob("failures/part-*.parquet"))
        for key in pq.read_table(path, partitioning=None)["key"].to_pylist()
    ]
    assert len(set(found)) == len(found)
    return set(found)


def assert_no_row_is_wrong(output: str | Path, layout: Layout) -> dict[str, np.ndarray]:
    """Every row is of a record, once, and says what Pillow's pixels say."""
    rows = rows_of(output)
    assert rows.keys() <= layout.means.keys()
    for key, vector in rows.items():
        mean = layout.means[key]
        assert mean is not None, f"{key} must fail and has a row"
        np.testing.assert_allclose(vector, mean, rtol=1e-6)
    return rows


def assert_whole(output: str | Path, layout: Layout) -> None:
    """Every record is one row, or one failure if it must fail."""
    rows = assert_no_row_is_wrong(output, layout)
    failed = {key for key, mean in layout.means.items() if mean is None}
    assert rows.keys() == layout.means.keys() - failed
    assert failed_of(output) == failed


def half_written(output: str | Path) -> list[Path]:
    """Files that a killed writer left."""
    return list(Path(output).rglob(f"{TEMPORARY_PREFIX}*"))


def make_old(paths: Iterable[Path]) -> None:
    """So that a run takes them for left behind."""
    for path in paths:
        os.utime(path, (0, 0))
