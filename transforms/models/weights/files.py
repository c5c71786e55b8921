"""Weights files as named arrays: recognised by their content, described by their headers, never executed.

Nothing is inflated or read before its shape and place are known, so a file can cost no more than the model it is for.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transforms.core.errors import ImagebeamError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_NOT_WEIGHTS = (
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the file itself (git lfs pull)"),
    (b"<", "it is an HTML or XML page"),
    (b"{", "it is JSON, such as the index of weights in several files; save them in one, without max_shard_size"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"\x93NUMPY", "it is a single array; save the weights with numpy.savez, each named layer/weight"),
    *((b"\x80" + bytes([protocol]), "it holds pickled objects, which can run code") for protocol in range(1, 6)),
)


class WeightsFileError(Exception):
    """Why a file gives no weights; `str` is a clause that follows "The weights file cannot be used: "."""


@dataclass(frozen=True)
class StoredArray:
    """One array of a file, described but not read.

    Attributes:
        shape: as the file's header says.
        read: gives the values, in whatever floating or whole type they are stored as.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class StoredWeights:
    """The arrays of a file, found in one of three ways: by name, by place, or by layer; the others are empty.

    Attributes:
        by_name: "layer/weight" -> array (npz, safetensors, ONNX).
        by_place: place in the tree of layers -> array ("layers/conv2d_1/vars/0": Keras 3).
        by_layer: layer name -> its arrays, in the file's order (Keras 1 and 2, "legacy").
        nested: the same for each layer of `by_layer` that is a model itself: its own layers -> their arrays.
        layers: places or names of all layers that the file lists, those without weights too.
        names: place of a layer -> its name, where the file says so.
    """

    by_name: dict[str, StoredArray] = field(default_factory=dict)
    by_place: dict[str, StoredArray] = field(default_factory=dict)
    by_layer: dict[str, list[StoredArray]] = field(default_factory=dict)
    nested: tuple[dict[str, list[StoredArray]], ...] = ()
    layers: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many arrays the file has."""
        return len(self.by_name) + len(self.by_place) + sum(map(len, self.by_layer.values()))

    def lists_second_rescaling(self) -> bool:
        """Whether the file is of an EfficientNet with the layer that Keras adds for ImageNet's weights."""
        models = [match[1] for layer in self.layers if (match := re.fullmatch(r"(.*/)?rescaling(?:_\d+)?", layer))]
        return len(models) > len(set(models))


@contextlib.contextmanager
def open_weights(path: Path, source: str) -> Iterator[StoredWeights]:
    """Open a weights file by what its first bytes say; its arrays can be read until the context ends.

    Args:
        path: local.
        source: what the user calls it, for messages.

    Raises:
        ImagebeamError: if it is no weights file, holds anything but plain arrays, or is damaged; also when that
            shows only while an array is read.
        OSError: if it cannot be read.
    """
    try:
        with _opener(path)(path) as stored:
            yield stored
    except WeightsFileError as error:
        raise ImagebeamError(f"The weights file cannot be used: {error}. Received: weights={source!r}.") from error


def _opener(path: Path) -> Callable[[Path], contextlib.AbstractContextManager[StoredWeights]]:
    from transforms.models.weights import arrays, hdf5

    with path.open("rb") as file:
        start = file.read(64)
        if _is_hdf5(file, start):
            return hdf5.open_hdf5
    if not start:
        raise WeightsFileError("it is empty")
    if start.startswith(b"PK\x03\x04"):
        return _zip_opener(path)
    for signature, what in _NOT_WEIGHTS:
        if start.lstrip().startswith(signature):
            raise WeightsFileError(what)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return arrays.open_safetensors
    return arrays.open_onnx


_DAMAGED_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, NotImplementedError, RuntimeError),
)
"""What `zipfile` raises for what an archive holds."""


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        WeightsFileError: if it is damaged, also when that shows only while a member is read.
        OSError: if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _DAMAGED_ARCHIVE as error:
        raise WeightsFileError(f"the archive is damaged ({first_line(error)})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # That a damaged directory leads to: a place before the file's beginning.
            raise
        raise WeightsFileError(f"the archive is damaged ({first_line(error)})") from error


def _zip_opener(path: Path) -> Callable[[Path], contextlib.AbstractContextManager[StoredWeights]]:
    from transforms.models.weights import arrays, hdf5

    try:
        with open_archive(path) as archive:
            names = archive.namelist()
    except ValueError as error:
        raise WeightsFileError(f"the archive is damaged ({first_line(error)})") from error
    if any(name.endswith("data.pkl") for name in names):
        raise WeightsFileError("it is a PyTorch file, whose pickled objects can run code")
    if "config.json" in names:
        return hdf5.open_keras_archive
    return arrays.open_npz


def _is_hdf5(file: BinaryIO, start: bytes) -> bool:
    """HDF5 begins at byte 0, 512, 1024, 2048...: what comes before is the user's own."""
    if start.startswith(HDF5_SIGNATURE):
        return True
    offset = 512
    while offset <= 2**20:
        file.seek(offset)
        if file.read(8) == HDF5_SIGNATURE:
            return True
        offset *= 2
    return False


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
