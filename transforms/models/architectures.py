"""The architectures of `keras.applications`: their sizes, and how to build each with its own preprocessing."""

from __future__ import annotations

import collections
import contextlib
import difflib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ImagebeamError

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

    def build(
        self, image_size: tuple[int, int] | None, *, include_top: bool = False, weights: str | None = None
    ) -> keras.Model:
        """The bare Keras model, as `keras.applications` makes it, without pooling or preprocessing.

        Args:
            image_size: (height, width) in pixels, or None for any size.
            include_top: with the ImageNet classifier on top; `image_size` is then the default size.
            weights: None for fresh random values, or "imagenet" (downloaded by Keras, or found in its cache).

        Raises:
            ImagebeamError: if `image_size` is below `min_size`, or is not the default size although the top is wanted.
        """
        import keras

        if image_size is not None:
            self.check_size(image_size)
        if include_top and image_size != (self.default_size, self.default_size):
            raise ImagebeamError(
                f"The classifier layers of {self.name} need its default size. Received: image_size="
                f"{size_text(image_size)}. Use --image_size {self.default_size}x{self.default_size}, or a layer below."
            )
        height, width = image_size or (None, None)
        constructor = getattr(keras.applications, self.name)
        with _fresh_layer_names(), warnings.catch_warnings():
            # MobileNets warn of sizes their published weights are not listed for, though any size loads them.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            return constructor(include_top=include_top, weights=weights, input_shape=(height, width, 3))

    def preprocess(self, pixels: Any) -> Any:
        """Float RGB pixels in 0..255 -> what this model was trained on, by the model's own `preprocess_input`."""
        import keras

        module = sys.modules[getattr(keras.applications, self.name).__module__]
        return module.preprocess_input(pixels)

    def check_size(self, image_size: tuple[int, int]) -> None:
        """Refuse a size the architecture cannot take.

        Raises:
            ImagebeamError: naming the smallest size.
        """
        if min(image_size) < self.min_size:
            raise ImagebeamError(
                f"{self.name} takes images of at least {self.min_size}x{self.min_size}. Received: image_size="
                f"{size_text(image_size)}. Choose a larger --image_size (its default is "
                f"{self.default_size}x{self.default_size})."
            )


@contextlib.contextmanager
def _fresh_layer_names() -> Iterator[None]:
    """Layers made inside are numbered as in a new process.

    Keras numbers the layers that its applications leave unnamed ("activation_12") by a counter of the process, so that
    a second model of one kind would have other names; but names are what `--layer` takes. `keras.utils.clear_session`
    would reset the counter too, and with it the names in a model the caller is about to compose.
    """
    from keras.src.backend.common import global_state

    before = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


def get_architecture(name: str) -> Architecture:
    """Look an architecture up by its Keras name.

    Raises:
        ImagebeamError: for an unknown name, with the nearest known ones.
    """
    if name not in _SIZES:
        raise ImagebeamError(f"No such model. Received: model={name!r}. {nearest(name, ARCHITECTURES)}")
    return Architecture(name, *_SIZES[name])


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """A sentence that names the known names nearest to a wrong one, whatever its case."""
    folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), folded, n=5, cutoff=0.5)
    if matches:
        return f"Did you mean {', '.join(folded[match] for match in matches)}?"
    return f"Known are {', '.join(known)}."


def size_text(image_size: tuple[int, int] | None) -> str:
    """(224, 224) -> "224x224", None -> "native": the spelling of the command line."""
    return "native" if image_size is None else f"{image_size[0]}x{image_size[1]}"
