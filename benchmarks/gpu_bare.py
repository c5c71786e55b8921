"""What runs on the GPU in a process of its own: a Keras model alone, its vectors against a CPU's, too large batches."""

from __future__ import annotations

import logging
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from transforms.core.spec import Precision
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder
from transforms.models.engines.compiled import CompiledModel, has_gpu
from transforms.models.keras_import import import_keras
from transforms.models.staged import StagedModel, read_staged, stage_model

SIZE = 224
PARITY_IMAGES = 16
ROUNDS = 5
HALVED = "do not fit into the device's memory"
"""Words of the warning that batches are halved from now on."""
TOO_MANY = 512
"""Images of a batch whose first convolution gives VGG16 6.6 GB at float32."""
MEMORY_SHARE = 0.05
"""Of the device's memory: 4 GB of 80. VGG16's weights take 59 MB, and 64 images 1.6 GB in two neighbouring layers."""


def backend_name() -> str:
    """Keras' backend, as chosen by KERAS_BACKEND or by what is installed."""
    import_keras()
    import keras

    return str(keras.backend.backend())


def gpu_name() -> str | None:
    """What the backend calls its GPU; None where it has none."""
    if not has_gpu():
        return None
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    if keras.backend.backend() == "torch":
        import torch

        return str(torch.cuda.get_device_name())
    import tensorflow as tf

    return str(tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])["device_name"])


def peak_tflops() -> float:
    """Of a large bfloat16 matrix product."""
    import keras

    side = 8192 if has_gpu() else 1024
    values = [keras.random.normal((side, side), dtype="bfloat16", seed=seed) for seed in (0, 1)]
    if keras.backend.backend() == "jax":
        import jax

        product = jax.jit(lambda left, right: left @ right)
        wait: Callable[[Any], Any] = jax.block_until_ready
    else:
        product = keras.ops.matmul

        def wait(result: Any) -> Any:
            return keras.ops.convert_to_numpy(result[0, 0])

    for _ in range(3):
        wait(product(*values))
    started = time.perf_counter()
    for _ in range(20):
        result = product(*values)
    wait(result)
    return 20 * 2 * side**3 / (time.perf_counter() - started) / 1e12


def stage(name: str, precision: Precision, scratch: Path) -> str:
    """The folder of a staged model with random weights."""
    folder = scratch / f"{name}-{precision}"
    if not folder.exists():
        stage_model(EmbedderConfig(name, "random:0", image_size=(SIZE, SIZE), precision=precision), str(folder))
    return str(folder)


