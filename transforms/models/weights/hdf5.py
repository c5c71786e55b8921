"""Weights in HDF5, as Keras 1 to 3 write them, and in .keras archives: arrays alone, links to elsewhere refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.models.weights.files import StoredArray, StoredWeights, WeightsFileError, first_line, open_archive

if TYPE_CHECKING:
    import h5py

_WEIGHTS_MEMBER = "model.weights.h5"
_WEIGHTS_GROUP = "model_weights"
_MAX_CONFIG_BYTES = 64 * 2**20
_MAX_DEPTH = 32
_MAX_INFLATION = 16
_PLACE = re.compile(r"(?P<layer>.*?)/?vars/\d+")


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[StoredWeights]:
    """Open an HDF5 file of weights, of any of Keras' layouts.

    Raises:
        WeightsFileError: for layers that hold code, Theano's kernels, links to elsewhere, or a damaged file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield _describe(file)
    except (OSError, RuntimeError, KeyError) as error:
        raise WeightsFileError(f"the HDF5 file is damaged ({first_line(error)})") from error


@contextlib.contextmanager
def open_keras_archive(path: Path) -> Iterator[StoredWeights]:
    """Open the weights in a .keras archive; its layers are looked at, never made.

    Raises:
        WeightsFileError: for layers that hold code, or a damaged archive.
    """
    with open_archive(path) as archive, tempfile.TemporaryDirectory() as folder:
        _check_config(archive)
        if _WEIGHTS_MEMBER not in archive.namelist():
            raise WeightsFileError(f"the archive has no {_WEIGHTS_MEMBER}")
        info = archive.getinfo(_WEIGHTS_MEMBER)
        if info.file_size > _MAX_INFLATION * max(info.compress_size, 2**16):
            raise WeightsFileError(
                f"{_WEIGHTS_MEMBER} inflates from {info.compress_size:,} to {info.file_size:,} bytes"
            )
        unpacked = Path(folder, _WEIGHTS_MEMBER)
        with archive.open(info) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
        with open_hdf5(unpacked) as stored:
            yield stored


_LAYERS_OF = ("keras", "tf_keras", "builtins")
"""Packages whose layers an archive may name."""

_SAVE_WEIGHTS = "Save the weights alone, with model.save_weights('x.weights.h5')"


def _check_config(archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose layers hold code or come from elsewhere than Keras."""
    if archive.getinfo("config.json").file_size > _MAX_CONFIG_BYTES:
        raise WeightsFileError(f"its config.json is larger than {_MAX_CONFIG_BYTES:,} bytes")
    try:
        config = json.loads(archive.read("config.json"))
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"its config.json cannot be read ({first_line(error)})") from error
    _check_layers(config)


def _check_layers(config: Any) -> None:
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            name, module = value.get("class_name"), value.get("module")
            if name in ("Lambda", "__lambda__"):
                raise WeightsFileError(f"it has a Lambda layer, which holds code. {_SAVE_WEIGHTS}")
            if isinstance(module, str) and module.split(".")[0] not in _LAYERS_OF:
                raise WeightsFileError(f"it names {module}.{name}, which is not of Keras. {_SAVE_WEIGHTS}")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _describe(file: h5py.File) -> StoredWeights:
    groups: dict[str, h5py.Group] = {}
    datasets: dict[str, h5py.Dataset] = {}
    _walk(file, "", groups, datasets, set())
    if "model_config" in file.attrs:
        return _describe_whole_model(file, groups, datasets)
    if any(name in file.attrs for name in ("layer_names", "layer_names0")):
        return _describe_legacy(file, groups, datasets)
    places = {name: _array(dataset) for name, dataset in datasets.items() if _PLACE.fullmatch(name)}
    if not places:
        raise WeightsFileError("the HDF5 file names no layers and has no variables of Keras")
    layers = tuple(name.removesuffix("/vars") for name in groups if name.endswith("/vars"))
    names = {layer: _text(groups[f"{layer}/vars"].attrs.get("name", "")) for layer in layers}
    return StoredWeights(by_place=places, layers=layers, names={place: name for place, name in names.items() if name})


def _walk(
    group: h5py.Group,
    path: str,
    groups: dict[str, h5py.Group],
    datasets: dict[str, h5py.Dataset],
    seen: set[int],
) -> None:
    """Collect what is below a group, following only what lies in the file itself."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen or path.count("/") > _MAX_DEPTH:
        raise WeightsFileError("its groups contain themselves")
    seen.add(address)
    for name in group:
        where = f"{path}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise WeightsFileError(f"{where} is a link to somewhere else")
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise WeightsFileError(f"the data of {where} lies in another file")
            datasets[where] = item
        elif isinstance(item, h5py.Group):
            groups[where] = item
            _walk(item, f"{where}/", groups, datasets, seen)


def _describe_whole_model(
    file: h5py.File, groups: dict[str, h5py.Group], datasets: dict[str, h5py.Dataset]
) -> StoredWeights:
    """What `model.save("x.h5")` wrote: the weights in a group, and the layers, which are looked at, never made."""
    try:
        config = json.loads(_text(file.attrs["model_config"]))
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"its model_config cannot be read ({first_line(error)})") from error
    _check_layers(config)
    if _WEIGHTS_GROUP not in groups:
        raise WeightsFileError(f"the HDF5 file of a model has no {_WEIGHTS_GROUP}")
    start = f"{_WEIGHTS_GROUP}/"
    inner_groups, inner_datasets = (
        {name.removeprefix(start): item for name, item in items.items() if name.startswith(start)}
        for items in (groups, datasets)
    )
    stored = _describe_legacy(groups[_WEIGHTS_GROUP], inner_groups, inner_datasets)
    return dataclasses.replace(stored, layers=tuple(_layer_paths(config, "")))


