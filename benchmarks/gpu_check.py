"""What a GPU gives: bare and end-to-end rates, share of its peak, parity with a CPU, memory, tails, too large batches.

    KERAS_BACKEND=jax python -m benchmarks.gpu_check [--models VGG16 ResNet50 MobileNetV2] [--limit_s 500]

It runs on any of Keras' backends, with TensorFlow installed or not, and on a CPU in small form (`--images 64`). Every
figure is written as soon as it is known, and what the time limit leaves out is named.

* bare: the Keras model alone on one uint8 batch that lies on the device, as many calls as fit in a second.
* decode: reading, decoding and resizing the JPEGs in one process on all cores, with a model that costs nothing; its
  ceiling: decoding and resizing alone, in as many processes as there are cores.
* extract: JPEG files in, Parquet out, in one and in several processes, from each process's first part to the last.
* peak: of a bfloat16 matrix product of 8192 x 8192 x 8192 in this run. Operations of a model are two for each
  multiplication of its convolutions and dense layers.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import publish, write_jpegs
from transforms.core.batching import available_cores
from transforms.core.spec import Precision
from transforms.models.config import EmbedderConfig
from transforms.models.engines.compiled import CompiledModel, has_gpu
from transforms.models.keras_import import import_keras
from transforms.models.staged import read_staged, stage_model

SIZE = 224
PARITY_IMAGES = 16
DIFFERENT_JPEGS = 1024
ROUNDS = 5


class Clock:
    """Says when the time is over."""

    def __init__(self, limit: float) -> None:
        self._end = time.perf_counter() + limit
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float = 20.0) -> bool:
        """Whether there are `seconds` left; notes what is left out."""
        if time.perf_counter() + seconds < self._end:
            return True
        self.left_out.append(what)
        return False


# ---- the bare model, on each backend


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

        return torch.from_numpy(images).to("cuda" if torch.cuda.is_available() else "cpu")
    import tensorflow as tf

    return tf.constant(images)


def rate(call: Callable[[Any], Any], wait: Callable[[Any], Any], images: Any, seconds: float = 1.0) -> list[float]:
    """Images/s, `ROUNDS` times; calls are handed to the device without waiting for each."""
    started = time.perf_counter()
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


def device_name() -> str:
    """The GPU's name, or CPU."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return "CPU" if device.platform == "cpu" else str(device.device_kind)
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return str(tf.config.experimental.get_device_details(devices[0])["device_name"]) if devices else "CPU"


def memory_gb() -> float | None:
    """The most device memory that was in use, in GB; None where the backend does not say."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        stats = jax.devices()[0].memory_stats()
        return round(stats["peak_bytes_in_use"] / 1e9, 2) if stats else None
    if keras.backend.backend() == "torch":
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None
    return None


# ---- parity, tails, memory


CPU_VECTORS = """
import sys, numpy as np
from transforms.models.staged import read_staged
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **read_staged(sys.argv[1]).load().embed(images))
"""

OUT_OF_MEMORY = """
import os, sys, logging, numpy as np
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
if os.environ["KERAS_BACKEND"] == "torch":
    import torch
    torch.cuda.set_per_process_memory_fraction(float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]))
from transforms.models.staged import read_staged
embedder = read_staged(sys.argv[1]).load()
images = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), 224, 224, 3), np.uint8)
vectors = embedder.embed(images)["embedding"]
few = np.concatenate([embedder.embed(images[start:start + 8])["embedding"] for start in (0, len(images) - 8)])
ends = np.concatenate([vectors[:8], vectors[-8:]])
print("relative difference", np.linalg.norm(ends - few) / np.linalg.norm(few))
"""


def in_process(code: str, *arguments: str, **variables: str) -> str:
    """Run Python code in a process of its own; returns what it prints."""
    import keras

    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), "TF_CPP_MIN_LOG_LEVEL": "2", **variables}
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


def programs(embed: CompiledModel) -> int | None:
    """How many the backend compiled; None where it does not say."""
    program = getattr(embed._call, "_program", None)
    return None if program is None else program._cache_size()


# ---- extract


def decode_rate(jpegs: Path, images: int) -> float:
    """Images/s of a unit's way to the model, with a model that costs nothing."""
    from benchmarks.decode_ceiling import Nothing
    from transforms.embed.embed_units import EmbedOptions, embed_records
    from transforms.images.decode import ImageOptions
    from transforms.inputs.plan import plan
    from transforms.readers.options import ReadOptions
    from transforms.readers.read import open_records

    unit = next(iter(plan([str(jpegs)], None, images)))
    options = EmbedOptions(ImageOptions(image_size=(SIZE, SIZE)), 128)
    started = time.perf_counter()
    embed_records(open_records(unit, ReadOptions()), Nothing(), options)  # type: ignore[arg-type]
    return images / (time.perf_counter() - started)


