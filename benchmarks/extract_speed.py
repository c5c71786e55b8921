"""Extract's steady rate, JPEG in and Parquet out, against the bare compiled model on ready batches.

    python -m benchmarks.extract_speed [--images 256] [--rounds 3] [--precision float32 bfloat16]

Both are measured in turn in one process, round by round; the ratio is of the medians. The bare model is the same
Keras model in a `tf.function` over a uint8 batch in memory, at its best batch size. Extract's rate is counted from
the end of its first batch, so that loading and tracing are left out on both sides, to the last part on disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import publish, write_jpegs
from pipelines.extract import ExtractOptions
from pipelines.extract import run as run_extract
from pipelines.options.extraction import InputOptions, ModelOptions, OutputOptions
from transforms.core.progress import PROGRESS
from transforms.core.spec import Precision
from transforms.models.staged import read_staged


def bare_rate(model: Any, batch_size: int, images: int) -> float:
    """Images/s of the compiled model over one ready batch, after a call that traces it."""
    import tensorflow as tf

    compiled = tf.function(lambda batch: model(batch, training=False))
    batch = np.random.default_rng(0).integers(0, 256, (batch_size, 224, 224, 3), dtype=np.uint8)
    compiled(batch)
    calls = max(2, images // batch_size)
    started = time.perf_counter()
    for _ in range(calls):
        np.asarray(compiled(batch))
    return calls * batch_size / (time.perf_counter() - started)


def extract_rate(options: ExtractOptions) -> float:
    """Images/s of one run from its first batch to its last part, in this process."""
    marks: list[tuple[float, int]] = []
    count = PROGRESS.embedded

    def mark(images: int, seconds: float) -> None:
        count(images, seconds)
        marks.append((time.perf_counter(), images))

    committed: list[float] = []
    from transforms.runs import part_files

    write_unit = part_files.write_unit

    def write_and_mark(*args: Any, **settings: Any) -> Any:
        commit = write_unit(*args, **settings)
        committed.append(time.perf_counter())
        return commit

    PROGRESS.embedded = mark  # type: ignore[method-assign]
    part_files.write_unit = write_and_mark
    try:
        run_extract(options)
    finally:
        del PROGRESS.embedded
        part_files.write_unit = write_unit
    return sum(images for _, images in marks[1:]) / (committed[-1] - marks[0][0])


def measure(precision: Precision, jpegs: Path, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The two rates, round by round."""
    options = ExtractOptions(
        InputOptions(input=(f"{jpegs}/*/*.jpg",)),
        ModelOptions(weights=args.weights, precision=precision),
        OutputOptions(output=str(scratch / precision), overwrite=True),
    )
    extract_rate(options)  # stages the model; warms the page cache
    staged = read_staged(str(scratch / precision / "model"))
    assert staged is not None
    model = staged.load().model
    best = max(args.batch_sizes, key=lambda batch_size: bare_rate(model, batch_size, 2 * batch_size))
    bare, extract = [], []
    for _ in range(args.rounds):
        bare.append(bare_rate(model, best, args.images // 2))
        extract.append(extract_rate(options))
    ratio = statistics.median(extract) / statistics.median(bare)
    return {"bare_batch_size": best, "bare_images_s": bare, "extract_images_s": extract, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", type=Precision, nargs="+", default=[Precision.FLOAT32, Precision.BFLOAT16])
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 32, 64], help="tried for the bare model")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        jpegs = Path(folder) / "jpegs"
        write_jpegs(jpegs, args.images)
        for precision in args.precision:
            figures[precision] = measure(precision, jpegs, Path(folder), args)
    rows = [("VGG16, 224x224, images/s", "bare model | extract | ratio")]
    for precision, figure in figures.items():
        bare, extract = (statistics.median(figure[name]) for name in ("bare_images_s", "extract_images_s"))
        rows.append((precision, f"{bare:10.2f} | {extract:7.2f} | {figure['ratio']:.3f}"))
    if {Precision.FLOAT32, Precision.BFLOAT16} <= set(figures):
        rates = [statistics.median(figures[one]["extract_images_s"]) for one in (Precision.BFLOAT16, Precision.FLOAT32)]
        figures["bfloat16_over_float32"] = rates[0] / rates[1]
        rows.append(("bfloat16 over float32", f"{rates[0] / rates[1]:.2f}"))
    publish("extract_speed", figures, rows)


if __name__ == "__main__":
    main()
