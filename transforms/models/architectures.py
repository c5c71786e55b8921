"""The architectures of `keras.applications`: input sizes, constructors and preprocessing."""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ImagebeamError
from transforms.core.text import size_text
from transforms.models.keras_import import import_keras, pinned_keras
from transforms.models.keras_internals import fresh_layer_names

if TYPE_CHECKING:
    import keras

# Default and smallest input sizes in pixels, from `default_size` and `min_size` in each module of keras.applications
# (Keras 3.15.1); tests/transforms/models/test_architectures.py holds the table against Keras itself.
_SIZES: dict[str, tuple[int, int]] = {
    "ConvNeXtTiny": (224, 32),
    "ConvNeXtSmall": (224, 32),
    "ConvNeXtBase": (224, 32),
    "ConvNeXtLarge": (224, 32),
    "ConvNeXtXLarge": (224, 32),
    "DenseNet121": (224, 32),
    "DenseNet169": (224, 32),
    "DenseNet201": (224, 32),
    "EfficientNetB0": (224, 32),
    "EfficientNetB1": (240, 32),
    "EfficientNetB2": (260, 32),
    "EfficientNetB3": (300, 32),
    "EfficientNetB4": (380, 32),
    "EfficientNetB5": (456, 32),
    "EfficientNetB6": (528, 32),
    "EfficientNetB7": (600, 32),
    "EfficientNetV2B0": (224, 32),
    "EfficientNetV2B1": (240, 32),
    "EfficientNetV2B2": (260, 32),
    "EfficientNetV2B3": (300, 32),
    "EfficientNetV2S": (384, 32),
    "EfficientNetV2M": (480, 32),
    "EfficientNetV2L": (480, 32),
    "InceptionResNetV2": (299, 75),
    "InceptionV3": (299, 75),
    "MobileNet": (224, 32),
    "MobileNetV2": (224, 32),
    "MobileNetV3Large": (224, 32),
    "MobileNetV3Small": (224, 32),
    "NASNetLarge": (331, 32),
    "NASNetMobile": (224, 32),
    "ResNet50": (224, 32),
    "ResNet101": (224, 32),
    "ResNet152": (224, 32),
    "ResNet50V2": (224, 32),
    "ResNet101V2": (224, 32),
    "ResNet152V2": (224, 32),
    "VGG16": (224, 32),
    "VGG19": (224, 32),
    "Xception": (299, 71),
}

_IMAGENET_STDDEV = (0.229, 0.224, 0.225)

ARCHITECTURES = tuple(_SIZES)
"""Names of every model of `keras.applications`."""


