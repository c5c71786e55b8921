"""Every architecture on Keras and on OpenVINO, at float32 and at int8: how fast, how near, and what int8 needs.

    python -m benchmarks.engines [--models VGG16 ResNet50 ...] [--weights MODEL=FILE ...] [--seconds 3600]
        [--table docs/engines-table.md]

The images are crops of scikit-learn's two sample photographs. Weights are random unless a file is named, with the
statistics of normalisation layers set to those of the images: otherwise a deep network of random weights gives one
vector for all images, and nothing can be told of int8. What int8 costs a trained model only trained weights tell.

The rates are paired: all candidates of a model run in turns, as in a run's own trial, and each ratio is of one turn's
rates or the best of them. A model that was measured before is not measured again: results/engines.json goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, publish, write_jpegs
from transforms.core.engines import Engine
from transforms.core.errors import ImagebeamError
from transforms.core.spec import Precision
from transforms.models.architectures import ARCHITECTURES
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, assemble, identify, load_backbone
from transforms.models.engines import trial
from transforms.models.engines.trial import FLOAT32_ERROR

if TYPE_CHECKING:
    import keras

IMAGES = 100
SIZE = 224

ENGINES = ("keras", "openvino")

HOLDS = 0.999
"""Median cosine to float32 from which int8 vectors stand for float32 ones."""


def photographs(size: tuple[int, int], folder: Path) -> list[np.ndarray]:
    """Uint8 RGB [height, width, 3]."""
    if not folder.exists():
        write_jpegs(folder, IMAGES)
    height, width = size
    return [np.asarray(Image.open(path).resize((width, height))) for path in sorted(folder.glob("*/*.jpg"))]


def settle_statistics(backbone: keras.Model, embed: Embedder, images: np.ndarray) -> None:
    """Give every batch normalisation the mean and variance of what it gets for these images."""
    import keras

    layers = [layer for layer in embed.model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [(layer.momentum, layer.trainable) for layer in layers]
    for layer in layers:
        layer.momentum, layer.trainable = 0.0, True
    if layers:
        embed.model(images, training=True)
    for layer, (momentum, trainable) in zip(layers, before, strict=True):
        layer.momentum, layer.trainable = momentum, trainable
    del backbone


def measure(name: str, weights: str, folder: Path) -> dict[str, Any]:
    """What a model gives on each engine."""
    config = EmbedderConfig(name, weights)
    size = (SIZE, SIZE)
    try:
        config = dataclasses.replace(config, image_size=size)
    except ImagebeamError:
        size = config.size or size
    images = photographs(size, folder)
    backbone = load_backbone(config)
    if weights.startswith("random"):
        spec = identify(config, backbone)
        settle_statistics(backbone, Embedder(spec, assemble(spec, backbone)), np.stack(images[:24]))
    spec = identify(config, backbone)
    float32 = Embedder(spec, assemble(spec, backbone))
    figures: dict[str, Any] = {"size": size[0], "weights": weights.rpartition("/")[2]}
    started = time.perf_counter()
    try:
        wanted = dataclasses.replace(spec, precision=Precision.INT8)
        verdict = trial.calibrate(float32, wanted, images, ["0" * 64] * len(images), -1.0)
    except ImagebeamError as error:
        figures["refused"] = str(error)
        verdict = trial.choose(lambda _: float32, Engine.AUTO, Precision.FLOAT32, images[:8])
    figures["seconds"] = round(time.perf_counter() - started, 1)
    tried = verdict.loaded.engine.trial
    return {**figures, **tried}


def rate(figures: dict[str, Any], engine: str, precision: str) -> float:
    """Images a second of a candidate; 0 where it did not run."""
    found = [one for one in figures["candidates"] if (one["engine"], one["precision"]) == (engine, precision)]
    return float(found[0]["images_per_second"]) if found else 0.0


def row(name: str, figures: dict[str, Any]) -> str:
    """One line of the table in Markdown."""
    keras, openvino = rate(figures, "keras", "float32"), rate(figures, "openvino", "float32")
    eight, about = rate(figures, "openvino", "int8"), figures.get("int8")
    cells = [name, str(figures["size"]), figures["weights"], f"{keras:.3g}", f"{openvino:.3g}"]
    cells += [f"{openvino / keras:.2f}" if keras else "", f"{error(figures):.0e}"]
    if about is None:
        return "| " + " | ".join([*cells, "no", "", "", "", ""]) + " |"
    cells += [about["preset"].lower(), f"{eight:.3g}", f"{eight / max(openvino, keras):.2f}"]
    cells += [f"{about['median_cosine']:.5f}", f"{about['lowest_cosine']:.4f}"]
    return "| " + " | ".join(cells) + " |"


COLUMNS = (
    *("model", "pixels", "weights", "Keras float32", "OpenVINO float32", "ratio", "error"),
    *("int8", "images/s", "over float32", "cosine, median", "lowest"),
)
NOTES = (
    "Images a second, two batches of 8 at once, the best of a few turns; the ratios are of rates measured in turns. "
    "`error` is the largest length of the difference between OpenVINO's float32 vectors and Keras', as a share of the "
    "vector's; a run takes OpenVINO up to 1e-5. `int8` is NNCF's preset. The cosines are between int8 and float32 "
    "vectors of 50 photographs that it was not calibrated on. A file of weights is a trained network's: VGG16's is the "
    "demo's, the others are from `python -m benchmarks.trained_weights`. All others are random, their normalisation "
    "fitted to the photographs: they tell whether int8 works and how fast, and nothing of what it costs a trained "
    "model. Such networks amplify rounding, too: with random weights InceptionV3's error is 5e-5, with trained ones "
    "8e-7."
)

HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def page(known: dict[str, Any], result: dict[str, Any]) -> str:
    """The table with what it was measured on."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("openvino", "nncf", "tensorflow", "keras"))
    told = (
        f"Written by `python -m benchmarks.engines --table FILE`: {machine['processor']} with "
        f"{', '.join(machine['flags'])}, {machine['cores']} cores, {versions}, {result['date']}."
    )
    title = f"# Engines: {len(known)} of {len(ARCHITECTURES)} architectures"
    rows = "\n".join(row(one, known[one]) for one in ARCHITECTURES if one in known)
    texts = (textwrap.fill(text, 124) for text in (told, NOTES, summary(known)))
    return "\n\n".join((title, *texts, f"{HEAD}{rows}\n"))