def bare(name: str, precision: Precision, batch_size: int, peak: float, scratch: Path, checks: bool) -> dict[str, Any]:
    """The figures of a model alone at a precision: rate, share of `peak` in TFLOP/s; and, of `checks`, the others."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (PARITY_IMAGES, SIZE, SIZE, 3), np.uint8)
    batch = rng.integers(0, 256, (batch_size, SIZE, SIZE, 3), np.uint8)
    embedder = _staged(stage(name, precision, scratch)).load_keras()
    figures: dict[str, Any] = {"batch_size": batch_size}
    call, wait = bare_call(embedder.model, precision)
    started = time.perf_counter()
    wait(call(on_device(batch)))
    figures["compile_s"] = time.perf_counter() - started
    figures["bare_images_s"] = rate(call, wait, on_device(batch))
    median = statistics.median(figures["bare_images_s"])
    figures["tflops"] = median * operations(embedder.model) / 1e3
    figures["share_of_matmul_peak"] = figures["tflops"] / peak
    if checks:
        figures |= _checked(name, precision, embedder, batch, few, scratch)
    figures["device_memory_gb"] = memory_gb()
    return figures


def _checked(
    name: str, precision: Precision, embedder: Embedder, batch: np.ndarray, few: np.ndarray, scratch: Path
) -> dict[str, Any]:
    """Programs compiled for tails, parity with a CPU's float32, and the rate with TensorFloat-32."""
    figures: dict[str, Any] = {}
    batch_size = len(batch)
    embedder.embed(batch)
    before = programs(embedder._call)
    for count in (1, batch_size - 1, batch_size // 2 + 1):
        tail = embedder.embed(batch[:count])["embedding"]
        if tail.shape[0] != count:
            raise RuntimeError(f"{count} images gave {tail.shape[0]} vectors")
    figures["programs_for_tails"] = None if before is None else programs(embedder._call) - before  # type: ignore[operator]
    vectors = np.concatenate([embedder.embed(few[start : start + 8])["embedding"] for start in (0, 8)])
    figures["parity"] = parity(stage(name, Precision.FLOAT32, scratch), few, vectors, scratch)
    if precision == Precision.FLOAT32 and has_gpu():
        loose = rate(*bare_call(embedder.model, precision, tf32=True), on_device(batch))
        figures["bare_tf32_images_s"] = statistics.median(loose)
    return figures


def _staged(folder: str) -> StagedModel:
    staged = read_staged(folder)
    if staged is None:
        raise RuntimeError(f"no staged model in {folder}")
    return staged


def bare_call(
    model: Any, precision: Precision, *, tf32: bool = False
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(call, wait): the model alone, and what waits for a result; written without the product's own code."""
    import keras

    backend = keras.backend.backend()
    exact = precision == Precision.FLOAT32 and not tf32
    if backend == "jax":
        import jax

        variables = jax.device_put(
            ([one.value for one in model.trainable_variables], [one.value for one in model.non_trainable_variables])
        )
        compiled = jax.jit(lambda variables, images: model.stateless_call(*variables, images, training=False)[0])

        def call(images: Any) -> Any:
            with jax.default_matmul_precision("highest" if exact else "default"):
                return compiled(variables, images)

        return call, jax.block_until_ready
    if backend == "torch":
        import torch

        def call_torch(images: Any) -> Any:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
            with torch.inference_mode():
                return model(images, training=False)

        return call_torch, lambda result: result.cpu()
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(enabled=not exact)
    return tf.function(lambda images: model(images, training=False)), np.asarray


def on_device(images: np.ndarray) -> Any:
    """The batch in the device's memory."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.device_put(images)
    if backend == "torch":
        import torch

        return torch.from_numpy(images).to("cuda" if has_gpu() else "cpu")
    import tensorflow as tf

    return tf.constant(images)


def rate(call: Callable[[Any], Any], wait: Callable[[Any], Any], images: Any, seconds: float = 1.0) -> list[float]:
    """Images/s, `ROUNDS` times; calls are handed to the device without waiting for each."""
    wait(call(images))
    wait(call(images))  # not the first, which compiles
    started = time.perf_counter()
    wait(call(images))
    calls = max(1, math.ceil(seconds / (time.perf_counter() - started)))
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            result = call(images)
        wait(result)
        rates.append(calls * len(images) / (time.perf_counter() - started))
    return rates


def operations(model: Any) -> float:
    """Floating-point operations for one image, in units of 10^9."""
    import keras

    total = 0
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D | keras.layers.Dense):
            kernel = math.prod(layer.kernel.shape)
            places = math.prod(layer.output.shape[1:-1])  # 1 of a dense layer on vectors
            total += 2 * kernel * places
    return total / 1e9


def memory_gb() -> float | None:
    """The most device memory that this process had in use, in GB; None where the backend does not say."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        stats = jax.devices()[0].memory_stats()
        return round(float(stats["peak_bytes_in_use"]) / 1e9, 2) if stats else None
    if keras.backend.backend() == "torch" and has_gpu():
        import torch

        return round(float(torch.cuda.max_memory_allocated()) / 1e9, 2)
    return None


def programs(embed: CompiledModel) -> int | None:
    """How many the backend compiled; None where it does not say."""
    program = getattr(embed._call, "_program", None)
    return None if program is None else program._cache_size()


# ---- in processes of their own


CPU_VECTORS = """
import sys, numpy as np
from transforms.models.staged import read_staged
np.savez(sys.argv[3], **read_staged(sys.argv[1]).load_keras().embed(np.load(sys.argv[2])))
"""

OUT_OF_MEMORY = "from benchmarks import gpu_bare; gpu_bare.embed_too_many()"


def in_process(code: str, *arguments: str, **variables: str) -> str:
    """Run Python code in a process of its own; returns what it prints.

    Raises:
        RuntimeError: with the end of its stderr, where it fails.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def parity(folder: str, images: np.ndarray, vectors: np.ndarray, scratch: Path) -> dict[str, float]:
    """The device's vectors of a precision against the CPU's float32 ones."""
    pixels, found = scratch / "pixels.npy", scratch / f"{Path(folder).name}.npz"
    if not found.exists():
        np.save(pixels, images)
        in_process(CPU_VECTORS, folder, str(pixels), str(found), CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    right = np.load(found)["embedding"]
    cosine = (vectors * right).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(right, axis=1)
    return {
        "relative_error": float(np.linalg.norm(vectors - right) / np.linalg.norm(right)),
        "lowest_cosine": float(cosine.min()),
    }


def out_of_memory(folder: str) -> dict[str, Any]:
    """Embed a batch for which a share of the device's memory does not do.

    Returns:
        Whether batches were halved, the warnings of it, and the relative difference to batches of 8.
    """
    output = in_process(OUT_OF_MEMORY, folder, XLA_PYTHON_CLIENT_MEM_FRACTION=str(MEMORY_SHARE))
    warnings = [line for line in output.splitlines() if HALVED in line]
    difference = re.search(r"^relative difference (\S+)$", output, re.MULTILINE)
    return {
        "halved": bool(warnings),
        "warnings": warnings,
        "relative_difference": float(difference[1]) if difference else None,
    }


def embed_too_many() -> None:
    """What the process of `out_of_memory` does with the staged model whose folder is its argument."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
    if backend_name() == "torch":
        import torch

        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE)
    embedder = _staged(sys.argv[1]).load_keras()
    images = np.random.default_rng(0).integers(0, 256, (TOO_MANY, SIZE, SIZE, 3), np.uint8)
    few = np.concatenate([embedder.embed(images[start : start + 8])["embedding"] for start in (0, TOO_MANY - 8)])
    vectors = embedder.embed(images)["embedding"]
    ends = np.concatenate([vectors[:8], vectors[-8:]])
    print("relative difference", np.linalg.norm(ends - few) / np.linalg.norm(few))
