"""Load weights into a backbone, and check their names and shapes."""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.models.architectures import Architecture
from transforms.models.keras_import import import_keras
from transforms.models.keras_internals import published_efficientnet_md5, seeded
from transforms.models.weights.files import StoredArray, StoredWeights, first_line, open_weights
from transforms.models.weights.match import MisfitError, Slot, fill, list_slots, match

if TYPE_CHECKING:
    import keras

_NOT_ARRAYS = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".pb", ".tflite")
"""Endings that files of weights never have: pickles can run code, and the others hold no arrays by layer."""

_REMEDY = "They must be of the same architecture, with the top where a layer of the top is asked for."


def is_file(weights: str) -> bool:
    """Whether a `--weights` value names a file rather than imagenet, none or random:SEED; its content is not looked at.

    Raises:
        ImagebeamError: for a value that is none of these.
    """
    if weights in ("imagenet", "none") or re.fullmatch(r"random:\d+", weights):
        return False
    if Path(weights).suffix in _NOT_ARRAYS:
        raise ImagebeamError(
            f"Weights are taken from files of plain arrays: HDF5, .keras, .npz, .safetensors or .onnx. Received: "
            f"weights={weights!r}."
        )
    if re.search(r"[./\\]", weights) or (weights and Path(weights).is_file()):
        return True
    raise ImagebeamError(
        f"Weights are 'imagenet', 'none', 'random:SEED' (SEED a whole number), or a file. "
        f"Received: weights={weights!r}."
    )


def load_backbone(
    architecture: Architecture,
    weights: str,
    image_size: tuple[int, int] | None,
    *,
    include_top: bool = False,
    pooling: str | None = None,
) -> keras.Model:
    """Build the float32 backbone and fill it.

    Args:
        architecture: which model.
        weights: "imagenet", "none" (random, another each time), "random:SEED", or a local path or URL of a file.
        image_size: (height, width) in pixels, or None for any size.
        include_top: with the classifier's layers, for as many classes as the weights are for.
        pooling: None, or "avg" or "max" for the architecture's own pooling.

    Raises:
        ImagebeamError: if the weights cannot be had, or do not fit the architecture.
    """
    import_keras()
    build = functools.partial(architecture.build, image_size, include_top=include_top, pooling=pooling)
    if is_file(weights):
        try:
            with storage.local_file(weights) as path:
                return _load_file(architecture, path, weights, build, include_top=include_top)
        except OSError as error:
            raise ImagebeamError(f"The weights file cannot be read: {error}. Received: weights={weights!r}.") from error
    if weights == "imagenet":
        return _load_imagenet(architecture, build)
    seed = secrets.randbelow(2**31) if weights == "none" else int(weights.removeprefix("random:"))
    with seeded(seed):
        return build()


def _load_imagenet(architecture: Architecture, build: Callable[..., keras.Model]) -> keras.Model:
    """Let Keras find its published weights, and say what can be done where it does not.

    Raises:
        ImagebeamError: with advice on what went wrong: the network, the cache, or neither.
    """
    try:
        model = build(weights="imagenet")
    except Exception as error:  # Keras lets whatever its downloader raises through
        _check_buildable(build)
        if "URL fetch failure" in str(error):
            advice = "Check the network, or put the file into Keras' cache (~/.keras/models)"
        elif isinstance(error, OSError):
            advice = "Check Keras' cache (~/.keras/models): a file there may be damaged or not writable"
        else:
            advice = "The architecture can be built without them (--weights random:0)"
        raise ImagebeamError(
            f"Keras could not load the ImageNet weights of {architecture.name}: {first_line(error)}. {advice}, or "
            f"pass --weights FILE."
        ) from error
    finalize(model)
    return model


def _check_buildable(build: Callable[..., keras.Model]) -> None:
    """Raise the architecture's own errors before the download, which would be blamed for them."""
    import keras

    with keras.StatelessScope(initialize_variables=False):
        build()