def mean(values: list[float]) -> float:
    """The geometric one."""
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def error(figures: dict[str, Any]) -> float:
    """Of OpenVINO's float32 vectors; NaN where it did not run."""
    found = [one for one in figures["candidates"] if (one["engine"], one["precision"]) == ("openvino", "float32")]
    return float(found[0]["largest_difference"]) if found else float("nan")


def summary(known: dict[str, Any]) -> str:
    """The geometric means of the ratios."""
    keras, openvino = ({name: rate(one, engine, "float32") for name, one in known.items()} for engine in ENGINES)
    faster = {name: max(keras[name], openvino[name]) for name in known}
    taken = {name: faster[name] if error(known[name]) <= FLOAT32_ERROR else keras[name] for name in known}
    eight = {name: rate(one, "openvino", "int8") / faster[name] for name, one in known.items() if "int8" in one}
    trained = {name: gain for name, gain in eight.items() if not known[name]["weights"].startswith("random")}
    holds = {name: gain for name, gain in trained.items() if known[name]["int8"]["median_cosine"] >= HOLDS}
    return (
        f"Geometric means. The faster engine at float32 over Keras, {len(known)} models: "
        f"{mean([faster[name] / keras[name] for name in known]):.2f}; with Keras where OpenVINO's error on these "
        f"weights is above {FLOAT32_ERROR:.0e}: {mean([taken[name] / keras[name] for name in known]):.2f}. int8 over "
        f"the faster engine at float32, {len(eight)} models: {mean(list(eight.values())):.2f}; of the trained ones "
        f"({', '.join(sorted(trained))}): {mean(list(trained.values())):.2f}; of those with a median cosine of {HOLDS} "
        f"or more ({', '.join(sorted(holds)) or 'none'}): {mean(list(holds.values())):.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--weights", nargs="+", default=[], metavar="MODEL=FILE", help="of a model; random otherwise")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so many")
    parser.add_argument("--table", type=Path, help="Markdown to write")
    args = parser.parse_args()
    weights = dict(one.split("=", 1) for one in args.weights)
    path, began = RESULTS / "engines.json", time.perf_counter()
    known: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    for name in args.models:
        if name in known or time.perf_counter() - began > args.seconds:
            continue
        alone = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # All 40 in one process take 19 GB.
        with alone:
            task = alone.submit(measure, name, weights.get(name, "random:0"), RESULTS / "photographs")
            known[name] = task.result()
        rows = [(one, row(one, figures)) for one, figures in known.items()]
        publish("engines", known, rows[-1:])
    print(summary(known))
    if args.table is not None:
        args.table.write_text(page(known, json.loads(path.read_text())))


if __name__ == "__main__":
    main()
