"""What fine-tuning does to a backbone: which layers learn, what images go through on the way, what learns with it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec
from transforms.models.architectures import nearest
from transforms.models.embedder import assemble
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
        name: of the layer.
        type: its class.
        output_shape: of one image.
        parameters: how many numbers it has.
        trainable: whether it learns; a layer without numbers never does.
    """

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    parameters: int
    trainable: bool


def freeze(backbone: keras.Model, spec: EmbedderSpec, *, first: int = 0, until: str | None = None) -> list[TunedLayer]:
    """Decide which layers of a backbone learn.

    Batch normalisation never does, which is also what makes it run as in inference while the others learn: of the
    small batches of fine-tuning it would learn noise, and what came before and after would no longer fit. (In Keras 3
    calling the backbone with `training=False` is not enough: the model around it overrides that.)

    Args:
        backbone: its layers' `trainable` is set.
        spec: whose layers say how much of the backbone is used.
        first: so many layers stay as they are, counted as Keras and `imagebeam layers` list them, the input too.
        until: all layers up to and with this one stay as they are.

    Returns:
        The layers that are used, in order.

    Raises:
        ImagebeamError: for more layers than there are, or an unknown one.
    """
    import keras

    wanted = [backbone.get_layer(name).output for name in spec.layers] or [backbone.output]
    used = {layer.name for layer in keras.Model(backbone.input, wanted).layers}
    names = [layer.name for layer in backbone.layers]
    if until is not None:
        if until not in names:
            raise ImagebeamError(
                f"{spec.model} has no such layer. Received: --freeze_until {until!r}. {nearest(until, names)}"
            )
        first = names.index(until) + 1
    if first > len(names):
        raise ImagebeamError(f"{spec.model} has {len(names)} layers. Received: --freeze_layers {first}.")
    for number, layer in enumerate(backbone.layers):
        layer.trainable = number >= first
        for part in layer._flatten_layers():  # A model of one's own may have it inside of a layer.
            if isinstance(part, keras.layers.BatchNormalization):
                part.trainable = False
    return [
        TunedLayer(
            layer.name,
            type(layer).__name__,
            tuple(layer.output.shape[1:]),
            layer.count_params(),
            bool(layer.trainable_weights),
        )
        for layer in backbone.layers
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


def count_parameters(layers: Sequence[TunedLayer]) -> tuple[int, int]:
    """How many numbers learn, and how many there are."""
    return sum(layer.parameters for layer in layers if layer.trainable), sum(layer.parameters for layer in layers)
