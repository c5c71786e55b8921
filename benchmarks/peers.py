"""Extract against what a user would write instead, on the same JPEGs and weights, vectors compared.

    python -m benchmarks.peers [--models VGG16 ResNet50 MobileNetV2] [--images 256] [--rounds 3] [--size 500x375]
        [--weights MODEL=FILE ...] [--ways Keras PyTorch auto ...]

keras_predict     `model.predict` over `keras.utils.image_dataset_from_directory`, which resizes without antialiasing
run_inference     Beam's `RunInference` with a handler of fifteen lines, images decoded by Pillow in a `Map` before it
plain_loop        Pillow and `model.predict_on_batch` in a loop
PyTorch           the same weights, channels last, a DataLoader, as it is and compiled (where `torch` is installed)
Ray Data, Daft    `map_batches` or a class with the Keras model, Parquet written (where `ray`, `daft` are installed)
imagebeam         `imagebeam extract`, on Keras and as `--engine auto` chooses

All run in turn in one process, round by round, after a first run that traces; each figure is the median of the rounds.
RunInference, Ray Data and Daft load their model each time, and extract its staged one. Where the resizing is the same
the vectors must be equal; extract runs again with `--resize_mode stretch_aliased` to be compared with Keras', and with
`--jpeg_decode scaled`, which is for large JPEGs. Keras' reader decodes JPEGs with a faster inverse DCT, so its vectors
of VGG16 are 3e-2 away; with the exact one the pixels are equal. The ceiling of OpenVINO itself is
`benchmarks.extract_speed`'s.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks import peer_frameworks
from benchmarks.common import RESULTS, publish, write_jpegs
from benchmarks.peer_common import BATCH, SIZE, Vectors, decode, load, paths_in, read, saved
from pipelines.extract import ExtractOptions
from pipelines.extract import run as run_extract
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import InputOptions, ModelOptions, OutputOptions
from transforms.core.engines import Engine
from transforms.core.spec import JpegDecode, ResizeMode
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import build_embedder

if TYPE_CHECKING:
    import keras


def plain_loop(model: keras.Model, folder: Path, scratch: Path) -> Vectors:
    """Pillow and the compiled model, one after the other."""
    del scratch
    paths = paths_in(folder)
    found: Vectors = {}
    for start in range(0, len(paths), BATCH):
        images = [decode(path) for path in paths[start : start + BATCH]]
        vectors = model.predict_on_batch(np.stack([pixels for _, pixels in images]))
        found |= {path: vector for (path, _), vector in zip(images, vectors, strict=True)}
    return found


def keras_predict(model: keras.Model, folder: Path, scratch: Path) -> Vectors:
    """Keras' own way of reading a folder."""
    del scratch
    import keras

    images = keras.utils.image_dataset_from_directory(
        folder, labels=None, batch_size=BATCH, image_size=SIZE, shuffle=False, verbose=False
    )
    pixels = images.map(lambda batch: _as_bytes(batch)).prefetch(2)
    return dict(zip(images.file_paths, model.predict(pixels, verbose=0), strict=True))


def _as_bytes(batch: Any) -> Any:
    import tensorflow as tf

    return tf.cast(tf.round(tf.clip_by_value(batch, 0, 255)), tf.uint8)


class KerasHandler(ModelHandler[tuple[str, np.ndarray], PredictionResult, Any]):  # type: ignore[misc]
    """What Beam's documentation has one write for a framework of one's own."""

    def __init__(self, path: str) -> None:
        super().__init__(min_batch_size=BATCH, max_batch_size=BATCH)
        self._path = path

    def load_model(self) -> Any:
        return load(self._path)

    def run_inference(
        self, batch: Sequence[tuple[str, np.ndarray]], model: Any, inference_args: Any = None
    ) -> Iterable[PredictionResult]:
        del inference_args
        vectors = model.predict_on_batch(np.stack([pixels for _, pixels in batch]))
        return [PredictionResult(path, vector) for (path, _), vector in zip(batch, vectors, strict=True)]


def run_inference(model: keras.Model, folder: Path, scratch: Path) -> Vectors:
    """Beam's own inference, written to Parquet by Beam; loads the model each time, as a run does."""
    output = scratch / "peer"
    shutil.rmtree(output, ignore_errors=True)
    schema = pa.schema([("uri", pa.string()), ("embedding", pa.list_(pa.float32()))])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(paths_in(folder))
            | beam.Reshuffle()
            | beam.Map(decode)
            | RunInference(KerasHandler(saved(model, scratch)))
            | beam.Map(lambda result: {"uri": result.example, "embedding": result.inference.tolist()})
            | beam.io.WriteToParquet(f"{output}/part", schema)
        )
    return read(output)


