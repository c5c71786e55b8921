"""Prepare a backbone for fine-tuning: frozen layers, augmentation, the head."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec
from transforms.models.architectures import nearest
from transforms.models.embedder import assemble
from transforms.models.keras_internals import outputs_in
from transforms.training.head import LOGITS

if TYPE_CHECKING:
    import keras


class Augmentation(enum.StrEnum):
    """A random change of training images, another one each time an image is seen."""

    FLIP = "flip"
    """Left to right, every second time."""
    ROTATION = "rotation"
    """Up to 18 degrees."""
    TRANSLATION = "translation"
    """Up to a tenth of the height and the width."""
    ZOOM = "zoom"
    """In or out, up to a tenth."""
    CONTRAST = "contrast"
    """Up to a fifth more or less."""


def augmentation_layers(augmentations: Sequence[Augmentation], seed: int) -> list[keras.layers.Layer]:
    """Keras' layers, in the order given; they change images only while training."""
    import keras
    from keras import layers

    makers: dict[Augmentation, Callable[[int], keras.layers.Layer]] = {
        Augmentation.FLIP: lambda seed: layers.RandomFlip("horizontal", seed=seed),
        Augmentation.ROTATION: lambda seed: layers.RandomRotation(18 / 360, seed=seed),
        Augmentation.TRANSLATION: lambda seed: layers.RandomTranslation(0.1, 0.1, seed=seed),
        Augmentation.ZOOM: lambda seed: layers.RandomZoom(0.1, seed=seed),
        Augmentation.CONTRAST: lambda seed: layers.RandomContrast(0.2, value_range=(0, 255), seed=seed),
    }
    made = [makers[augmentation](seed * 1000 + number) for number, augmentation in enumerate(augmentations)]
    if keras.backend.backend() == "jax":
        for layer in made:
            layer.supports_jit = True  # Keras says no, because of TensorFlow; and JAX computes op by op without.
    return made


@dataclass(frozen=True)
class TunedLayer:
    """A line of the table of layers.

    Attributes:
        keras_number: as Keras counts layers, the input and pooling too, from 1.
        number: of the layers that have weights, from 1; None for a layer without.
        name: of the layer.
        type: its class.
        output_shape: of one image.
        parameters: how many numbers it has.
        trainable: whether it learns; a layer without numbers never does.
    """

    keras_number: int
    number: int | None
    name: str
    type: str
    output_shape: tuple[int | None, ...]
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class Frozen:
    """Which layers of a model stay as they are: all up to a place, which one of the attributes says.

    Attributes:
        layers: the first so many that have weights, and what lies between them.
        keras_layers: the first so many as Keras lists them, the input and pooling too.
        until: all up to and with the one of this name.
        everything: all.
    """

    layers: int = 0
    keras_layers: int = 0
    until: str | None = None
    everything: bool = False

    def count(self, backbone: keras.Model, model: str) -> int:
        """How many of `backbone.layers` that is.

        Args:
            backbone: the model.
            model: its name, for errors.

        Raises:
            ImagebeamError: for more layers than there are, or an unknown one.
        """
        names = [layer.name for layer in backbone.layers]
        weighted = [number for number, layer in enumerate(backbone.layers, 1) if layer.weights]
        if self.until is not None and self.until not in names:
            raise ImagebeamError(
                f"{model} has no such layer. Received: --freeze_until {self.until!r}. {nearest(self.until, names)}"
            )
        if self.layers > len(weighted):
            raise ImagebeamError(
                f"{model} has {len(weighted)} layers with weights. Received: --freeze_layers {self.layers}. (As Keras "
                f"counts, it has {len(names)}: that is --freeze_keras_layers.)"
            )
        if self.keras_layers > len(names):
            raise ImagebeamError(
                f"{model} has {len(names)} layers. Received: --freeze_keras_layers {self.keras_layers}."
            )
        if self.everything:
            return len(names)
        if self.until is not None:
            return names.index(self.until) + 1
        return max(self.keras_layers, weighted[self.layers - 1] if self.layers else 0)


