"""Winograd's convolutions at float32 on OpenVINO: their gain, by the channels that one must have, and their error.

    python -m benchmarks.winograd [--model VGG16] [--weights FILE] [--batch 8] [--rounds 7]

The variants are the model as it is converted, and rewritten by `transforms.models.engines.winograd` for several least
harmonic means of a convolution's channels. They run in turn, round by round, two batches at once as in a run. The error
is that of the vectors against Keras', the largest of a batch, as a share of their length.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import publish, write_jpegs
from transforms.core.batching import MODEL_CALLS
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.engines.openvino_model import OpenVinoEmbedder, convert
from transforms.models.engines.winograd import FEWEST_CHANNELS, with_winograd

CHANNELS = (FEWEST_CHANNELS, 120, 80, 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="VGG16", help="of keras.applications")
    parser.add_argument("--weights", default="random:0", help="of the model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    embedder = resolve(EmbedderConfig(args.model, args.weights))
    height, width = embedder.spec.image_size or (224, 224)
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), args.batch, (500, 375))
        paths = sorted(Path(folder).glob("*/*.jpg"))
        images = np.stack([np.asarray(Image.open(path).resize((width, height))) for path in paths])
    (column,) = embedder.dimensions
    expected = embedder.embed(images)[column]
    plain = convert(embedder)
    variants = {"direct": plain}
    for channels in CHANNELS:
        rewritten = with_winograd(plain, channels)
        if rewritten is not None:
            variants[f"Winograd from {channels} channels on"] = rewritten
    compiled = {name: OpenVinoEmbedder(embedder.spec, embedder.dimensions, one) for name, one in variants.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, one in compiled.items():
        apart = np.linalg.norm(one.embed(images)[column] - expected, axis=1) / np.linalg.norm(expected, axis=1)
        replaced = convolutions(plain) - convolutions(variants[name])
        found[name] = {"convolutions": replaced, "error": float(apart.max()), "images_s": []}
    batches = [images] * MODEL_CALLS
    with ThreadPoolExecutor(MODEL_CALLS) as pool:
        for _ in range(args.rounds):
            for name, one in compiled.items():
                began = time.perf_counter()
                list(pool.map(one.embed, batches))
                found[name]["images_s"].append(sum(map(len, batches)) / (time.perf_counter() - began))
    rows = []
    for name, figures in found.items():
        pairs = zip(figures["images_s"], found["direct"]["images_s"], strict=True)
        figures["over_direct"] = statistics.median(ours / direct for ours, direct in pairs)
        rate = f"{statistics.median(figures['images_s']):6.2f} images/s | {figures['over_direct']:.2f} of direct"
        rows.append((name, f"{rate} | {figures['convolutions']:3} convolutions | error {figures['error']:.1e}"))
    publish("winograd", {"model": args.model, "weights": Path(args.weights).name, "variants": found}, rows)


def convolutions(model: Any) -> int:
    """How many a model on OpenVINO has."""
    return sum(node.get_type_name() == "Convolution" for node in model.get_ops())


if __name__ == "__main__":
    main()