def _load_file(
    architecture: Architecture,
    path: Path,
    source: str,
    build: Callable[..., keras.Model],
    *,
    include_top: bool,
) -> keras.Model:
    """Build the model that a file's weights are for, and fill it.

    Args:
        architecture: which model.
        path: of the file, local.
        source: the name the user knows it by.
        build: makes the model.
        include_top: whether `build` makes the classifier's layers too.
    """
    with open_weights(path, source) as stored:
        rescaled = architecture.rescales_for_imagenet and (
            stored.lists_second_rescaling() or _is_published(architecture, path)
        )
        try:
            if include_top:
                full, _ = _match_full(architecture, stored)
                model = build(rescaled=rescaled, classes=full)
            else:
                model = build(rescaled=rescaled)
            slots = list_slots(model)
            fill(slots, _match_with_or_without_top(architecture, slots, stored, include_top=include_top))
        except MisfitError as misfit:
            raise ImagebeamError(
                f"The weights do not fit {architecture.name.lower()}: {misfit}. Received: weights={source!r}. {_REMEDY}"
            ) from misfit
    finalize(model)
    return model


def _match_with_or_without_top(
    architecture: Architecture, slots: Sequence[Slot], stored: StoredWeights, *, include_top: bool
) -> list[StoredArray]:
    """The arrays of `slots`; a file of the whole network serves the backbone too.

    Raises:
        MisfitError: as `match` for the model that was asked for.
    """
    try:
        return match(slots, stored)
    except MisfitError:
        if include_top:
            raise
        try:
            _, arrays = _match_full(architecture, stored)
        except MisfitError:
            arrays = {}
        below_top = [arrays[slot.place] for slot in slots if slot.place in arrays]
        if len(below_top) < len(slots) or any(a.shape != slot.shape for a, slot in zip(below_top, slots, strict=True)):
            raise
        return below_top


def _match_full(architecture: Architecture, stored: StoredWeights) -> tuple[int, dict[str, StoredArray]]:
    """How many classes the classifier in a file has, and its arrays by their place in the whole network.

    Raises:
        MisfitError: if the file is not of the whole network.
    """
    import keras

    size = (architecture.default_size, architecture.default_size)
    classes = 1000
    while True:
        with keras.StatelessScope(initialize_variables=False):
            slots = list_slots(architecture.build(size, include_top=True, classes=classes))
            try:
                arrays = match(slots, stored)
            except MisfitError as misfit:
                last = slots[-1].layer
                others = misfit.found.shape[-1] if misfit.found and misfit.slot and misfit.slot.layer == last else 0
                if classes != 1000 or others < 1:
                    raise
                classes = others
            else:
                return classes, {slot.place: array for slot, array in zip(slots, arrays, strict=True)}


def _is_published(architecture: Architecture, path: Path) -> bool:
    """Whether a file is the one that Keras itself downloads for `weights="imagenet"`."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return md5 in published_efficientnet_md5(architecture.name)


def finalize(model: keras.Model) -> None:
    """Recompute what layers derive from their weights: `Normalization` computes with copies that only this refreshes.

    Without it, weights given by `set_weights` or `assign` leave its mean at 0 and its variance at 1.
    """
    for layer in model._flatten_layers(include_self=False):  # A layer of one's own may have one inside.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def values_sha256(model: keras.Model) -> str:
    """SHA-256 over the weight values, whatever their order in the model: a loaded copy may have another."""
    import keras

    digests = []
    for variable in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digests.append(hashlib.sha256(f"{value.dtype.str}{value.shape}".encode() + value.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def digest(model: keras.Model) -> str:
    """SHA-256 over the weight values, in the model's order: the same numbers in any file format have one digest."""
    import keras

    sha256 = hashlib.sha256()
    for variable in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        sha256.update(f"{value.dtype.str}{value.shape}".encode())
        sha256.update(value.view(np.uint8).data)  # bfloat16 is no type that a buffer has
    return sha256.hexdigest()
