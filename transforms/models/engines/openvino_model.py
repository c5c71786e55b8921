"""Convert an embedder to OpenVINO, stage it as two files, and load it without Keras."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.core import installed
from transforms.core.batching import MODEL_CALLS, available_cores
from transforms.core.digests import file_sha256, joint_sha256
from transforms.core.errors import ImagebeamError, last_line
from transforms.core.spec import EmbedderSpec, Precision

if TYPE_CHECKING:
    import openvino

    from transforms.models.embedder import Embedder

FILES = GRAPH_FILE, NUMBERS_FILE = "embedder.xml", "embedder.bin"
"""OpenVINO's two files of a model: the operations, and what they compute with."""

_HINTS = {Precision.BFLOAT16: "bf16"}
"""What OpenVINO is to compute in, by precision; in float32 otherwise, and in int8 where the graph says so."""

_PIXELS = 8 * 224 * 224
"""Pixels of one inference at most, or one image: more are no faster on a CPU, and take more memory."""

REMEDY = "Install the extra: pip install 'imagebeam[openvino]'"

_FLAGS = frozenset({"avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})


def is_installed() -> bool:
    """Whether the packages of the extra `openvino` are there."""
    return installed.is_installed("openvino", "nncf")


def why_missing() -> str | None:
    """Why OpenVINO cannot be used here, in words; None where it can. It is imported to find out."""
    if not is_installed():
        return "it is not installed"
    try:
        import_openvino()
    except Exception as error:  # ImportError, or what its libraries raise
        return f"it cannot be imported: {last_line(error)}"
    return None


def import_openvino() -> Any:
    """The package, which otherwise sends a report of its use over the network when it is imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # An import of it fails, and it has a stub.
    import openvino

    return openvino


def cpu_capabilities() -> frozenset[str]:
    """What this processor computes natively: OpenVINO's names ("FP32", "BF16", "INT8") and `processor_flags`."""
    return frozenset(import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")) | processor_flags()


def processor_flags() -> frozenset[str]:
    """Of Linux' flags of this processor, those that decide how fast a precision is; empty elsewhere."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return _FLAGS & set(next(line for line in lines if line.startswith("flags")).split())
    return frozenset()


_converting = threading.RLock()


@contextlib.contextmanager
def converter() -> Iterator[Any]:
    """OpenVINO, fit to convert a TensorFlow graph inside the block, which one thread at a time enters.

    OpenVINO 2026.4 asks for TensorFlow's version by `exec("del tensorflow")` in a function, where Python 3.13 no longer
    finds what another `exec` defined (PEP 667). While it converts, the root logger is at ERROR: a conversion that fails
    leaves it there, and of two at once the second would put back what the first had set.
    """
    openvino = import_openvino()
    import tensorflow as tf
    from openvino.frontend.tensorflow import utils

    def answer(framework: str) -> dict[str, str]:
        del framework
        version = ".".join(map(str, sys.version_info[:3]))
        return {"python_version": version, "tensorflow": tf.__version__, "sys_platform": sys.platform}

    with _converting:
        asked = getattr(utils, "get_environment_setup", None)
        root = logging.getLogger()
        level, filters, handlers = root.level, root.filters[:], root.handlers[:]
        if asked is not None and tuple(sys.version_info) >= (3, 13):
            utils.get_environment_setup = answer
        try:
            yield openvino
        finally:
            root.setLevel(level)
            root.filters[:], root.handlers[:] = filters, handlers
            if asked is not None:
                utils.get_environment_setup = asked


def runs(precision: Precision) -> bool:
    """Whether OpenVINO computes in a precision on this processor; what it lacks it does in float32, silently."""
    if precision == Precision.BFLOAT16:
        return "BF16" in cpu_capabilities()
    return precision in (Precision.FLOAT32, Precision.INT8)


def convert(embedder: Embedder) -> openvino.Model:
    """The embedder's graph for OpenVINO: uint8 RGB [n, height, width, 3] -> its columns, in their order.

    Args:
        embedder: at float32.

    Raises:
        Exception: whatever TensorFlow or OpenVINO raises for a model that it cannot trace or convert.
    """
    import tensorflow as tf

    height, width = embedder.spec.image_size or (None, None)
    names = list(embedder.dimensions)

    def call(images: Any) -> list[Any]:
        vectors = embedder.model(images, training=False)
        return [vectors[name] for name in names] if isinstance(vectors, dict) else [vectors]

    signature = [tf.TensorSpec((None, height, width, 3), tf.uint8, name="image")]
    traced = tf.function(call, input_signature=signature).get_concrete_function()
    with converter() as openvino:
        found = openvino.convert_model(traced)
    # Swish is TensorFlow's IdentityN, whose outputs that nobody takes become outputs of the model.
    outputs = [next(one for one in found.outputs if traced_as.name in one.get_names()) for traced_as in traced.outputs]
    model = openvino.Model([output.get_node() for output in outputs], found.get_parameters(), "embedder")
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return model


def save(model: openvino.Model, folder: Path) -> None:
    """Write a model's two files; the numbers stay as they are."""
    import_openvino().save_model(model, folder / GRAPH_FILE, compress_to_fp16=False)


def digest(model: openvino.Model) -> str:
    """SHA-256 of a model's graph and numbers, as `save` writes them; 64 hex digits."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        return joint_sha256([file_sha256(Path(folder) / name) for name in (GRAPH_FILE, NUMBERS_FILE)])


class OpenVinoEmbedder:
    """An embedder that OpenVINO runs on the CPU; safe to call from several threads.

    Attributes:
        spec: what the numbers are a function of.
        dimensions: embedding column name -> vector length.
    """

    def __init__(self, spec: EmbedderSpec, dimensions: Mapping[str, int], model: openvino.Model | Path) -> None:
        """Compile a model.

        Args:
            spec: of the embedder.
            dimensions: of its columns.
            model: what `convert` or `int8.quantize` gave, or the path of its GRAPH_FILE.

        Raises:
            RuntimeError: OpenVINO's own, for a model that it cannot compile.
        """
        self.spec = spec
        self.dimensions = dict(dimensions)
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS.get(spec.precision, "f32"),
            "NUM_STREAMS": MODEL_CALLS,  # as many batches are with the model at once
            "INFERENCE_NUM_THREADS": available_cores(),
            "ENABLE_CPU_PINNING": False,  # Several processes would share the same cores.
        }
        self._compiled = import_openvino().Core().compile_model(model, "CPU", settings)
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(MODEL_CALLS, "openvino")
        for _ in range(MODEL_CALLS):
            self._requests.put(self._compiled.create_infer_request())

    def embed(self, images: np.ndarray, **arguments: Any) -> dict[str, np.ndarray]:
        """Embed one batch: uint8 [n, height, width, 3] -> column name -> float32 [n, dimension].

        A batch of more pixels than one inference takes is inferred in parts, two at a time, so that the last batch of a
        run uses all cores, too.

        Raises:
            ImagebeamError: for arguments of the Keras model's call, which there is none of here.
        """
        if arguments:
            raise ImagebeamError(
                f"A model on OpenVINO takes no arguments. Received: {', '.join(sorted(arguments))}. Stage the model "
                "with --engine keras."
            )
        images = np.ascontiguousarray(images)
        at_once = max(1, _PIXELS // (images.shape[1] * images.shape[2]))
        parts = [images[start : start + at_once] for start in range(0, len(images), at_once)]
        vectors = zip(*self._pool.map(self._infer, parts), strict=True)
        return dict(zip(self.dimensions, map(np.concatenate, vectors), strict=True))

    def _infer(self, images: np.ndarray) -> list[np.ndarray]:
        request = self._requests.get()
        try:
            found = request.infer([images], share_inputs=True)
            return [np.array(found[index]) for index in range(len(self.dimensions))]
        finally:
            self._requests.put(request)