def _layer_paths(model: Any, path: str) -> Iterator[str]:
    """Names of a configuration's layers, those of a model within it behind its own name."""
    settings = model.get("config") if isinstance(model, dict) else None
    layers = settings.get("layers") if isinstance(settings, dict) else settings  # A list: a Sequential of Keras 1.
    for layer in layers if isinstance(layers, list) else ():
        about = layer.get("config") if isinstance(layer, dict) else None
        name = f"{path}{about.get('name')}" if isinstance(about, dict) else path
        yield name
        yield from _layer_paths(layer, f"{name}/")


def _describe_legacy(
    file: h5py.Group, groups: dict[str, h5py.Group], datasets: dict[str, h5py.Dataset]
) -> StoredWeights:
    if _text(file.attrs.get("backend", "")) == "theano":
        raise WeightsFileError("its kernels are Theano's, which are turned by 180 degrees. Convert them first")
    layers = _names(file, "layer_names")
    by_layer: dict[str, list[StoredArray]] = {}
    nested: list[dict[str, list[StoredArray]]] = []
    for layer in layers:
        if layer not in groups:
            raise WeightsFileError(f"it lists the layer {layer!r} and does not have it")
        inner: dict[str, list[StoredArray]] = {}  # The arrays of a model's frozen layers come behind the others.
        by_layer[layer] = []
        for name in _names(groups[layer], "weight_names"):
            if f"{layer}/{name}" not in datasets:
                raise WeightsFileError(f"it lists the array {layer}/{name} and does not have it")
            array = _array(datasets[f"{layer}/{name}"])
            by_layer[layer].append(array)
            inner.setdefault(name.rpartition("/")[0], []).append(array)
        if len(inner) > 1:
            nested.append(inner)
    by_layer = {layer: arrays for layer, arrays in by_layer.items() if arrays}
    return StoredWeights(by_layer=by_layer, nested=tuple(nested), layers=tuple(layers))


def _array(dataset: h5py.Dataset) -> StoredArray:
    def read() -> np.ndarray:
        if dataset.dtype.hasobject:
            raise WeightsFileError(f"{dataset.name} is not an array of numbers")
        values = np.asarray(dataset[()])
        if _text(dataset.attrs.get("dtype", "")) == "bfloat16":
            import ml_dtypes

            values = values.view(ml_dtypes.bfloat16)
        return values

    return StoredArray(tuple(dataset.shape or ()), read)


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; a long one is stored in pieces, `layer_names0`, `layer_names1`..."""
    if attribute in group.attrs:
        return [_text(name) for name in group.attrs[attribute]]
    pieces = itertools.takewhile(lambda piece: piece in group.attrs, (f"{attribute}{i}" for i in itertools.count()))
    return [_text(name) for piece in pieces for name in group.attrs[piece]]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