def freeze(backbone: keras.Model, spec: EmbedderSpec, frozen: Frozen, name: str | None = None) -> list[TunedLayer]:
    """Decide which layers of a backbone learn.

    Batch normalisation never does, which is also what makes it run as in inference while the others learn: of the
    small batches of fine-tuning it would learn noise, and what came before and after would no longer fit. (In Keras 3
    calling the backbone with `training=False` is not enough: the model around it overrides that.)

    Args:
        backbone: its layers' `trainable` is set.
        spec: whose layers say how much of the backbone is used.
        frozen: what stays as it is.
        name: of the model, for errors; None for what the spec calls it, of a file its digest.

    Returns:
        The layers that are used, in order.

    Raises:
        ImagebeamError: as `Frozen.count`.
    """
    import keras

    first = frozen.count(backbone, name or spec.model)
    wanted = [outputs_in(backbone, layer)[0] for layer in spec.layers] or [backbone.output]
    used = {layer.name for layer in keras.Model(backbone.input, wanted).layers}
    for number, layer in enumerate(backbone.layers):
        layer.trainable = number >= first and layer.name in used
        for part in layer._flatten_layers():  # A model of one's own may have it inside of a layer.
            if isinstance(part, keras.layers.BatchNormalization):
                part.trainable = False
    weighted = itertools.count(1)
    numbers = [next(weighted) if layer.weights else None for layer in backbone.layers]
    return [
        TunedLayer(
            keras_number,
            number,
            layer.name,
            type(layer).__name__,
            tuple(layer.output.shape[1:]) if hasattr(layer.output, "shape") else (),  # Some give several.
            layer.count_params(),
            bool(layer.trainable_weights),
        )
        for keras_number, (number, layer) in enumerate(zip(numbers, backbone.layers, strict=True), 1)
        if layer.name in used
    ]


def build_training_model(
    spec: EmbedderSpec,
    backbone: keras.Model,
    head: keras.Model,
    augmentations: Sequence[Augmentation],
    *,
    multi_label: bool,
    seed: int,
) -> keras.Model:
    """Augmentation, backbone and head as one model that `classifier.compile_head` takes; layers are shared, not copied.

    Args:
        spec: of the embedder, with a fixed image size.
        backbone: as `freeze` leaves it.
        head: vectors -> probabilities, as `classifier.build_head` makes it.
        augmentations: of the training images.
        multi_label: as for `build_head`.
        seed: of the augmentations.
    """
    import keras

    assert spec.image_size is not None
    images = keras.Input((*spec.image_size, 3), dtype="uint8", name="image")
    values: Any = keras.ops.cast(images, "float32")
    for layer in augmentation_layers(augmentations, seed):
        values = layer(values)
    vectors = assemble(spec, backbone, values).output
    logits = keras.Model(head.input, head.get_layer(LOGITS).output, name="head")(vectors)
    logits = keras.layers.Activation("linear", name=LOGITS)(logits)
    probabilities = keras.layers.Activation("sigmoid" if multi_label else "softmax", name="probabilities")(logits)
    return keras.Model(images, probabilities, name="finetune")


def first_epochs(backbone: keras.Model, layers_per_epoch: int) -> dict[int, int]:
    """When each weight that learns begins to: the last layers with the first epoch, those before them later.

    Args:
        backbone: as `freeze` leaves it.
        layers_per_epoch: layers that begin with each epoch.

    Returns:
        `id` of each variable -> number of its first epoch, from 0.
    """
    learning = [layer for layer in reversed(backbone.layers) if layer.trainable_variables]
    return {
        id(variable): place // layers_per_epoch
        for place, layer in enumerate(learning)
        for variable in layer.trainable_variables
    }


def count_parameters(layers: Sequence[TunedLayer]) -> tuple[int, int]:
    """How many numbers learn, and how many there are."""
    return sum(layer.parameters for layer in layers if layer.trainable), sum(layer.parameters for layer in layers)
