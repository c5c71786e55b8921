"""What grows with the input: the planner's time and memory, and the efficiency of many workers.

    python -m benchmarks.scale files [--count 10000000]     list and plan so many image files (their listing is made up)
    python -m benchmarks.scale listing [--count 200000]     list so many real, empty files in one local folder
    python -m benchmarks.scale shards [--count 100000]      list and cut so many real TFRecord shards of one record
    python -m benchmarks.scale tars [--count 10000]         extract from so many tars of one image, and from one tar
    python -m benchmarks.scale row_group [--count 60000]    read so many rows of one Parquet row group, unit by unit
    python -m benchmarks.scale manifest [--count 600000]    reconcile so many made-up units and write their manifest
    python -m benchmarks.scale workers [--count 1 4 16]     units/s with so many worker processes, 0.5 s a batch

`files` and `shards` run the job's own planning stages on the local runner, down to the workers' side of the Reshuffle;
`tars` runs the command, MobileNet at 64x64; `row_group` the readers alone, in chains as a run has them;
`manifest` what a launcher does at the end; `workers` the job's own stages with an embedder that sleeps.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image

from benchmarks.common import publish, write_jpegs
from pipelines.runtime.finish import Run, finish
from pipelines.runtime.run_folder import RunFolder
from transforms import storage
from transforms.core.batching import MODEL_CALLS
from transforms.core.formats import InputFormat
from transforms.core.spec import EmbedderSpec
from transforms.embed.embed_units import EmbedOptions, EmbedUnits
from transforms.images.decode import ImageOptions
from transforms.inputs.plan import chain_units, cut_shard
from transforms.inputs.plan_units import PlanUnits
from transforms.models.staged import StagedEngine
from transforms.parts.part_files import EMBEDDINGS, Commit, PartOptions, part_name
from transforms.parts.stored_file import StoredFile
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import Note, Shard, UnitChain, WorkUnit
from transforms.runs.manifest import MANIFEST_FILE, UnitReport
from transforms.runs.reports import new_reports_folder
from transforms.runs.write_reports import WriteReports
from transforms.storage import local
from transforms.storage.files import FileInfo, UriRange

ROWS_PER_UNIT = 2_048
FILES_A_FOLDER = 10_000
UNIT_SECONDS = 0.5
IMAGES_A_UNIT = 8
IMAGE_SIZE = (64, 64)


class Seen:
    """Counts what arrives behind the Reshuffle, in this process."""

    units = 0
    records = 0


def _see(unit: WorkUnit | UnitChain | Note) -> None:
    if isinstance(unit, Note):
        return
    Seen.units += len(unit.units) if isinstance(unit, UnitChain) else 1
    Seen.records += unit.count


def plan(patterns: tuple[str, ...], input_format: InputFormat | None) -> dict[str, Any]:
    """Seconds, units, records and peak memory of planning."""
    started = time.perf_counter()
    with beam.Pipeline("FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Create([patterns])
            | PlanUnits(input_format, ROWS_PER_UNIT, ReadOptions())
            | beam.Reshuffle()
            | beam.Map(_see)
        )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": Seen.units, "records": Seen.records, "peak_rss_bytes": _peak_rss()}


def _peak_rss() -> int:
    """Bytes of this process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def files(count: int) -> dict[str, Any]:
    """Plan `count` files of a made-up listing, in folders of 10,000, all parts of it in this process."""

    def name(number: int) -> str:
        return f"/data/photographs/{number // FILES_A_FOLDER:06d}/IMG_{number:08d}.jpg"

    def matches(pattern: str, within: UriRange, *, hidden: bool) -> Iterator[tuple[bool, Iterator[FileInfo]]]:
        del pattern, hidden
        numbers = range(count)
        start = bisect.bisect_left(numbers, within.start, key=name)
        end = count if within.end is None else bisect.bisect_left(numbers, within.end, key=name)
        sizes = ((number, 100_000 + number % 5_000) for number in numbers[start:end])
        yield True, (FileInfo(name(number), size, f"{size}-{1_700_000_000_000 + number}") for number, size in sizes)

    def list_folders(folder: str) -> Iterator[str]:
        if folder == "/data":
            yield "/data/photographs/"
        else:
            yield from (f"{folder}/{number:06d}/" for number in range(-(-count // FILES_A_FOLDER)))

    vars(storage)["matches"] = matches
    local.is_folder = lambda uri: True  # noqa: ARG005
    local.list_folders = list_folders
    return plan(("/data",), None)


def listing(count: int) -> dict[str, Any]:
    """List real files of one local folder."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            Path(folder, f"{number:08d}.jpg").touch()
        started = time.perf_counter()
        listed = sum(1 for _ in storage.list_files(folder))
        return {"files": listed, "seconds": time.perf_counter() - started}


def shards(count: int) -> dict[str, Any]:
    """List and cut real TFRecord shards that hold one small record each."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "0.tfrecord")
        with tf.io.TFRecordWriter(str(first)) as writer:
            writer.write(b"x" * 100)
        data = first.read_bytes()
        for number in range(1, count):
            Path(folder, f"{number:07d}.tfrecord").write_bytes(data)
        return plan((folder,), None)


def tars(count: int) -> dict[str, Any]:
    """Seconds of wall and processor, and parts, of the same images in one tar and in as many tars."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder, "images"), count, (96, 72))
        images = sorted(Path(folder, "images").rglob("*.jpg"))
        for name in ("one", "many"):
            Path(folder, name).mkdir()
        with tarfile.open(Path(folder, "one", "all.tar"), "w") as together:
            for image in images:
                together.add(image, image.name)
                with tarfile.open(Path(folder, "many", f"{image.stem}.tar"), "w") as alone:
                    alone.add(image, image.name)
        for name in ("one", "many"):
            output = Path(folder, f"out-{name}")
            command = [
                sys.executable,
                "-m",
                "pipelines",
                "extract",
                "--input",
                f"{folder}/{name}",
                "--output",
                str(output),
            ]
            command += ["--model", "MobileNet", "--weights", "random:0", "--image_size", "64x64"]
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            figures[f"{name}_seconds"] = time.perf_counter() - started
            figures[f"{name}_processor_seconds"] = sum(after[:2]) - sum(before[:2])
            figures[f"{name}_parts"] = sum(1 for _ in (output / EMBEDDINGS).iterdir())
    figures["ratio"] = figures["many_seconds"] / figures["one_seconds"]
    figures["processor_ratio"] = figures["many_processor_seconds"] / figures["one_processor_seconds"]
    return figures


def row_group(count: int) -> dict[str, Any]:
    """Processor seconds for a thousand rows at both ends of a row group: as a run reads them, and alone."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "all.parquet")
        table = pa.table({"image": pa.array([rng.bytes(2_000) for _ in range(count)], pa.binary())})
        pq.write_table(table, path, row_group_size=count)
        info = storage.stat(str(path))
        assert info is not None
        units = list(cut_shard(Shard(info, InputFormat.PARQUET), 1_000, ReadOptions()))
        items = list(chain_units(iter(units)))
        last = items[-1].units if isinstance(items[-1], UnitChain) else items[-1:]
        started = time.process_time()
        for item in items:
            for unit in item.units if isinstance(item, UnitChain) else [item]:
                _read_unit(unit)
        figures = {"all_seconds": time.process_time() - started}
        for name, group in (("first", units[:1]), ("last", last), ("last_alone", units[-1:])):
            started = time.process_time()
            rows = sum(_read_unit(unit) for unit in group)
            figures[f"{name}_seconds_a_thousand"] = (time.process_time() - started) / rows * 1_000
    return figures


def _read_unit(unit: Any) -> int:
    return sum(1 for _ in read_records(unit, ReadOptions()))


def manifest(count: int) -> dict[str, Any]:
    """Hand over the reports of so many units, reconcile them with as many parts, and write the manifest."""
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder, EMBEDDINGS)
        parts.mkdir()
        ids = [hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(count)]
        for unit_id in ids:
            (parts / part_name(unit_id)).touch()
        started = time.perf_counter()
        reports_folder = new_reports_folder(folder)
        with beam.Pipeline("FnApiRunner") as pipeline:
            _ = pipeline | beam.Create(ids) | beam.Map(_report) | WriteReports(reports_folder)
        written = time.perf_counter()
        run = Run(RunFolder(folder, {}), _Staged(), None, reports_folder, 1.0, time.time(), detached=False)
        report_bytes = sum(path.stat().st_size for path in Path(reports_folder).iterdir())
        finish(run)
        return {
            "units": count,
            "report_bytes": report_bytes,
            "manifest_bytes": Path(folder, MANIFEST_FILE).stat().st_size,
            "hand_over_seconds": written - started,
            "reconcile_seconds": time.perf_counter() - written,
            "peak_rss_bytes": _peak_rss(),
        }


def _report(unit_id: str) -> UnitReport:
    inputs = {"uri": f"gs://bucket/images/2026/{unit_id}.tfrecord", "start": 0, "count": ROWS_PER_UNIT}
    digest = unit_id * 4
    stored = StoredFile(4_300_000, digest, digest, digest)
    commit = Commit(unit_id, "1700000000000000", inputs, ROWS_PER_UNIT, {}, 0, digest, stored)
    return UnitReport(ROWS_PER_UNIT, commit, skipped=False)


@dataclass(frozen=True)
class _Staged:
    """A staged model, as far as the manifest speaks of one."""

    spec: EmbedderSpec = field(default_factory=lambda: EmbedderSpec("VGG16", "0" * 64))
    weights: dict[str, str | None] = field(default_factory=dict)
    dimensions: dict[str, int] = field(default_factory=lambda: {"embedding": 512})
    engine: StagedEngine = field(default_factory=StagedEngine)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _SlowModel:
    """An embedder that takes `UNIT_SECONDS` for any batch, and its own source."""

    spec: EmbedderSpec = field(default_factory=lambda: EmbedderSpec("Sleep", "0" * 64, image_size=IMAGE_SIZE))
    dimensions: dict[str, int] = field(default_factory=lambda: {"embedding": 512})

    def load(self) -> _SlowModel:
        return self

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(UNIT_SECONDS)
        return {"embedding": np.zeros((len(images), 512), np.float32)}


def workers(counts: list[int], units_a_worker: int = 128) -> dict[str, Any]:
    """Units/s of 1 to 16 worker processes that read, decode, embed and commit, from the first part to the last."""
    rates = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            names = [f"{number:06}.png" for number in range(count * units_a_worker * IMAGES_A_UNIT)]
            for number, name in enumerate(names):  # Equal images would be embedded once.
                Image.new("RGB", IMAGE_SIZE, (number & 255, number >> 8 & 255, number >> 16)).save(Path(folder, name))
            Path(folder, "list.csv").write_text("\n".join(("uri", *names)))
            options = PipelineOptions(
                ["--runner=FnApiRunner", f"--direct_num_workers={count}", "--direct_running_mode=multi_processing"]
            )
            read, images = ReadOptions(), EmbedOptions(ImageOptions(IMAGE_SIZE), IMAGES_A_UNIT)
            with beam.Pipeline(options=options) as pipeline:
                _ = (
                    pipeline
                    | beam.Create([(f"{folder}/list.csv",)])
                    | PlanUnits(None, IMAGES_A_UNIT, read)
                    | EmbedUnits(_SlowModel(), f"{folder}/out", read, images, PartOptions())
                )
            done = np.sort([path.stat().st_mtime for path in Path(folder, "out", EMBEDDINGS).iterdir()])
            assert len(done) == count * units_a_worker
            rates[count] = (len(done) - 1) / (done[-1] - done[0])
            assert rates[count] < 1.1 * count * MODEL_CALLS / UNIT_SECONDS, "not every batch was embedded"
    least = min(counts)
    efficiency = {count: rate / count / (rates[least] / least) for count, rate in rates.items()}
    return {"unit_seconds": UNIT_SECONDS, "units_s": rates, "efficiency": efficiency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("files", "listing", "shards", "tars", "row_group", "manifest", "workers"))
    parser.add_argument("--count", type=int, nargs="+")
    args = parser.parse_args()
    if args.part == "workers":
        figures = workers(args.count or [1, 4, 16])
        rows = [
            (f"{count} workers", f"{rate:.1f} units/s, efficiency {figures['efficiency'][count]:.2f}")
            for count, rate in figures["units_s"].items()
        ]
    else:
        part, default = {
            "files": (files, 10_000_000),
            "listing": (listing, 200_000),
            "shards": (shards, 100_000),
            "tars": (tars, 10_000),
            "row_group": (row_group, 60_000),
            "manifest": (manifest, 600_000),
        }[args.part]
        figures = part(args.count[0] if args.count else default)
        rows = [
            (name, f"{value:,.3f}" if isinstance(value, float) else f"{value:,}") for name, value in figures.items()
        ]
    publish(f"scale_{args.part}", figures, rows)


if __name__ == "__main__":
    main()
