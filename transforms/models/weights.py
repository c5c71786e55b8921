"""Weights into a backbone: from Keras, from a seed, or from a file; checked by name and shape, never executed."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import secrets
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.models.architectures import Architecture
from transforms.models.keras_import import import_keras

if TYPE_CHECKING:
    import h5py
    import keras

FILE_FORMATS = (".weights.h5", ".h5", ".npz", ".onnx")

_REMEDY = "They must be of the same architecture, without the top unless a layer of the top is asked for."

_SEEDING = threading.Lock()

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
    with _seeded(seed):
        return architecture.build(image_size, include_top=include_top)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Layers made inside have the weights that `keras.utils.set_random_seed(seed)` would give them.

    That function seeds Python's `random`, from which Keras draws a seed for every initializer; but so do other threads
    draw from it meanwhile (client libraries for their back-off), and the weights of a seed, and so the fingerprint,
    would be others now and then.
    """
    from keras.src.random import seed_generator

    with _SEEDING:
        shared = seed_generator.python_random
        seed_generator.python_random = random.Random(seed)
        try:
            yield
        finally:
            seed_generator.python_random = shared


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
    if path.name.endswith(".npz"):
        _assign(model, _npz_arrays(path, source), source)
    elif path.name.endswith(".onnx"):
        _assign(model, _onnx_arrays(path, source), source)
    else:
        _load_hdf5(model, path, source)


def _load_hdf5(model: keras.Model, path: Path, source: str) -> None:
    """What Keras reads itself, as far as it holds weights alone, and those of this model alone."""
    if path.name.endswith(".weights.h5"):
        _refuse_other_count(model, path, source)
    else:
        _refuse_full_model(path, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras warns, and goes on, where a file lacks some of the weights
            model.load_weights(path)
    except (ValueError, OSError, KeyError, Warning) as error:
        raise ImagebeamError(
            f"The weights do not fit {model.name}: {_first_line(error)} Received: weights={source!r}. {_REMEDY}"
        ) from error


def _refuse_other_count(model: keras.Model, path: Path, source: str) -> None:
    """Keras finds weights by their place, and would take those of a deeper model as far as the shapes agree."""
    import h5py

    names: list[str] = []
    with _open_hdf5(path, source) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    count = sum(not name.startswith("optimizer/") for name in names)
    if count != len(model.weights):
        raise ImagebeamError(
            f"The weights do not fit {model.name}: the file has {count} arrays, not {len(model.weights)}. "
            f"Received: weights={source!r}. {_REMEDY}"
        )


def _open_hdf5(path: Path, source: str) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ImagebeamError(f"Not an HDF5 file: {_first_line(error)}. Received: weights={source!r}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse_full_model(path: Path, source: str) -> None:
    """A legacy .h5 may hold a whole model, whose loading can run code; only weights are taken."""
    with _open_hdf5(path, source) as file:
        attributes = set(file.attrs)
    if "model_config" in attributes or "layer_names" not in attributes:
        why = "it holds a whole model" if "model_config" in attributes else "it names no layers"
        raise ImagebeamError(
            f"The file is not weights only: {why}. "
            f"Received: weights={source!r}. Save the weights with model.save_weights('x.weights.h5')."
        )


def _npz_arrays(path: Path, source: str) -> dict[str, np.ndarray]:
    """The arrays of a file that `numpy.savez` wrote; objects in it, which are pickles, are not loaded."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = "it holds pickled objects" if "pickle" in str(error) else _first_line(error)
        raise ImagebeamError(
            f"The file is not an archive of plain arrays: {why}. Received: weights={source!r}. "
            f"Save them with numpy.savez, each named layer/weight."
        ) from error


def _onnx_arrays(path: Path, source: str) -> dict[str, np.ndarray]:
    """VGG convolutions among an ONNX graph's initializers: "block1_conv1/kernel" -> [height, width, in, out]."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise ImagebeamError(
            f"Reading ONNX weights needs the onnx package: pip install 'imagebeam[onnx]'. Received: weights={source!r}."
        ) from error
    try:
        initializers = onnx.load(str(path)).graph.initializer
    except DecodeError as error:
        raise ImagebeamError(f"Not an ONNX file: {_first_line(error)}. Received: weights={source!r}.") from error
    arrays = {}
    for initializer in initializers:
        if (match := _ONNX_CONVOLUTION.search(initializer.name)) is None:
            continue
        array = numpy_helper.to_array(initializer)
        if array.ndim == 4:  # ONNX keeps [out, in, height, width]
            arrays[f"{match[1]}/kernel"] = array.transpose(2, 3, 1, 0)
        else:
            arrays[f"{match[1]}/bias"] = array.reshape(-1)
    return arrays


def _assign(model: keras.Model, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Give every weight of `model` the array named "layer/weight", all of them or none."""
    wanted = {variable.path.removeprefix(f"{model.name}/"): variable for variable in model.weights}
    if missing := [name for name in wanted if name not in arrays]:
        raise ImagebeamError(
            f"The weights do not fit {model.name}: {len(missing)} of {len(wanted)} arrays are missing, the first is "
            f"{missing[0]!r}; the file has {', '.join(sorted(arrays)[:5]) or 'none that could be'}... "
            f"Received: weights={source!r}."
        )
    if unknown := sorted(set(arrays) - set(wanted)):
        raise ImagebeamError(
            f"The weights do not fit {model.name}, which has no {unknown[0]!r}; nor {len(unknown) - 1} others of the "
            f"file's arrays. Received: weights={source!r}. {_REMEDY}"
        )
    for name, variable in wanted.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise ImagebeamError(
                f"The weights do not fit {model.name}: {name} has shape {arrays[name].shape}, not "
                f"{tuple(variable.shape)}. Received: weights={source!r}."
            )
    for name, variable in wanted.items():
        variable.assign(arrays[name])
