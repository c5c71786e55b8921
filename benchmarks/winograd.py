"""VGG16 at float32 with Winograd's convolutions: what they gain on OpenVINO, and what they cost in accuracy.

    python -m benchmarks.winograd [--weights FILE] [--batch 8] [--rounds 7]

F(m x m, 3 x 3) computes a tile of m x m outputs of a 3 x 3 convolution with (m + 2)^2 products instead of 9 m^2: 2.25
times fewer for m = 2, 4 times fewer for m = 4 (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR
2016, with their matrices). The oneDNN in TensorFlow 2.21 and OpenVINO 2026.4 has no such kernel for x86-64, so it is
written here as TensorFlow operations around one batched matrix product, and converted to OpenVINO.

The variants run in turn, round by round. The error is that of the vectors, as a share of their length.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import publish, write_jpegs
from benchmarks.peer_common import decode, paths_in
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import build_embedder
from transforms.models.engines.openvino_model import converter

CAFFE_MEANS = (123.68, 116.779, 103.939)

# Of each m: the transforms of a tile of inputs, of a kernel, and of a tile of products.
MATRICES = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def winograd(images: Any, kernel: np.ndarray, m: int) -> Any:
    """A convolution with stride 1 and "same" padding: float32 [n, h, w, c] and [3, 3, c, k] -> [n, h, w, k]."""
    import tensorflow as tf

    inputs, weights, outputs = (np.array(matrix, np.float64) for matrix in MATRICES[m])
    side = m + 2
    count, height, width, channels = images.shape
    rows, columns, filters = -(-height // m), -(-width // m), kernel.shape[-1]
    padded = tf.pad(images, [[0, 0], [1, rows * m + 1 - height], [1, columns * m + 1 - width], [0, 0]])
    last_row, last_column = (rows - 1) * m + 1, (columns - 1) * m + 1
    tiles = tf.stack(
        [
            padded[:, top : top + last_row : m, left : left + last_column : m]
            for top in range(side)
            for left in range(side)
        ]
    )
    both = tf.constant(np.kron(inputs, inputs).astype(np.float32))
    transformed = tf.matmul(both, tf.reshape(tiles, [side * side, -1]))
    kernels = np.einsum("pa,abck,qb->pqck", weights, kernel.astype(np.float64), weights).reshape(-1, channels, filters)
    products = tf.matmul(tf.reshape(transformed, [side * side, -1, channels]), tf.constant(kernels.astype(np.float32)))
    back = tf.constant(np.kron(outputs, outputs).astype(np.float32))
    found = tf.reshape(tf.matmul(back, tf.reshape(products, [side * side, -1])), [m, m, count, rows, columns, filters])
    return tf.reshape(tf.transpose(found, [2, 3, 0, 4, 1, 5]), [count, rows * m, columns * m, filters])[
        :, :height, :width
    ]


def network(weights: list[np.ndarray], plan: list[int]) -> Callable[[Any], Any]:
    """VGG16 with global average pooling, uint8 RGB in; `plan` names each convolution's m, 0 for TensorFlow's own."""
    import tensorflow as tf

    def embed(images: Any) -> Any:
        values = tf.cast(images, tf.float32) - tf.constant(CAFFE_MEANS)
        values = values[..., ::-1]
        for number, m in enumerate(plan):
            kernel, bias = weights[2 * number : 2 * number + 2]
            sums = winograd(values, kernel, m) if m else tf.nn.conv2d(values, kernel, 1, "SAME")
            values = tf.nn.relu(sums + bias)
            if number in (1, 3, 6, 9, 12):
                values = tf.nn.max_pool2d(values, 2, 2, "VALID")
        return tf.reduce_mean(values, [1, 2])

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random:0", help="of VGG16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    model = build_embedder(EmbedderConfig("VGG16", args.weights))
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), args.batch, (500, 375))
        images = np.stack([decode(path)[1] for path in paths_in(Path(folder))])
    expected = np.asarray(model.predict_on_batch(images))
    variants = {
        "direct": [0] * 13,
        "F(2x2), all but the first": [0] + [2] * 12,
        "F(4x4), all but the first": [0] + [4] * 12,
        "F(4x4), from block 3 on": [0] * 4 + [4] * 9,
    }
    compiled: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, plan in variants.items():
        function = tf.function(network(model.get_weights(), plan))
        with converter() as openvino:
            converted = openvino.convert_model(function.get_concrete_function(tf.TensorSpec(images.shape, tf.uint8)))
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled[name] = openvino.Core().compile_model(converted, "CPU", hints)
        vectors = compiled[name](images)[0]
        errors = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
        found[name] = {"error": float(errors.max()), "images_s": []}
    for _ in range(args.rounds):
        for name, run in compiled.items():
            began = time.perf_counter()
            run(images)
            found[name]["images_s"].append(args.batch / (time.perf_counter() - began))
    rows = []
    for name, one in found.items():
        ratios = [ours / direct for ours, direct in zip(one["images_s"], found["direct"]["images_s"], strict=True)]
        one["over_direct"] = statistics.median(ratios)
        rate = statistics.median(one["images_s"])
        rows.append((name, f"{rate:6.2f} images/s | {one['over_direct']:.2f} of direct | error {one['error']:.1e}"))
    publish("winograd", found, rows)


if __name__ == "__main__":
    main()
