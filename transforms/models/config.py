"""What a user asks for: an `EmbedderConfig`, which becomes an `EmbedderSpec` once its weights are known."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Interpolation, Pooling, Precision, ResizeMode
from transforms.models.architectures import get_architecture
from transforms.models.weights import is_file

E = TypeVar("E", bound=enum.StrEnum)

ImageSize = tuple[int, int] | Literal["default", "native"] | None


@dataclass(frozen=True)
class EmbedderConfig:
    """A request for an embedder; `spec` gives the identity it has once the weights are resolved.

    Attributes:
        model: name in `keras.applications`, such as "VGG16".
        weights: "imagenet", "none" (random), "random:SEED", or a local path or URL of a weights file.
        layers: names of the layers whose outputs are pooled; empty for the backbone's last.
        pooling: how a feature map becomes a vector: "avg", "max" or "flatten".
        image_size: (height, width) in pixels that images are resized to; "default" for the size the model was trained
            at; "native" or None to keep each image's own size.
        interpolation: filter used when resizing: "bilinear", "nearest", "bicubic" or "lanczos".
        resize_mode: what resizing does to another aspect ratio: "stretch", "center_crop" or "pad".
        precision: what the backbone computes in: "float32", "bfloat16" or "float16"; vectors are always float32.

    Raises:
        ImagebeamError: for an unknown model or option, or a size the model cannot take.
    """

    model: str = "VGG16"
    weights: str = "imagenet"
    layers: tuple[str, ...] = ()
    pooling: Pooling | str = Pooling.AVG
    image_size: ImageSize = "default"
    interpolation: Interpolation | str = Interpolation.BILINEAR
    resize_mode: ResizeMode | str = ResizeMode.STRETCH
    precision: Precision | str = Precision.FLOAT32

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _names(self.layers))
        for name, kind in (
            ("pooling", Pooling),
            ("interpolation", Interpolation),
            ("resize_mode", ResizeMode),
            ("precision", Precision),
        ):
            object.__setattr__(self, name, _member(kind, name, getattr(self, name)))
        is_file(self.weights)  # raises for what is neither a keyword nor a file
        object.__setattr__(self, "image_size", self._resolve_size())
        if self.image_size is None and self.pooling == Pooling.FLATTEN:
            raise ImagebeamError(
                "Flattening images of their own sizes gives vectors of varying length. Received: pooling=flatten, "
                "image_size=native. Use pooling avg or max, or a fixed image_size."
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that images are resized to, or None to keep each image's own."""
        height_width = self.image_size
        if height_width is None or isinstance(height_width, str):
            return None
        return height_width[0], height_width[1]

    def _resolve_size(self) -> tuple[int, int] | None:
        architecture, size = get_architecture(self.model), self.image_size
        if size is None or size == "native":
            architecture.check_size(None)
            return None
        if size == "default":
            return architecture.default_size, architecture.default_size
        if isinstance(size, str) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ImagebeamError(
                f"image_size is (height, width) in pixels, 'native' or 'default'. Received: {self.image_size!r}."
            )
        architecture.check_size((size[0], size[1]))
        return size[0], size[1]

    def spec(self, weights_sha256: str, graph_sha256: str = "") -> EmbedderSpec:
        """The identity of this request, given the SHA-256 of the weight values and of the graph they are used in."""
        return EmbedderSpec(
            self.model,
            weights_sha256,
            self.layers,
            Pooling(self.pooling),
            self.size,
            Interpolation(self.interpolation),
            ResizeMode(self.resize_mode),
            Precision(self.precision),
            graph_sha256=graph_sha256,
        )


def _names(layers: str | Sequence[str]) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _member(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise ImagebeamError(f"{name} is one of {', '.join(kind)}. Received: {value!r}.") from None
