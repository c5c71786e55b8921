"""What grows with the input: the planner's time and memory, and the efficiency of many workers.

    python -m benchmarks.scale files [--count 10000000]     list and plan so many image files (their listing is made up)
    python -m benchmarks.scale listing [--count 200000]     list so many real, empty files in one local folder
    python -m benchmarks.scale shards [--count 100000]      list and cut so many real TFRecord shards of one record
    python -m benchmarks.scale workers [--count 1 4 16]     units/s with so many worker processes, 0.1 s a unit

`files` and `shards` run the job's own planning stages on the local runner, down to the workers' side of the Reshuffle.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.common import publish
from transforms import storage
from transforms.planning import PlanUnits
from transforms.types import FileInfo, InputFormat, ReadOptions, WorkUnit

ROWS_PER_UNIT = 2_048
FILES_A_FOLDER = 10_000
UNIT_SECONDS = 0.1


class Seen:
    """Counts what arrives behind the Reshuffle, in this process."""

    units = 0
    records = 0


def _see(unit: WorkUnit) -> None:
    Seen.units += 1
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": Seen.units, "records": Seen.records, "peak_rss_bytes": peak}


def files(count: int) -> dict[str, Any]:
    """Plan `count` files of a made-up listing, in folders of 10,000."""

    def listing(pattern: str) -> Iterator[tuple[bool, Iterator[FileInfo]]]:
        def infos() -> Iterator[FileInfo]:
            for number in range(count):
                folder, name = divmod(number, FILES_A_FOLDER)
                uri = f"{pattern}/photographs/{folder:06d}/IMG_{name:08d}.jpg"
                yield FileInfo(
                    uri, 100_000 + number % 5_000, f"{100_000 + number % 5_000}-{1_700_000_000_000 + number}"
                )

        yield True, infos()

    storage.matches = listing
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


@dataclass(frozen=True)
class _Work(beam.DoFn):  # type: ignore[misc]
    """A unit that takes its time and says when it was done."""

    folder: str

    def process(self, unit: int) -> None:
        time.sleep(UNIT_SECONDS)
        Path(self.folder, f"{unit:06d}").write_text(repr(time.time()))


def workers(counts: list[int], units_a_worker: int = 100) -> dict[str, Any]:
    """Units/s of 1 to 16 worker processes, from each run's first finished unit to its last."""
    rates = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            options = PipelineOptions(
                ["--runner=FnApiRunner", f"--direct_num_workers={count}", "--direct_running_mode=multi_processing"]
            )
            with beam.Pipeline(options=options) as pipeline:
                units = pipeline | beam.Create(range(count * units_a_worker), reshuffle=False)
                _ = units | beam.Reshuffle() | beam.ParDo(_Work(folder))
            done = np.sort([float(path.read_text()) for path in Path(folder).iterdir()])
            rates[count] = (len(done) - 1) / (done[-1] - done[0])
    least = min(counts)
    efficiency = {count: rate / count / (rates[least] / least) for count, rate in rates.items()}
    return {"units_s": rates, "efficiency": efficiency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("files", "listing", "shards", "workers"))
    parser.add_argument("--count", type=int, nargs="+")
    args = parser.parse_args()
    if args.part == "workers":
        figures = workers(args.count or [1, 4, 16])
        rows = [
            (f"{count} workers", f"{rate:.1f} units/s, efficiency {figures['efficiency'][count]:.2f}")
            for count, rate in figures["units_s"].items()
        ]
    else:
        part = {"files": files, "listing": listing, "shards": shards}[args.part]
        default = {"files": 10_000_000, "listing": 200_000, "shards": 100_000}[args.part]
        figures = part(args.count[0] if args.count else default)
        rows = [
            (name, f"{value:,.1f}" if isinstance(value, float) else f"{value:,}") for name, value in figures.items()
        ]
    publish(f"scale_{args.part}", figures, rows)


if __name__ == "__main__":
    main()
