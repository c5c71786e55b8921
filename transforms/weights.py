"""Weights into a backbone: from Keras, from a seed, or from a file; checked by name and shape, never executed."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transforms import storage
from transforms.errors import ImagebeamError
from transforms.frameworks import import_keras
from transforms.models import Architecture

if TYPE_CHECKING:
    import keras

FILE_FORMATS = (".weights.h5", ".h5", ".npz", ".onnx")

_ONNX_CONVOLUTION = re.compile(r"(block\d_conv\d)(?:_\d+)?/")


def is_file(weights: str) -> bool:
    """Whether a `--weights` value names a file rather than imagenet, none or random:SEED.

    Raises:
        ImagebeamError: for a value that is none of these.
    """
    if weights in ("imagenet", "none") or re.fullmatch(r"random:\d+", weights):
        return False
    if weights.endswith(FILE_FORMATS):
        return True
    raise ImagebeamError(
        f"Weights are 'imagenet', 'none', 'random:SEED' (SEED a whole number), or a file ending in "
        f"{', '.join(FILE_FORMATS)}. Received: weights={weights!r}."
    )


def load_backbone(
    architecture: Architecture, weights: str, image_size: tuple[int, int] | None, *, include_top: bool = False
) -> keras.Model:
    """Build the float32 backbone and fill it.

    Args:
        architecture: which model.
        weights: "imagenet", "none" (random, another each time), "random:SEED", or a local path or URL of a file.
        image_size: (height, width) in pixels, or None for any size.
        include_top: with the ImageNet classifier's layers.

    Raises:
        ImagebeamError: if the weights cannot be had, or do not fit the architecture.
    """
    import_keras()
    import keras

    if is_file(weights):
        model = architecture.build(image_size, include_top=include_top)
        try:
            with storage.local_file(weights) as path:
                _load_file(model, path, weights)
        except OSError as error:
            raise ImagebeamError(f"The weights file cannot be read: {error}. Received: weights={weights!r}.") from error
        return model
    if weights == "imagenet":
        try:
            return architecture.build(image_size, include_top=include_top, weights="imagenet")
        except ImagebeamError:
            raise
        except Exception as error:  # Keras lets whatever its downloader raises through
            raise ImagebeamError(
                f"Keras could not load the ImageNet weights of {architecture.name}: {error}. Check the network, or "
                f"put the file into Keras' cache (~/.keras/models), or pass --weights FILE."
            ) from error
    seed = secrets.randbelow(2**31) if weights == "none" else int(weights.removeprefix("random:"))
    keras.utils.set_random_seed(seed)
    return architecture.build(image_size, include_top=include_top)


def digest(model: keras.Model) -> str:
    """SHA-256 over the weight values, in the model's order: the same numbers in any file format have one digest."""
    import keras

    sha256 = hashlib.sha256()
    for variable in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        sha256.update(f"{value.dtype.str}{value.shape}".encode())
        sha256.update(value.data)
    return sha256.hexdigest()


def _load_file(model: keras.Model, path: Path, source: str) -> None:
    """Fill `model` from a weights file, by its format. `source` is the name the user knows it by."""
    name = path.name
    if name.endswith(".npz"):
        with np.load(path, allow_pickle=False) as arrays:
            _assign(model, {key: arrays[key] for key in arrays.files}, source)
    elif name.endswith(".onnx"):
        _assign(model, dict(_onnx_arrays(path, source)), source)
    else:
        if not name.endswith(".weights.h5"):
            _refuse_full_model(path, source)
        try:
            model.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            detail = str(error).strip().splitlines()[0]
            raise ImagebeamError(
                f"The weights do not fit {model.name}: {detail} Received: weights={source!r}. They must be of the same "
                f"architecture, without the top unless a layer of the top is asked for."
            ) from error


def _refuse_full_model(path: Path, source: str) -> None:
    """A legacy .h5 may hold a whole model, whose loading can run code; only weights are taken."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            attributes = set(file.attrs)
    except OSError as error:
        raise ImagebeamError(f"Not an HDF5 file: {error}. Received: weights={source!r}.") from error
    if "model_config" in attributes or "layer_names" not in attributes:
        why = "it holds a whole model" if "model_config" in attributes else "it names no layers"
        raise ImagebeamError(
            f"The file is not weights only: {why}. "
            f"Received: weights={source!r}. Save the weights with model.save_weights('x.weights.h5')."
        )


def _onnx_arrays(path: Path, source: str) -> Iterable[tuple[str, np.ndarray]]:
    """VGG convolutions among an ONNX graph's initializers, as ("block1_conv1/kernel", [height, width, in, out])."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ImagebeamError(
            f"Reading ONNX weights needs the onnx package: pip install 'imagebeam[onnx]'. Received: weights={source!r}."
        ) from error
    for initializer in onnx.load(str(path)).graph.initializer:
        match = _ONNX_CONVOLUTION.search(initializer.name)
        if match is None:
            continue
        array = numpy_helper.to_array(initializer)
        if array.ndim == 4:  # ONNX keeps [out, in, height, width]
            yield f"{match[1]}/kernel", array.transpose(2, 3, 1, 0)
        else:
            yield f"{match[1]}/bias", array.reshape(-1)


def _assign(model: keras.Model, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Give every weight of `model` the array named "layer/weight", all of them or none."""
    wanted = {variable.path.removeprefix(f"{model.name}/"): variable for variable in model.weights}
    if missing := [name for name in wanted if name not in arrays]:
        raise ImagebeamError(
            f"The weights do not fit {model.name}: {len(missing)} of {len(wanted)} arrays are missing, the first is "
            f"{missing[0]!r}; the file has {', '.join(sorted(arrays)[:5]) or 'none that could be'}... "
            f"Received: weights={source!r}."
        )
    for name, variable in wanted.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise ImagebeamError(
                f"The weights do not fit {model.name}: {name} has shape {arrays[name].shape}, not "
                f"{tuple(variable.shape)}. Received: weights={source!r}."
            )
    for name, variable in wanted.items():
        variable.assign(arrays[name])
