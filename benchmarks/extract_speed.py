"""Extract's steady rate, JPEG in and Parquet out, against the bare compiled model on ready batches.

    python -m benchmarks.extract_speed [--images 256] [--rounds 3] [--model VGG16] [--precision float32 bfloat16]
        [--engine keras openvino]

Both are measured in turn in one process, round by round; the ratio is of the medians. The bare model is the same
model over a uint8 batch in memory, at its best batch size: for Keras in a `tf.function`, for OpenVINO compiled, and
called by as many threads as a run has. Loading and tracing are left out on both sides: extract's rate is counted to the
last part on disk from the end of its first batch, which traces a Keras model, or from the start of the first batch on
OpenVINO, where several batches are with the model at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import publish, write_jpegs
from pipelines.extract import ExtractOptions
from pipelines.extract import run as run_extract
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import InputOptions, ModelOptions, OutputOptions
from transforms.core.batching import MODEL_CALLS
from transforms.core.engines import Engine, PrecisionChoice
from transforms.core.progress import PROGRESS
from transforms.models.engines.openvino_model import OpenVinoEmbedder
from transforms.models.staged import StagedModel, read_staged

SIZE = 224


def bare_call(staged: StagedModel) -> tuple[Callable[[np.ndarray], Any], int]:
    """The engine's own call of the model, and how many threads make it."""
    model = staged.load()
    if isinstance(model, OpenVinoEmbedder):
        return model.embed, MODEL_CALLS
    import tensorflow as tf

    compiled = tf.function(lambda batch: model.model(batch, training=False))
    return lambda batch: np.asarray(compiled(batch)), 1


def bare_rate(call: Callable[[np.ndarray], Any], threads: int, batch_size: int, images: int) -> float:
    """Images/s of the compiled model over one ready batch, after a call that traces it."""
    batch = np.random.default_rng(0).integers(0, 256, (batch_size, SIZE, SIZE, 3), dtype=np.uint8)
    call(batch)
    calls = max(2, images // batch_size)
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, [batch] * calls))
    return calls * batch_size / (time.perf_counter() - started)


def extract_rate(options: ExtractOptions, *, traces: bool) -> float:
    """Images/s of one run from the end of its first batch, or its start where no batch `traces`, to its last part."""
    calls: list[tuple[float, float, int]] = []
    count = PROGRESS.embedded

    def mark(images: int, seconds: float) -> None:
        count(images, seconds)
        ended = time.perf_counter()
        calls.append((ended - seconds, ended, images))

    committed: list[float] = []
    from transforms.parts import part_files

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
    first = calls.pop(0)[1] if traces else min(began for began, _, _ in calls)
    return sum(images for _, _, images in calls) / (committed[-1] - first)


def measure(
    engine: Engine, precision: PrecisionChoice, jpegs: Path, scratch: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """The two rates, round by round."""
    output = str(scratch / f"{engine}-{precision}")
    options = ExtractOptions(
        InputOptions(input=(f"{jpegs}/*/*.jpg",)),
        ModelOptions(model=args.model, weights=args.weights, image_size=(SIZE, SIZE), precision=precision),
        OutputOptions(output=output, overwrite=True),
        EngineOptions(engine=engine, int8_min_cosine=0.9),
    )
    extract_rate(options, traces=False)  # stages the model; warms the page cache
    options = dataclasses.replace(options, output=OutputOptions(output=output))
    staged = read_staged(f"{output}/model")
    assert staged is not None
    call, threads = bare_call(staged)
    best = max(args.batch_sizes, key=lambda batch_size: bare_rate(call, threads, batch_size, 2 * batch_size))
    bare, extract = [], []
    for _ in range(args.rounds):
        bare.append(bare_rate(call, threads, best, args.images // 2))
        shutil.rmtree(f"{output}/embeddings")
        extract.append(extract_rate(options, traces=staged.engine.name == Engine.KERAS))
    ratio = statistics.median(extract) / statistics.median(bare)
    return {"bare_batch_size": best, "bare_images_s": bare, "extract_images_s": extract, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="VGG16")
    both = [PrecisionChoice.FLOAT32, PrecisionChoice.BFLOAT16]
    parser.add_argument("--precision", type=PrecisionChoice, nargs="+", default=both)
    parser.add_argument("--engine", type=Engine, nargs="+", default=[Engine.KERAS])
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 32, 64], help="tried for the bare model")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        jpegs = Path(folder) / "jpegs"
        write_jpegs(jpegs, args.images)
        for engine, precision in itertools.product(args.engine, args.precision):
            if (engine, precision) != (Engine.KERAS, PrecisionChoice.INT8):
                figures[f"{engine} {precision}"] = measure(engine, precision, jpegs, Path(folder), args)
    rows = [(f"{args.model}, {SIZE}x{SIZE}, images/s", "bare model | extract | ratio")]
    for name, figure in figures.items():
        bare, extract = (statistics.median(figure[which]) for which in ("bare_images_s", "extract_images_s"))
        rows.append((name, f"{bare:10.2f} | {extract:7.2f} | {figure['ratio']:.3f}"))
    first, *others = figures
    for name in others:
        rates = [statistics.median(figures[one]["extract_images_s"]) for one in (name, first)]
        figures[name][f"extract_over_{first.replace(' ', '_')}"] = rates[0] / rates[1]
        rows.append((f"{name} over {first}", f"{rates[0] / rates[1]:.2f}"))
    publish("extract_speed", figures, rows)


if __name__ == "__main__":
    main()
