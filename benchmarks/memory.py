"""Peak memory of extract at 2,000 and at 20,000 images: it must not grow with their number.

    python -m benchmarks.memory [--counts 2000 20000]

Each count is one `imagebeam extract` process over TFRecord shards of 64x64 JPEGs, with a small model on Keras, so that
the larger input has no trial of engines that the smaller one has not; the figure is the operating system's: the
process's largest resident set.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import publish

RECORDS_PER_SHARD = 1_000


def write_shards(folder: Path, count: int) -> None:
    import tensorflow as tf

    folder.mkdir()
    rng = np.random.default_rng(0)
    for start in range(0, count, RECORDS_PER_SHARD):
        with tf.io.TFRecordWriter(str(folder / f"{start:07d}.tfrecord")) as writer:
            for _ in range(min(RECORDS_PER_SHARD, count - start)):
                jpeg = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
                feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg.getvalue()]))
                example = tf.train.Example(features=tf.train.Features(feature={"image": feature}))
                writer.write(example.SerializeToString())


def peak_rss(shards: Path, output: Path) -> int:
    """Bytes of the largest resident set of one extract process."""
    command = [sys.executable, "-m", "pipelines.extract", "--input", f"{shards}/*.tfrecord", "--output", str(output)]
    command += ["--model", "MobileNetV3Small", "--weights", "random:0", "--image_size", "64x64", "--engine", "keras"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs=2, default=[2_000, 20_000])
    args = parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.counts:
            write_shards(Path(folder) / str(count), count)
            peaks[count] = peak_rss(Path(folder) / str(count), Path(folder) / f"out-{count}")
    few, many = args.counts
    ratio = peaks[many] / peaks[few]
    rows = [(f"peak RSS at {count:,} images", f"{peak / 2**20:,.0f} MiB") for count, peak in peaks.items()]
    publish("memory", {"peak_rss_bytes": peaks, "ratio": ratio}, [*rows, ("ratio", f"{ratio:.3f}")])


if __name__ == "__main__":
    main()
