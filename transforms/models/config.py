"""`EmbedderConfig`: the requested model. It becomes an `EmbedderSpec` once its weights are known."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from transforms.core.errors import ImagebeamError
from transforms.core.field_types import plain, typed
from transforms.core.spec import (
    Calibration,
    EmbedderSpec,
    Interpolation,
    JpegDecode,
    Pooling,
    Precision,
    Preprocessing,
    ResizeMode,
    check_decoding,
)
from transforms.models.architectures import Architecture
from transforms.models.own_model import OwnModel, find_model
from transforms.models.weights.load import is_file

E = TypeVar("E", bound=enum.StrEnum)

ImageSize = tuple[int, int] | Literal["default", "native"] | None


@dataclass(frozen=True)
class EmbedderConfig:
    """A request for an embedder; `spec` gives the identity it has once the weights are resolved.

    Attributes:
        model: name in `keras.applications`, such as "VGG16", or the path or URL of a Keras 3 file (`.keras`).
        weights: "imagenet", "none" (random), "random:SEED", or a local path or URL of a weights file; left out, a
            `.keras` file brings its own.
        layers: names of the layers whose outputs are pooled; empty for the backbone's last.
        pooling: how a feature map becomes a vector: "avg", "max" or "flatten".
        image_size: (height, width) in pixels that images are resized to; "default" for the size the model was trained
            at; "native" or None to keep each image's own size.
        interpolation: filter used when resizing: "bilinear", "nearest", "bicubic" or "lanczos".
        resize_mode: what resizing does to another aspect ratio: "stretch", "stretch_aliased" (without
            antialiasing, as TensorFlow resizes), "center_crop" or "pad".
        precision: what the backbone computes in: "float32", "bfloat16", "float16" or "int8"; vectors are always
            float32. An int8 model is calibrated on images by `imagebeam extract`: no request alone can build it.
        preprocessing: what a `.keras` file is given: "none" for RGB values in 0..255, which is the default, "unit",
            "tf", "torch" or "caffe" (see `Preprocessing`). A model of `keras.applications` has its own.
        jpeg_decode: "exact", or "scaled": JPEGs more than twice as large as the image size are decoded at a fraction
            of their size, which is faster and changes the vectors a little.
        calibration: of an int8 model that exists already.
        dicom_frame: which frame of a DICOM file counts, from 1, or "middle".

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
    preprocessing: Preprocessing | str | None = None
    jpeg_decode: JpegDecode | str = JpegDecode.EXACT
    calibration: Calibration | None = None
    dicom_frame: int | str = 1

    def __post_init__(self) -> None:
        layers: Any = self.layers
        if isinstance(layers, str):
            layers = (layers,)
        elif isinstance(layers, Iterable) and not isinstance(layers, bytes | Mapping | Set):  # Layers have an order.
            layers = tuple(layers)
        object.__setattr__(self, "layers", typed("layers", layers, tuple[str, ...]))
        typed("model", self.model, str)
        typed("weights", self.weights, str)
        typed("calibration", self.calibration, Calibration | None)
        for name, kind in (
            ("pooling", Pooling),
            ("interpolation", Interpolation),
            ("resize_mode", ResizeMode),
            ("precision", Precision),
            ("jpeg_decode", JpegDecode),
        ):
            object.__setattr__(self, name, _member(kind, name, getattr(self, name)))
        object.__setattr__(self, "dicom_frame", typed("dicom_frame", self.dicom_frame, int | Literal["middle"]))
        self._check_own_model()
        is_file(self.weights)  # raises for what is neither a keyword nor a file
        object.__setattr__(self, "image_size", self._resolve_size())
        if self.image_size is None and self.pooling == Pooling.FLATTEN:
            raise ImagebeamError(
                "Flattening images of their own sizes gives vectors of varying length. Received: pooling=flatten, "
                "image_size=native. Use pooling avg or max, or a fixed image_size."
            )
        check_decoding(
            image_size=self.size,
            interpolation=Interpolation(self.interpolation),
            resize_mode=ResizeMode(self.resize_mode),
            scaled=self.jpeg_decode == JpegDecode.SCALED,
            dicom_frame=self.dicom_frame,
        )

    @property
    def architecture(self) -> Architecture | OwnModel:
        """What is known of the model before it is built."""
        return find_model(self.model)

    def _check_own_model(self) -> None:
        if not isinstance(self.architecture, OwnModel):
            if self.preprocessing is not None:
                raise ImagebeamError(
                    f"{self.model} has its own preprocessing. Received: preprocessing={self.preprocessing!r}. Leave it "
                    "out."
                )
            return
        object.__setattr__(
            self, "preprocessing", _member(Preprocessing, "preprocessing", self.preprocessing or Preprocessing.NONE)
        )
        if self.weights != "imagenet" and not self.weights.endswith(".weights.h5"):
            raise ImagebeamError(
                f"A model of one's own brings its weights. Received: weights={self.weights!r}. Leave it out, or give a "
                ".weights.h5 file that its save_weights wrote."
            )

    @property
    def has_own_weights(self) -> bool:
        """Whether the weights are those in the model's file."""
        return isinstance(self.architecture, OwnModel) and self.weights == "imagenet"

    @property
    def description(self) -> str:
        """Model and weights, in words."""
        return self.model if self.has_own_weights else f"{self.model} with weights {self.weights}"

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that images are resized to, or None to keep each image's own."""
        height_width = self.image_size
        if height_width is None or isinstance(height_width, str):
            return None
        return height_width[0], height_width[1]

    def _resolve_size(self) -> tuple[int, int] | None:
        architecture, size = self.architecture, plain(self.image_size)
        if size is None or size == "native":
            architecture.check_size(None)
            return None
        if size == "default":
            return architecture.default_image_size
        if (
            not isinstance(size, tuple | list)
            or len(size) != 2
            or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in map(plain, size))
        ):
            raise ImagebeamError(
                f"image_size is (height, width) in pixels, 'native' or 'default'. Received: {self.image_size!r}."
            )
        height, width = map(plain, size)
        architecture.check_size((height, width))
        return height, width

    def spec(self, weights_sha256: str, graph_sha256: str = "") -> EmbedderSpec:
        """The identity of this request, given the SHA-256 of the weight values and of the graph they are used in."""
        architecture = self.architecture
        return EmbedderSpec(
            architecture.identity if isinstance(architecture, OwnModel) else self.model,
            weights_sha256,
            self.layers,
            Pooling(self.pooling),
            self.size,
            Interpolation(self.interpolation),
            ResizeMode(self.resize_mode),
            Precision(self.precision),
            graph_sha256=graph_sha256,
            preprocessing=None if self.preprocessing is None else Preprocessing(self.preprocessing),
            calibration=self.calibration,
            dicom_frame=self.dicom_frame,
            jpeg_decode=JpegDecode.SCALED if self.jpeg_decode == JpegDecode.SCALED else None,
        )


def _member(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise ImagebeamError(f"{name} is one of {', '.join(kind)}. Received: {value!r}.") from None
