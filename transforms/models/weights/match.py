"""Match a model's weights with the arrays of a file, and name layers that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.models.weights.files import StoredArray, StoredWeights, WeightsFileError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Slot:
    """A weight of a model, and where files of each kind keep its values.

    Attributes:
        name: "layer/weight", the layers of a nested model with its name before theirs.
        layer: name of the outermost layer that it belongs to.
        index: its number among the weights of that layer.
        place: in the tree of layers, each numbered within its class: "layers/conv2d_1/vars/0".
        variable: the Keras variable.
    """

    name: str
    layer: str
    index: int
    place: str
    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the variable."""
        return tuple(self.variable.shape)


class MisfitError(Exception):
    """A file is not of this model; `str` says which layer and how.

    Attributes:
        slot: the first weight without an array of its shape; None where the file has arrays more than the model.
        found: the array in its place, if there is one.
    """

    def __init__(self, message: str, slot: Slot | None = None, found: StoredArray | None = None) -> None:
        super().__init__(message)
        self.slot = slot
        self.found = found


def list_slots(model: keras.Model) -> list[Slot]:
    """A model's weights in order."""
    slots: list[Slot] = []
    for layer, place in _placed_layers(model, ""):
        for index, (variable, inner) in enumerate(_placed_weights(layer, place)):
            name = variable.path.removeprefix(f"{model.name}/")
            slots.append(Slot(name, layer.name, index, inner, variable))
    return slots


def _placed_layers(model: keras.Model, prefix: str) -> Iterator[tuple[keras.layers.Layer, str]]:
    """Each layer and its place, as Keras 3 numbers it among the layers of its class."""
    counts: dict[str, int] = {}
    for layer in model.layers:
        kind = _snake_case(type(layer).__name__)
        count = counts.get(kind, 0)
        counts[kind] = count + 1
        yield layer, f"{prefix}layers/{kind}_{count}" if count else f"{prefix}layers/{kind}"


def _placed_weights(layer: keras.layers.Layer, place: str) -> Iterator[tuple[Any, str]]:
    if hasattr(layer, "layers"):
        for inner, inner_place in _placed_layers(layer, f"{place}/"):
            yield from _placed_weights(inner, inner_place)
    else:
        for number, variable in enumerate(layer.weights):
            yield variable, f"{place}/vars/{number}"


