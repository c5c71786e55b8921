"""How fast and in how much memory `imagebeam train` reads rows, against a plain `model.fit` on the same rows in memory.

    python -m benchmarks.train_rows                      # one million rows of 512 values, 2 GB on disk
    python -m benchmarks.train_rows --rows 100000        # smaller

Each measurement is a process of its own, so its peak memory is its own. Both train the same head with the same
optimizer, batch size and batches per compiled call. Rates are the median of whole epochs, validation included, the
first left out, since it traces the step. The job is `imagebeam train` itself, for its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import publish

CLASSES = 10
ROWS_PER_PART = 2048
VALIDATION = 0.1


def write_set(folder: Path, rows: int, dimension: int) -> None:
    """Random vectors in parts that extract's own writer writes, part by part."""
    import pyarrow as pa

    from transforms import parquet
    from transforms.formats import InputFormat
    from transforms.spec import EmbedderSpec
    from transforms.types import FileInfo, Shard, WorkUnit, embeddings_schema

    spec = EmbedderSpec("Random", "0" * 64)
    schema = embeddings_schema({"embedding": dimension})
    shard = Shard(FileInfo("memory", 0, ""), InputFormat.TFRECORD)
    random = np.random.default_rng(0)
    centers = random.normal(size=(CLASSES, dimension)).astype(np.float32)
    parts = []
    for start in range(0, rows, ROWS_PER_PART):
        count = min(ROWS_PER_PART, rows - start)
        labels = random.integers(CLASSES, size=count)
        vectors = centers[labels] + 4 * random.standard_normal((count, dimension), dtype=np.float32)
        columns = {
            "key": [str(start + row) for row in range(count)],
            "uri": ["memory"] * count,
            "label": labels.astype(str),
            "width": np.full(count, 224, np.int32),
            "height": np.full(count, 224, np.int32),
            "sha256": [random.bytes(32).hex() for _ in range(count)],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension),
        }
        unit = WorkUnit(InputFormat.TFRECORD, count, shard, start)
        parquet.write_unit(str(folder), unit, pa.table(columns, schema=schema), [], spec)
        parts.append({"path": f"{parquet.EMBEDDINGS}/{parquet.part_name(unit.id)}", "rows": count})
    (folder / "manifest.json").write_text(json.dumps({"parts": parts}))


class Stopwatch:
    """A `transforms.fitting.Watcher`, and so a callback for plain Keras too, that times epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = time.monotonic()

    def after_batches(self, *_: Any) -> None:
        """Nothing to time."""

    def after_epoch(self, *_: Any) -> None:
        """Note how long the epoch took."""
        now = time.monotonic()
        self.seconds.append(now - self._began)
        self._began = now


def open_set(folder: str, max_memory_mb: int) -> tuple[Any, Any]:
    """Sources and index, as the job opens them."""
    from transforms.dataset import open_embeddings
    from transforms.row_index import LabelRules, SplitRules, index_rows
    from transforms.sources import open_sources

    embeddings = open_embeddings([folder])
    index = index_rows(embeddings, LabelRules(), SplitRules(validation=VALIDATION, test=0.0))
    return open_sources(embeddings, index, max_memory_mb), index


def make_model(sources: Any, args: argparse.Namespace) -> Any:
    from pipelines.training_options import units
    from transforms.classifier import build_head, compile_head

    head = build_head(
        args.dimension, CLASSES, hidden_units=units(args.hidden_units), mean=sources.mean, variance=sources.variance
    )
    return compile_head(head, steps=1)


def measure_streamed(args: argparse.Namespace) -> dict[str, Any]:
    """Epochs over Parquet, with what the job holds in memory by default."""
    from transforms.fitting import fit
    from transforms.sources import EpochOrder, to_dataset

    sources, index = open_set(args.folder, args.max_memory_mb)
    order, watch = EpochOrder(0), Stopwatch()
    fit(
        make_model(sources, args),
        to_dataset(sources.train, index.targets, args.batch_size, order),
        to_dataset(sources.validation, index.targets, args.batch_size),
        epochs=args.epochs,
        begin_epoch=order.begin_epoch,
        watcher=watch,
    )
    return {"source": type(sources.train).__name__, "train_rows": sources.train.rows, "epoch_seconds": watch.seconds}


def measure_plain(args: argparse.Namespace) -> dict[str, Any]:
    """Plain `model.fit` on arrays, shuffled by Keras."""
    import keras

    sources, index = open_set(args.folder, max_memory_mb=2**20)
    train, validation = sources.train, sources.validation
    watch = Stopwatch()
    make_model(sources, args).fit(
        train.vectors,
        index.targets(train.numbers),
        validation_data=(validation.vectors, index.targets(validation.numbers)),
        batch_size=args.batch_size,
        epochs=args.epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch.after_epoch)],
    )
    return {"source": "model.fit", "train_rows": train.rows, "epoch_seconds": watch.seconds}


MEASUREMENTS = {"plain": measure_plain, "streamed": measure_streamed}


def run_measurement(name: str, argv: list[str]) -> dict[str, Any]:
    """One measurement in a process of its own."""
    with tempfile.NamedTemporaryFile() as answer:
        command = [sys.executable, "-m", "benchmarks.train_rows", *argv, "--measure", name, "--answer", answer.name]
        figures = run_process(command)
        figures |= json.loads(Path(answer.name).read_text())
    figures["rows_per_second"] = figures["train_rows"] / statistics.median(figures["epoch_seconds"][1:])
    return figures


def run_job(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole job, one epoch: checking, training, measuring, plots."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "pipelines.train", "--embeddings", str(folder), "--output", f"{output}/out"]
        command += ["--skip_image_classifier", "--epochs=1", f"--batch_size={args.batch_size}"]
        command += [f"--max_memory_mb={args.max_memory_mb}", f"--hidden_units={args.hidden_units}"]
        figures = run_process(command)
        figures["accuracy"] = json.loads(Path(output, "out", "metrics.json").read_text())["accuracy"]
    return figures


def run_process(command: list[str]) -> dict[str, Any]:
    """Seconds and largest resident set (bytes) of a process."""
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return {"seconds": time.monotonic() - began, "peak_rss_bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--hidden_units", default="none", help="widths with commas between them, or none")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max_memory_mb", type=int, default=512)
    parser.add_argument("--folder", help="where the rows are, or are put and kept (default: a temporary folder)")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        args.answer.write_text(json.dumps(MEASUREMENTS[args.measure](args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        if not (folder / "manifest.json").exists():
            write_set(folder, args.rows, args.dimension)
        names = ("hidden_units", "batch_size", "epochs", "max_memory_mb", "dimension")
        argv = [f"--{name}={getattr(args, name)}" for name in names] + [f"--folder={folder}"]
        figures = {name: run_measurement(name, argv) for name in MEASUREMENTS}
        figures["job"] = run_job(args, folder)
    ratio = figures["streamed"]["rows_per_second"] / figures["plain"]["rows_per_second"]
    rows = [(f"{name}: rows/s", f"{figures[name]['rows_per_second']:,.0f}") for name in MEASUREMENTS]
    rows += [("ratio", f"{ratio:.2f}"), ("the job with one epoch: seconds", f"{figures['job']['seconds']:.0f}")]
    rows += [(f"{name}: peak RSS", f"{found['peak_rss_bytes'] / 1e9:.2f} GB") for name, found in figures.items()]
    publish("train_rows", {"rows": args.rows, "dimension": args.dimension, "ratio": ratio, **figures}, rows)


if __name__ == "__main__":
    main()