class Extract:
    """`imagebeam extract` with a staged model; the launcher's and Beam's start-up are part of its time."""

    def __init__(
        self,
        name: str,
        weights: str,
        engine: Engine,
        resize_mode: ResizeMode = ResizeMode.STRETCH,
        jpeg_decode: JpegDecode = JpegDecode.EXACT,
    ) -> None:
        self._model = ModelOptions(
            model=name, weights=weights, image_size=SIZE, resize_mode=resize_mode, jpeg_decode=jpeg_decode
        )
        self._engine = EngineOptions(engine=engine)
        self._name = f"{name}-{engine}-{resize_mode}-{jpeg_decode}"

    def __call__(self, model: keras.Model, folder: Path, scratch: Path) -> Vectors:
        del model
        output = scratch / self._name
        for part in output.glob("embeddings/*"):
            part.unlink()
        run_extract(
            ExtractOptions(
                InputOptions(input=(str(folder),)), self._model, OutputOptions(output=str(output)), self._engine
            )
        )
        return read(output / "embeddings")


def largest_difference(ours: Vectors, theirs: Vectors) -> float:
    """As a share of the vector's length."""
    assert ours.keys() == theirs.keys()
    return max(float(np.linalg.norm(ours[key] - theirs[key]) / np.linalg.norm(theirs[key])) for key in theirs)


def measure(name: str, weights: str, folder: Path, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Rates and differences of one model."""
    model = build_embedder(EmbedderConfig(name, weights, image_size=SIZE))
    ways: dict[str, Callable[[keras.Model, Path, Path], Vectors]] = {
        "plain loop": plain_loop,
        "Keras predict over image_dataset_from_directory": keras_predict,
        "Beam RunInference with a plain handler": run_inference,
        **peer_frameworks.peers(name),
        "imagebeam, Keras": Extract(name, weights, Engine.KERAS),
        "imagebeam, auto": Extract(name, weights, Engine.AUTO),
        "imagebeam, auto, stretch_aliased": Extract(name, weights, Engine.AUTO, ResizeMode.STRETCH_ALIASED),
        "imagebeam, auto, jpeg_decode scaled": Extract(name, weights, Engine.AUTO, jpeg_decode=JpegDecode.SCALED),
    }
    loops = list(ways)[:2]  # which the others' vectors are compared with
    ways = {way: run for way, run in ways.items() if way in loops or any(part in way for part in args.ways)}
    vectors = {way: run(model, folder, scratch) for way, run in ways.items()}  # traces, stages, warms the page cache
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            run(model, folder, scratch)
            rates[way].append(args.images / (time.perf_counter() - started))
            print(f"{name}, {way}: {rates[way][-1]:.2f} images/s")
    exact, aliased = loops
    differences = {
        way: largest_difference(found, vectors[aliased if "aliased" in way else exact])
        for way, found in vectors.items()
        if way not in (exact, aliased)
    }
    return {"images_s": rates, "differences": differences}


def draw(figures: dict[str, Any], title: str, path: Path) -> None:
    """A chart of the rates: medians, from the slowest round to the fastest."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.2 * len(figures)), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(len(figures), squeeze=False)[:, 0], figures.items(), strict=True):
        ways = list(found["images_s"])
        medians = [statistics.median(found["images_s"][way]) for way in ways]
        low, high = ([end(found["images_s"][way]) for way in ways] for end in (min, max))
        errors = [np.subtract(medians, low), np.subtract(high, medians)]
        colors = ["tab:blue" if way.startswith("imagebeam") else "tab:gray" for way in ways]
        bars = axes.barh(ways, medians, xerr=errors, color=colors)
        axes.bar_label(bars, fmt="%.3g", padding=4)
        axes.invert_yaxis()
        axes.set(title=f"{name}, {title}", xlabel="images/s, the start of all but the loops included")
        axes.margins(x=0.15)
    figure.savefig(path)
    print(f"drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["VGG16", "ResNet50", "MobileNetV2"])
    parser.add_argument("--weights", nargs="+", default=[], metavar="MODEL=FILE", help="random otherwise")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[""], metavar="PART", help="of the names; all without it")
    parser.add_argument("--size", default="500x375", help="WIDTHxHEIGHT of the JPEGs")
    args = parser.parse_args()
    weights = dict(one.split("=", 1) for one in args.weights)
    width, height = map(int, args.size.split("x"))
    figures: dict[str, Any] = {}
    title = f"{args.images} JPEGs of {args.size}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "jpegs")
        write_jpegs(folder, args.images, (width, height))
        for name in args.models:
            found = measure(name, weights.get(name, "random:0"), folder, Path(scratch), args)
            figures[name] = found
            medians = {way: statistics.median(rates) for way, rates in found["images_s"].items()}
            best = max(rate for way, rate in medians.items() if not way.startswith("imagebeam"))
            rows = [(title, "images/s | over the best peer | difference")]
            for way, rate in medians.items():
                difference = found["differences"].get(way)
                told = "" if difference is None else f"{difference:.0e}"
                rows.append((f"{name}, {way}", f"{rate:8.2f} | {rate / best:5.2f} | {told}"))
            publish(f"peers-{args.size}", figures, rows)  # after each model: all of them take hours
    draw(figures, title, RESULTS / f"peers-{args.size}.png")


if __name__ == "__main__":
    main()
