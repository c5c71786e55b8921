"""How fast and in how much memory `imagebeam train` reads rows, against a plain `model.fit` on the same rows in memory.

    python -m benchmarks.train_rows                      # one million rows of 512 values, 2 GB on disk
    python -m benchmarks.train_rows --rows 100000        # smaller

Both train the same head with the same optimizer, batch size and batches per compiled call, an epoch each in turn, so
that what else the machine does weighs on both; rates are those of whole epochs, validation included. Memory is that of
`imagebeam train` itself, in a process of its own.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import publish

if TYPE_CHECKING:
    from transforms.training_data.row_index import RowIndex
    from transforms.training_data.vector_sources import Sources

CLASSES = 10
ROWS_PER_PART = 2048
VALIDATION = 0.1


def write_set(folder: Path, rows: int, dimension: int) -> None:
    """Random vectors in parts that extract's own writer writes, part by part."""
    import pyarrow as pa

    from transforms.core.formats import InputFormat
    from transforms.core.spec import EmbedderSpec
    from transforms.parts import part_files
    from transforms.parts.schemas import embeddings_schema
    from transforms.readers.units import Shard, ShardSlice, ShardUnit
    from transforms.storage.files import FileInfo

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
        unit = ShardUnit((ShardSlice(shard, start, count),))
        part_files.write_unit(str(folder), unit, pa.table(columns, schema=schema), [], spec)
        parts.append({"path": f"{part_files.EMBEDDINGS}/{part_files.part_name(unit.id)}", "rows": count})
    (folder / "manifest.json").write_text(json.dumps({"parts": parts}))


class Stopwatch:
    """Times epochs proper: what `fit` does before the first, such as copying its arrays, is left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def callback(self) -> Any:
        """For one `fit`."""
        import keras

        return keras.callbacks.LambdaCallback(on_epoch_begin=self._begin, on_epoch_end=self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.monotonic()

    def _end(self, *_: Any) -> None:
        self.seconds.append(time.monotonic() - self._began)


def open_set(folder: str, max_memory_mb: int) -> tuple[Sources, RowIndex]:
    """Sources and index, as the job opens them."""
    from transforms.training_data.embeddings import open_embeddings
    from transforms.training_data.row_index import LabelRules, SplitRules, index_rows
    from transforms.training_data.vector_sources import open_sources

    embeddings = open_embeddings([folder])
    index = index_rows(embeddings, LabelRules(), SplitRules(validation=VALIDATION, test=0.0))
    return open_sources(embeddings, index, max_memory_mb), index


def make_model(sources: Sources, args: argparse.Namespace) -> Any:
    from pipelines.options.training import units
    from transforms.training.head import build_head, compile_head

    hidden = units(args.hidden_units)
    head = build_head(args.dimension, CLASSES, hidden_units=hidden, mean=sources.mean, deviation=sources.deviation)
    return compile_head(head, steps=1)


def measure_speed(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of epochs in turn: plain `model.fit` on arrays, shuffled by Keras; and the job's way of reading."""
    from transforms.training_data.batches import vector_batches
    from transforms.training_data.vector_sources import EpochOrder, MatrixSource

    streamed, index = open_set(args.folder, args.max_memory_mb)
    held, _ = open_set(args.folder, max_memory_mb=2**20)
    assert isinstance(held.train, MatrixSource)
    assert isinstance(held.validation, MatrixSource)
    assert streamed.validation is not None
    labels, held_out = (index.targets(source.numbers) for source in (held.train, held.validation))
    plain_model, model = make_model(held, args), make_model(streamed, args)
    order = EpochOrder(0)
    train = vector_batches(streamed.train, index.targets, args.batch_size, order)
    validation = vector_batches(streamed.validation, index.targets, args.batch_size)
    plain_watch, watch = Stopwatch(), Stopwatch()
    for epoch in range(args.epochs + 1):
        plain_model.fit(
            held.train.vectors,
            labels,
            validation_data=(held.validation.vectors, held_out),
            batch_size=args.batch_size,
            verbose=0,
            callbacks=[plain_watch.callback()],
        )
        order.begin_epoch(epoch)
        model.fit(train, validation_data=validation, shuffle=False, verbose=0, callbacks=[watch.callback()])
    seconds = {"plain": plain_watch.seconds, "streamed": watch.seconds}
    rows = streamed.train.rows
    timed = {name: times[1:] for name, times in seconds.items()}  # the first epoch traces the step
    return {
        "source": type(streamed.train).__name__,
        "train_rows": rows,
        "epoch_seconds": timed,
        "rows_per_second": {name: rows / statistics.median(times) for name, times in timed.items()},
        "ratio": statistics.median(a / b for a, b in zip(timed["plain"], timed["streamed"], strict=True)),
    }


def run_job(args: argparse.Namespace) -> dict[str, Any]:
    """The whole job, one epoch, in a process of its own: checking, training, measuring, plots."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "pipelines.train", "--embeddings", args.folder, "--output", f"{output}/out"]
        command += ["--skip_image_classifier", "--epochs=1", f"--batch_size={args.batch_size}"]
        command += [f"--max_memory_mb={args.max_memory_mb}", f"--hidden_units={args.hidden_units}"]
        began = time.monotonic()
        with subprocess.Popen(command) as process:
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with status {status}")
        accuracy = json.loads(Path(output, "out", "metrics.json").read_text())["accuracy"]
    return {"seconds": time.monotonic() - began, "peak_rss_bytes": usage.ru_maxrss * 1024, "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--hidden_units", default="none", help="widths with commas between them, or none")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=7, help="pairs of epochs that are timed")
    parser.add_argument("--max_memory_mb", type=int, default=512)
    parser.add_argument("--folder", help="where the rows are, or are put and kept (default: a temporary folder)")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or temporary
        if not Path(args.folder, "manifest.json").exists():
            write_set(Path(args.folder), args.rows, args.dimension)
        job = run_job(args)
        speed = measure_speed(args)
    rows = [(f"{name}: rows/s", f"{rate:,.0f}") for name, rate in speed["rows_per_second"].items()]
    rows.append(("streamed / plain, median of pairs", f"{speed['ratio']:.2f}"))
    rows.append(("imagebeam train, one epoch: seconds", f"{job['seconds']:.0f}"))
    rows.append(("imagebeam train, one epoch: peak RSS", f"{job['peak_rss_bytes'] / 1e9:.2f} GB"))
    options = {name: value for name, value in vars(args).items() if name != "folder"}
    publish("train_rows", {"options": options, "speed": speed, "job": job}, rows)


if __name__ == "__main__":
    main()
