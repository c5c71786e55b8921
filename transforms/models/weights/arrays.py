"""Weights in files of named arrays: NumPy's .npz, safetensors, and the initializers of an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transforms.models.weights.files import StoredArray, StoredWeights, WeightsFileError, first_line, open_archive

_MAX_HEADER_BYTES = 2**16
_MAX_SAFETENSORS_HEADER = 16 * 2**20
_ONNX_CONVOLUTION = re.compile(r"(block\d_conv\d)(?:_\d+)?/")
_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


def _plain(name: str) -> str:
    """The name of a weight without the number that TensorFlow puts behind it."""
    return name.removesuffix(":0")


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[StoredWeights]:
    """Open what `numpy.savez` wrote, arrays named "layer/weight".

    Raises:
        WeightsFileError: for pickled objects, or a damaged archive.
    """
    with open_archive(path) as archive:
        arrays = {_plain(info.filename.removesuffix(".npy")): _npz_member(archive, info) for info in archive.infolist()}
        yield StoredWeights(by_name=arrays)


def _npz_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray:
    """Read an array's header, which is at the beginning of its member."""
    with archive.open(info) as member:
        start = io.BytesIO(member.read(_MAX_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(start)
        readers: dict[tuple[int, int], Callable[..., Any]] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"version {version}")
        shape, _, dtype = readers[version](start, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError) as error:
        raise WeightsFileError(f"{info.filename} is not an array of NumPy ({first_line(error)})") from error
    if dtype.hasobject:
        raise WeightsFileError("it holds pickled objects, which can run code")

    def read() -> np.ndarray:
        with archive.open(info) as member:
            try:
                return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
            except ValueError as error:
                raise WeightsFileError(f"{info.filename} is damaged ({first_line(error)})") from error

    return StoredArray(tuple(shape), read)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[StoredWeights]:
    """Open a safetensors file, arrays named "layer/weight" or "layer.weight".

    Raises:
        WeightsFileError: for a header that is none, or says what the file does not have.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_SAFETENSORS_HEADER:
            raise WeightsFileError(f"its safetensors header has {length:,} bytes")
        try:
            header = json.loads(file.read(length))
            entries = {name: about for name, about in header.items() if name != "__metadata__"}
            arrays = {
                _plain(name if "/" in name else name.replace(".", "/")): _safetensors_array(path, 8 + length, about)
                for name, about in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsFileError(f"it is no safetensors file ({first_line(error)})") from error
        yield StoredWeights(by_name=arrays)


def _safetensors_array(path: Path, data: int, about: dict[str, Any]) -> StoredArray:
    dtype = np.dtype(_SAFETENSORS_TYPES[about["dtype"]])
    shape = tuple(int(size) for size in about["shape"])
    first, end = about["data_offsets"]
    if end - first != math.prod(shape) * dtype.itemsize or not 0 <= first <= end <= path.stat().st_size - data:
        raise ValueError("an array's bytes are not where its header says")

    def read() -> np.ndarray:
        values = np.fromfile(path, dtype, count=math.prod(shape), offset=data + first).reshape(shape)
        if about["dtype"] == "BF16":
            import ml_dtypes

            values = values.view(ml_dtypes.bfloat16)
        return values

    return StoredArray(shape, read)


@contextlib.contextmanager
def open_onnx(path: Path) -> Iterator[StoredWeights]:
    """Open the VGG convolutions among an ONNX graph's initializers, as "block1_conv1/kernel" [height, width, in, out].

    Raises:
        WeightsFileError: if it is no ONNX file, its data lie in other files, or the onnx package is missing.
    """
    with path.open("rb") as file:
        if file.read(1) != b"\x08":  # An ONNX file begins with its version, field 1.
            raise WeightsFileError(
                "it is of no known kind; known are HDF5 (.h5, .weights.h5), .keras, .npz, .safetensors and .onnx"
            )
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise WeightsFileError("reading ONNX weights needs the onnx package (pip install 'imagebeam[onnx]')") from error
    try:
        initializers = onnx.load(str(path), load_external_data=False).graph.initializer
    except DecodeError as error:
        raise WeightsFileError(f"it is no ONNX file ({first_line(error)})") from error
    arrays = {}
    for initializer in initializers:
        if not isinstance(initializer.name, str):  # What is no UTF-8 comes as bytes.
            raise WeightsFileError("an array of the ONNX graph has a name that is not text")
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise WeightsFileError(f"the data of {initializer.name} lie in another file")
        if (match := _ONNX_CONVOLUTION.search(initializer.name)) is None:
            continue

        def read(initializer: Any = initializer) -> np.ndarray:
            try:
                values = np.asarray(numpy_helper.to_array(initializer))
            except (ValueError, TypeError, KeyError) as error:
                raise WeightsFileError(f"{initializer.name} is damaged ({first_line(error)})") from error
            return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.reshape(-1)

        sizes = tuple(initializer.dims)
        if len(sizes) == 4:  # ONNX keeps [out, in, height, width].
            arrays[f"{match[1]}/kernel"] = StoredArray((sizes[2], sizes[3], sizes[1], sizes[0]), read)
        else:
            arrays[f"{match[1]}/bias"] = StoredArray((math.prod(sizes),), read)
    yield StoredWeights(by_name=arrays)
