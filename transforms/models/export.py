"""Export a Keras model to other runtimes with `model.export`, and run the exported file."""

from __future__ import annotations

import contextlib
import enum
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.core import installed
from transforms.core.errors import ImagebeamError, first_line, last_line
from transforms.models.engines.openvino_model import converter, import_openvino
from transforms.models.keras_import import chosen_backend, pinned_keras
from transforms.models.own_model import call

if TYPE_CHECKING:
    import keras

Runner = Callable[[np.ndarray], list[np.ndarray]]
"""A batch -> outputs, in the order of their names; float32 [n, ...] each."""


class ExportFormat(enum.StrEnum):
    """What a model can be exported as."""

    SAVED_MODEL = "saved_model"
    """A folder that TensorFlow and TensorFlow Serving load."""
    TFLITE = "tflite"
    ONNX = "onnx"
    OPENVINO = "openvino"
    """Two files, .xml and .bin, side by side."""

    @property
    def ending(self) -> str:
        """What the name of the file ends with; empty for a folder."""
        return {"tflite": ".tflite", "onnx": ".onnx", "openvino": ".xml"}.get(self.value, "")


_KERAS_NAMES = {
    ExportFormat.SAVED_MODEL: "tf_saved_model",
    ExportFormat.TFLITE: "litert",
    ExportFormat.ONNX: "onnx",
    ExportFormat.OPENVINO: "openvino",
}

_ONNX_CONVERTERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
"""Keras' backend -> the package with which Keras writes ONNX."""


def check_packages(format: ExportFormat) -> None:  # noqa: A002 - Keras' own name
    """Refuse a format whose packages are not installed. Does not import Keras.

    Raises:
        ImagebeamError: naming the packages and how they are installed.
    """
    backend = chosen_backend()
    if format == ExportFormat.TFLITE and backend == "jax":
        raise ImagebeamError(
            "Keras writes tflite on TensorFlow and PyTorch, not on JAX. Run with KERAS_BACKEND=tensorflow."
        )
    needed = {
        ExportFormat.SAVED_MODEL: ["tensorflow"],
        ExportFormat.TFLITE: ["tensorflow"],
        ExportFormat.ONNX: [_ONNX_CONVERTERS[backend], "onnxruntime"],
        ExportFormat.OPENVINO: ["openvino", *(["tensorflow"] if backend == "jax" else [])],
    }[format]
    if missing := installed.missing(*needed):
        verb, wanted = "is" if len(missing) == 1 else "are", " ".join(missing)
        if missing == ["openvino"]:
            wanted = "'imagebeam[openvino]'"
        raise ImagebeamError(
            f"--format {format} needs {' and '.join(missing)}, which {verb} not installed: pip install {wanted}"
        )


def export(model: keras.Model, format: ExportFormat, path: Path, example: np.ndarray) -> None:  # noqa: A002
    """Write a model.

    Args:
        model: with its weights; it is called for inference.
        format: what to write.
        path: local; a file whose name ends as the format's do, or a folder.
        example: a batch; for ONNX Keras wants the model to have been called.

    Raises:
        ImagebeamError: if the model cannot be converted.
    """
    try:
        with pinned_keras(), _quiet(), converter() if format == ExportFormat.OPENVINO else contextlib.nullcontext():
            call(model, example)
            model.export(str(path), format=_KERAS_NAMES[format], verbose=False)
    except Exception as error:  # of as many kinds as there are converters
        raise ImagebeamError(f"{model.name} cannot be exported as {format}: {first_line(error)} {_REMEDY}") from error


_REMEDY = "Choose another --format."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the output and warnings of converters."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def open_exported(format: ExportFormat, path: Path) -> Runner:  # noqa: A002
    """Load what `export` wrote, with the runtime that it is for.

    Raises:
        ImagebeamError: if that cannot load it.
    """
    openers: dict[ExportFormat, Callable[[Path], Runner]] = {
        ExportFormat.SAVED_MODEL: _open_saved_model,
        ExportFormat.TFLITE: _open_tflite,
        ExportFormat.ONNX: _open_onnx,
        ExportFormat.OPENVINO: _open_openvino,
    }
    try:
        with _quiet():
            return openers[format](path)
    except Exception as error:  # of as many kinds as there are runtimes
        raise ImagebeamError(f"{format} does not load what was exported: {last_line(error)} {_REMEDY}") from error


def _open_saved_model(path: Path) -> Runner:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    # The signature takes its one input by name, whatever structure the Keras model has it in.
    (argument,) = loaded.signatures["serving_default"].structured_input_signature[1]

    def run(batch: np.ndarray) -> list[np.ndarray]:
        signature = loaded.signatures["serving_default"]  # which does not keep the weights alone
        return _outputs(signature(**{argument: tf.convert_to_tensor(batch)}))

    return run


def _open_tflite(path: Path) -> Runner:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    ((name, signature),) = interpreter.get_signature_list().items()
    (argument,) = signature["inputs"]
    run = interpreter.get_signature_runner(name)
    return lambda batch: _outputs(run(**{argument: batch}))


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    return lambda batch: session.run(None, {argument.name: batch})


def _open_openvino(path: Path) -> Runner:
    openvino = import_openvino()
    # float32 also where the processor would rather compute in bfloat16: whether the file is right is asked here.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: [np.asarray(output) for output in compiled(batch).values()]


def _outputs(outputs: Any) -> list[np.ndarray]:
    if isinstance(outputs, dict):
        numbered = [f"output_{number}" for number in range(len(outputs))]  # as Keras calls those of a list
        names = numbered if outputs.keys() == set(numbered) else sorted(outputs)
        return [np.asarray(outputs[name]) for name in names]
    return [np.asarray(output) for output in (outputs if isinstance(outputs, list | tuple) else [outputs])]


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with the Keras model.

    Attributes:
        rows: compared.
        difference: the largest between two outputs of one row.
        scale: the largest output of the Keras model, without its sign.
    """

    rows: int
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference as a share of the scale; infinite where either model gives something that is no number."""
        share = self.difference / self.scale if self.scale else self.difference
        return share if np.isfinite(share) else np.inf


def compare(model: keras.Model, runner: Runner, batches: Sequence[np.ndarray]) -> Agreement:
    """Run both on the same rows.

    Args:
        model: the Keras model.
        runner: of what was exported.
        batches: uint8 images [n, height, width, 3] or float32 vectors [n, dimension]; of more than one size, since an
            export may fix it.

    Raises:
        ImagebeamError: if the exported model does not take a batch, or has outputs of other shapes.
    """
    import keras

    difference = scale = 0.0
    for batch in batches:
        expected = _outputs(model.predict_on_batch(keras.tree.pack_sequence_as(model.input, [batch])))
        try:
            found = runner(batch)
        except Exception as error:  # of as many kinds as there are runtimes
            raise ImagebeamError(
                f"What was exported does not take a batch of shape {batch.shape}: {first_line(error)} {_REMEDY}"
            ) from error
        shapes = [[output.shape for output in outputs] for outputs in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ImagebeamError(
                f"What was exported gives shapes {shapes[1]}, and the Keras model {shapes[0]}. {_REMEDY}"
            )
        for one, other in zip(expected, found, strict=True):
            values = np.asarray(one, np.float64)  # Truth values have no difference.
            apart = np.abs(values - np.asarray(other, np.float64)).max()
            difference = float(np.maximum(difference, apart))  # which NaN goes through, unlike max()
            scale = float(np.maximum(scale, np.abs(values).max()))
    return Agreement(sum(map(len, batches)), difference, scale)