def decode_ceiling(jpegs: Path) -> float:
    """Images/s of decoding and resizing in as many processes as there are cores."""
    import multiprocessing

    pieces = [[str(path) for path in sorted(jpegs.glob("*/*.jpg"))[:DIFFERENT_JPEGS]]] * available_cores()
    with multiprocessing.get_context("spawn").Pool(available_cores()) as pool:
        pool.map(_decode_all, [piece[:8] for piece in pieces])
        started = time.perf_counter()
        pool.map(_decode_all, pieces, chunksize=1)
        return sum(map(len, pieces)) / (time.perf_counter() - started)


def _decode_all(paths: list[str]) -> None:
    from transforms.images.decode import ImageOptions, decode_image

    for path in paths:
        decode_image(Path(path).read_bytes(), ImageOptions(image_size=(SIZE, SIZE)))


def extract_rate(jpegs: Path, model: str, precision: Precision, batch_size: int, output: Path, workers: int) -> float:
    """Images/s of `imagebeam extract` in a process of its own, from the first part to the last."""
    command = [sys.executable, "-m", "pipelines", "extract", "--input", f"{jpegs}/*/*.jpg", "--output", str(output)]
    flags = {"model": model, "weights": "random:0", "precision": precision, "batch_size": batch_size}
    command += [f"--{name}={value}" for name, value in flags.items()]
    command += ["--rows_per_unit=1024", "--overwrite"]
    if workers > 1:
        command += [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout).splitlines()[-1])
    parts = sorted(path.stat().st_mtime for path in (output / "embeddings").iterdir())
    return (len(parts) - workers) * 1024 / (parts[-1] - parts[workers - 1])


def link_copies(jpegs: Path, count: int) -> None:
    """`count` files in all; further names of those that are there."""
    files = sorted(jpegs.glob("*/*.jpg"))
    for number, path in zip(range(len(files), count), itertools.cycle(files), strict=False):
        os.link(path, path.with_name(f"{number:06d}-{path.name}"))


# ---- all of it