@dataclass(frozen=True)
class Architecture:
    """One model of `keras.applications`.

    Attributes:
        name: as Keras spells it.
        default_size: height and width in pixels the published weights were trained at.
        min_size: smallest height and width in pixels the architecture accepts.
    """

    name: str
    default_size: int
    min_size: int

    @property
    def default_image_size(self) -> tuple[int, int]:
        """(height, width) in pixels the published weights were trained at."""
        return self.default_size, self.default_size

    @property
    def normalizes_after_pooling(self) -> bool:
        """Whether Keras' `pooling=` argument gives other vectors than pooling the model's last feature map.

        ConvNeXt pools first and normalizes the pooled vector; without pooling it normalizes the map.
        """
        return self.name.startswith("ConvNeXt")

    @property
    def takes_any_size(self) -> bool:
        """Whether one model takes images of different sizes; NASNet's crops are fixed when it is built."""
        return not self.name.startswith("NASNet")

    @property
    def rescales_for_imagenet(self) -> bool:
        """Whether Keras adds a layer to the graph for `weights="imagenet"` (EfficientNetB0 to B7)."""
        return self.name.startswith("EfficientNetB")

    def build(
        self,
        image_size: tuple[int, int] | None,
        *,
        include_top: bool = False,
        weights: str | None = None,
        pooling: str | None = None,
        classes: int = 1000,
        rescaled: bool = False,
    ) -> keras.Model:
        """The bare Keras model, as `keras.applications` makes it, without preprocessing.

        Args:
            image_size: (height, width) in pixels, or None for any size.
            include_top: with the ImageNet classifier on top; `image_size` is then the default size.
            weights: None for fresh random values, or "imagenet" (downloaded by Keras, or found in its cache).
            pooling: None for feature maps, or "avg" or "max" for Keras' own pooling.
            classes: outputs of the classifier, where there is one.
            rescaled: with the layer that Keras adds for `weights="imagenet"`, see `rescales_for_imagenet`.

        Raises:
            ImagebeamError: if the architecture cannot take `image_size`, or it is not the default size although the
                top is wanted.
        """
        import_keras()
        import keras

        self.check_size(image_size)
        if include_top and image_size != (self.default_size, self.default_size):
            raise ImagebeamError(
                f"The classifier layers of {self.name} need its default size. Received: image_size="
                f"{size_text(image_size)}. Use --image_size {self.default_size}x{self.default_size}, or a layer below."
            )
        height, width = image_size or (None, None)
        constructor = getattr(keras.applications, self.name)
        with pinned_keras(), fresh_layer_names(), warnings.catch_warnings():
            # MobileNets warn of sizes their published weights are not listed for, though any size loads them.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            model = constructor(
                include_top=include_top,
                weights=weights,
                input_shape=(height, width, 3),
                pooling=pooling,
                classes=classes,
            )
            return _rescale(model) if rescaled and weights is None else model

    def preprocess(self, pixels: Any) -> Any:
        """Preprocess float RGB pixels in 0..255 with the model's own `preprocess_input`."""
        import keras

        module = sys.modules[getattr(keras.applications, self.name).__module__]
        return module.preprocess_input(pixels)

    def check_size(self, image_size: tuple[int, int] | None) -> None:
        """Refuse a size the architecture cannot take.

        Args:
            image_size: (height, width) in pixels, or None for images of any size.

        Raises:
            ImagebeamError: naming the smallest size, or that the size must be fixed.
        """
        default = f"its default is {self.default_size}x{self.default_size}"
        if image_size is None:
            if not self.takes_any_size:
                raise ImagebeamError(
                    f"{self.name} needs a fixed image size. Received: image_size=native. Give --image_size ({default})."
                )
        elif min(image_size) < self.min_size:
            raise ImagebeamError(
                f"{self.name} takes images of at least {self.min_size}x{self.min_size}. Received: image_size="
                f"{size_text(image_size)}. Choose a larger --image_size ({default})."
            )


def _rescale(model: keras.Model) -> keras.Model:
    """Put behind an EfficientNet's normalization the layer that Keras adds for `weights="imagenet"`.

    Its factors are 1 / sqrt(standard deviation of ImageNet's pixels); see keras/src/applications/efficientnet.py.
    """
    import keras

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        if isinstance(layer, keras.layers.Normalization):
            outputs = keras.layers.Rescaling([1.0 / math.sqrt(deviation) for deviation in _IMAGENET_STDDEV])(outputs)
        return outputs

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def get_architecture(name: str) -> Architecture:
    """Look an architecture up by its Keras name.

    Raises:
        ImagebeamError: for an unknown name, with the nearest known ones.
    """
    if name not in _SIZES:
        raise ImagebeamError(f"No such model. Received: model={name!r}. {nearest(name, ARCHITECTURES)}")
    return Architecture(name, *_SIZES[name])


def nearest(name: str, known: tuple[str, ...] | list[str], most: int = 5) -> str:
    """A sentence that names the known names nearest to a wrong one, `most` of them at most, whatever its case."""
    folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.5)
    if matches:
        return f"Did you mean {', '.join(folded[match] for match in matches)}?"
    more = f" and {len(known) - _MOST_LISTED:,} more" if len(known) > _MOST_LISTED else ""
    return f"Known are {', '.join(known[:_MOST_LISTED])}{more}."


_MOST_LISTED = 50
"""Names in a message; a model may have hundreds of layers."""
