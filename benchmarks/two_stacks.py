"""Vectors of the same images on the newest and on the oldest stack that is supported.

    python -m benchmarks.two_stacks [--other .venv-tfio/bin/python] [--images 48]

Each model's weights are saved to a file once, and `imagebeam extract` runs with that file in both environments: VGG16
with the demo's real weights, the others with seeded ones. Exit code 1 if
a vector's cosine with the other stack's is below 0.999999, or if the fingerprints differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset
from PIL import Image

from benchmarks.common import write_jpegs

LEAST_COSINE = 0.999999
MODELS = {"ResNet50": "resnet50", "MobileNetV2": "mobilenet_v2", "EfficientNetB0": "efficientnet"}
"""Name -> its module in `keras.applications`."""

_SEED = 7


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each model; 1 if one of them differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_stacks", description=__doc__)
    parser.add_argument("--other", type=Path, default=Path(".venv-tfio/bin/python"), help="Python of the other stack")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--models", nargs="*", default=["VGG16", *MODELS])
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder / "images", options.images)
        lowest = [compare(folder, model, options.other.absolute()) for model in options.models]
    return int(min(lowest) < LEAST_COSINE)


def compare(folder: Path, model: str, other: Path) -> float:
    """The lowest cosine of two vectors of one image; 0 where the specs differ."""
    weights = real_vgg16() if model == "VGG16" else seeded(model, folder)
    outputs = [folder / f"{model}-{index}" for index in range(2)]
    for python, output in zip((Path(sys.executable), other), outputs, strict=True):
        flags = ("--input", folder / "images", "--output", output, "--model", model, "--weights", weights, "--quiet")
        subprocess.run([str(python), "-m", "pipelines.extract", *map(str, flags), "--engine", "keras"], check=True)
    manifests = [json.loads((output / "manifest.json").read_text()) for output in outputs]
    mine, theirs = (vectors(output) for output in outputs)
    cosines = np.sum(mine * theirs, axis=1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    stacks = " and ".join(f"TensorFlow {manifest['versions']['tensorflow']}" for manifest in manifests)
    is_same = manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    lengths = np.linalg.norm(mine, axis=1)
    stacks_apart = np.max(np.linalg.norm(mine - theirs, axis=1) / lengths)
    images_apart = np.max(np.linalg.norm(mine - mine[0], axis=1) / lengths)
    print(
        f"{model}: {len(mine)} images, {stacks}: lowest cosine {cosines.min():.9f}, {stacks_apart:.1e} of a vector's "
        f"length apart (two images: {images_apart:.1e}), fingerprints equal: {is_same}",
        flush=True,
    )
    return float(cosines.min()) if is_same else 0.0


def vectors(output: Path) -> np.ndarray:
    """float64 [images, D], by key."""
    table = pyarrow.dataset.dataset(output / "embeddings").to_table(columns=["key", "embedding"]).sort_by("key")
    return np.array(table["embedding"].to_pylist(), np.float64)


def real_vgg16() -> Path:
    """The demo's weights."""
    from pipelines.demo import fetch_vgg16

    return fetch_vgg16()


def seeded(model: str, folder: Path) -> Path:
    """Random weights in a file; batch normalisation has the means and variances of the images there.

    Without those, hardly anything of an image would be left in its vector.
    """
    import keras

    keras.utils.set_random_seed(_SEED)
    backbone = getattr(keras.applications, model)(weights=None, include_top=False)
    source = np.random.default_rng(_SEED)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(source.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(source.uniform(-0.5, 0.5, layer.beta.shape))
            layer.momentum = 0.0  # one batch gives them
    paths = sorted((folder / "images").rglob("*.jpg"))[:16]
    images = [np.asarray(Image.open(path).resize((224, 224)), np.float32) for path in paths]
    preprocess = getattr(keras.applications, MODELS[model]).preprocess_input
    backbone(preprocess(np.stack(images)), training=True)
    path = folder / f"{model}.weights.h5"
    backbone.save_weights(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