def measure(
    name: str, args: argparse.Namespace, jpegs: Path, scratch: Path, clock: Clock, peak: float
) -> Iterator[Any]:
    """(label, figures) for each precision of a model."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (PARITY_IMAGES, SIZE, SIZE, 3), np.uint8)
    reference = str(scratch / f"{name}-float32")
    stage_model(EmbedderConfig(name, "random:0", image_size=(SIZE, SIZE)), reference)
    batch_size = args.batch_size if has_gpu() else 8
    batch = rng.integers(0, 256, (batch_size, SIZE, SIZE, 3), np.uint8)
    for precision in args.precision:
        if not clock.allows(f"{name} {precision}", 40):
            continue
        folder = str(scratch / f"{name}-{precision}")
        stage_model(EmbedderConfig(name, "random:0", image_size=(SIZE, SIZE), precision=precision), folder)
        staged = read_staged(folder)
        assert staged is not None
        embedder = staged.load_keras()
        figures: dict[str, Any] = {"batch_size": batch_size}
        call, wait = bare_call(embedder.model, precision)
        started = time.perf_counter()
        wait(call(on_device(batch)))
        figures["compile_s"] = time.perf_counter() - started
        figures["bare_images_s"] = rate(call, wait, on_device(batch))
        bare = statistics.median(figures["bare_images_s"])
        figures["tflops"] = bare * operations(embedder.model) / 1e3
        figures["share_of_matmul_peak"] = figures["tflops"] / peak
        if precision == Precision.FLOAT32 and has_gpu():
            loose = statistics.median(rate(*bare_call(embedder.model, precision, tf32=True), on_device(batch)))
            figures["bare_tf32_images_s"] = loose
        vectors = embedder.embed(few)["embedding"]
        figures["parity"] = parity(reference, few, vectors, scratch)
        embedder.embed(batch)
        before = programs(embedder._call)
        for count in (1, batch_size - 1, batch_size // 2 + 1):
            tail = embedder.embed(batch[:count])["embedding"]
            assert tail.shape[0] == count
        figures["programs_for_tails"] = None if before is None else programs(embedder._call) - before  # type: ignore[operator]
        yield f"{name} {precision}", figures
        del embedder, call
        if clock.allows(f"{name} {precision} extract", 40):
            output = scratch / "out"
            for workers in args.local_workers:
                try:
                    rate_found = extract_rate(jpegs, name, precision, batch_size, output, workers)
                except RuntimeError as error:  # such as no memory for so many processes
                    clock.left_out.append(f"{name} {precision} extract in {workers} processes: {error}")
                else:
                    figures[f"extract_{workers}_images_s"] = rate_found
        figures["device_memory_gb"] = memory_gb()
        yield f"{name} {precision}", figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["VGG16", "ResNet50", "MobileNetV2"])
    parser.add_argument(
        "--precision",
        type=Precision,
        nargs="+",
        default=[Precision.BFLOAT16, Precision.FLOAT32, Precision.FLOAT16],
    )
    parser.add_argument("--images", type=int, default=32_768, help="files that extract reads")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--local_workers", type=int, nargs="+", default=[1, 8], help="processes that extract runs in")
    parser.add_argument("--limit_s", type=float, default=540.0, help="no measurement begins that would end later")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    clock = Clock(args.limit_s)
    import_keras()
    import keras

    figures: dict[str, Any] = {"backend": keras.backend.backend(), "device": device_name(), "cores": available_cores()}
    rows = [(f"{figures['device']}, {figures['backend']}", "bare | share of peak | extract | over bare | cosine")]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        jpegs = scratch / "jpegs"
        write_jpegs(jpegs, min(args.images, DIFFERENT_JPEGS))
        link_copies(jpegs, args.images)
        figures["peak_tflops"] = peak_tflops()
        few = min(args.images, 4096)
        decode_rate(jpegs, few)
        figures["decode_images_s"] = [decode_rate(jpegs, few) for _ in range(3)]
        figures["decode_ceiling_images_s"] = decode_ceiling(jpegs)
        print({**figures}, flush=True)
        for name in args.models:
            for label, found in measure(name, args, jpegs, scratch, clock, figures["peak_tflops"]):
                figures[label] = found
                print(label, found, flush=True)
        if has_gpu() and clock.allows("out of memory", 60):
            figures["out_of_memory"] = in_process(
                OUT_OF_MEMORY, str(scratch / f"{args.models[0]}-float32"), "1024", XLA_PYTHON_CLIENT_MEM_FRACTION="0.05"
            )
            print(figures["out_of_memory"], flush=True)
    figures["left_out"] = clock.left_out
    for label, found in figures.items():
        if not isinstance(found, dict):
            continue
        bare = statistics.median(found["bare_images_s"])
        extract = max(found.get(f"extract_{workers}_images_s", math.nan) for workers in args.local_workers)
        share, cosine = found["share_of_matmul_peak"], found["parity"]["lowest_cosine"]
        rows.append((label, f"{bare:9.1f} | {share:6.1%} | {extract:8.1f} | {extract / bare:5.2f} | {cosine:.7f}"))
    rows.append(("decode alone, images/s", f"{statistics.median(figures['decode_images_s']):9.1f}"))
    rows.append(("its ceiling", f"{figures['decode_ceiling_images_s']:9.1f}"))
    rows.append(("matrix product, TFLOP/s", f"{figures['peak_tflops']:9.1f}"))
    publish(f"gpu_check_{figures['backend']}", figures, rows)


if __name__ == "__main__":
    main()