def _snake_case(name: str) -> str:
    """Spell a class as Keras does in places: "ZeroPadding2D" -> "zero_padding2d"."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def match(slots: Sequence[Slot], stored: StoredWeights) -> list[StoredArray]:
    """The array of each slot, in the slots' order; all of the file's arrays are used, but those of a head.

    Raises:
        MisfitError: naming the first layer whose array is missing or of another shape, or an array too many.
    """
    misfits: list[MisfitError] = []
    for view in _views(slots, stored):
        try:
            return _check(slots, view)
        except MisfitError as misfit:
            misfits.append(misfit)
    raise misfits[0]


def fill(slots: Sequence[Slot], arrays: Sequence[StoredArray]) -> None:
    """Read the arrays that `match` found, and give each slot its values.

    Raises:
        WeightsFileError: for an array that is damaged, or is none of numbers.
    """
    for slot, array in zip(slots, arrays, strict=True):
        values = array.read()
        if values.shape != slot.shape or not _is_numeric(values.dtype):
            raise WeightsFileError(
                f"{slot.name} holds {values.dtype} of shape {values.shape}, not what its header says"
            )
        slot.variable.assign(values.astype(slot.variable.dtype))


def _is_numeric(dtype: np.dtype) -> bool:
    return dtype.kind in "fiu" or dtype.name == "bfloat16"


@dataclass(frozen=True)
class _View:
    """One assignment of arrays to weights, and the arrays left over.

    Attributes:
        keys: of each weight, "layer/weight".
        found: the array of each.
        left_over: by key.
    """

    keys: list[str]
    found: list[StoredArray | None]
    left_over: dict[str, StoredArray]

    def leaves_a_head(self) -> bool:
        """Whether what is left over are whole layers of a classifier: dense ones, and at most two others for each.

        Those of a larger architecture, of which this one is a part, have convolutions or more normalisations.
        """
        ranks: dict[str, int] = {}
        for key, array in self.left_over.items():
            ranks[_layer_of(key)] = max(ranks.get(_layer_of(key), 0), len(array.shape))
        dense = sum(rank == 2 for rank in ranks.values())
        return (
            ranks.keys().isdisjoint(map(_layer_of, self.keys))
            and all(rank <= 2 for rank in ranks.values())
            and len(ranks) <= 3 * dense
        )


def _views(slots: Sequence[Slot], stored: StoredWeights) -> Iterator[_View]:
    """Ways to find the slots, the most likely first."""
    if stored.by_layer:
        for layers in sorted((stored.by_layer, *stored.nested), key=len, reverse=True):
            yield _view_by_layer(slots, layers)
    elif stored.by_place:
        roots = {place[: at.start()] for place in stored.by_place for at in re.finditer(r"layers/", place)}
        counted = {root: sum(place.startswith(f"{root}layers/") for place in stored.by_place) for root in roots}
        for root in sorted(roots, key=lambda root: (-counted[root], len(root))):
            below = {
                place.removeprefix(root): array
                for place, array in stored.by_place.items()
                if place.startswith(f"{root}layers/")
            }
            yield _view([slot.place for slot in slots], below)
    elif "arr_0" in stored.by_name:  # numpy.savez(path, *model.get_weights())
        numbers = {f"arr_{number}": slot.name for number, slot in enumerate(slots)}
        yield _view([slot.name for slot in slots], {numbers.get(key, key): a for key, a in stored.by_name.items()})
    else:
        yield _view([slot.name for slot in slots], stored.by_name)


def _layer_of(key: str) -> str:
    return key.rpartition("/")[0]


def _view(keys: list[str], arrays: dict[str, StoredArray]) -> _View:
    wanted = set(keys)
    return _View(keys, [arrays.get(key) for key in keys], {key: a for key, a in arrays.items() if key not in wanted})


def _view_by_layer(slots: Sequence[Slot], stored: dict[str, list[StoredArray]]) -> _View:
    """By name where the model's names are there, else by order, as Keras does.

    Layers without names of their own are numbered by process, so their names may be those of other layers here.
    """
    layers = list(dict.fromkeys(slot.layer for slot in slots))
    same = set(layers) <= set(stored)
    places = [*layers, *(name for name in stored if name not in layers)] if same else list(stored)
    arrays = {
        f"{layers[number] if number < len(layers) else f'a further {name}'}/{index}": array
        for number, name in enumerate(places)
        for index, array in enumerate(stored[name])
    }
    return _view([f"{slot.layer}/{slot.index}" for slot in slots], arrays)


def _check(slots: Sequence[Slot], view: _View) -> list[StoredArray]:
    misfits = [
        (slot, array)
        for slot, array in zip(slots, view.found, strict=True)
        if array is None or array.shape != slot.shape
    ]
    for slot, array in sorted(misfits, key=lambda pair: pair[1] is None):  # a shape says more than an absence
        if array is None:
            raise MisfitError(
                f"{len(misfits)} of {len(slots)} arrays are missing, the first is {slot.name!r} of shape {slot.shape}"
                + (f"; the file has {', '.join(sorted(view.left_over)[:5])}" if view.left_over else ""),
                slot,
            )
        raise MisfitError(f"{slot.name} has shape {array.shape} in the file, not {slot.shape}", slot, array)
    if view.left_over and not view.leaves_a_head():
        name, array = min(view.left_over.items())
        raise MisfitError(
            f"the model has no {name!r} of shape {array.shape}, nor {len(view.left_over) - 1} others of the file's "
            "arrays"
        )
    return [array for array in view.found if array is not None]
