"""The spec: everything that determines an embedding, and its fingerprint."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from transforms.core.errors import ImagebeamError
from transforms.core.text import differences, size_text

COLOR_POLICY = "imagebeam-2"
"""Version of the image policy (`transforms.images.decode`): a change of pixels raises it, and so the fingerprint."""


class Pooling(enum.StrEnum):
    """How a feature map [height, width, channels] becomes a vector."""

    AVG = "avg"
    MAX = "max"
    FLATTEN = "flatten"


class Interpolation(enum.StrEnum):
    """Pillow's resampling filters, under the names Keras gives them."""

    BILINEAR = "bilinear"
    NEAREST = "nearest"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class ResizeMode(enum.StrEnum):
    """How an image of another aspect ratio meets the image size."""

    STRETCH = "stretch"
    STRETCH_ALIASED = "stretch_aliased"
    """Stretched without antialiasing: from the four nearest pixels, as TensorFlow does it."""
    CENTER_CROP = "center_crop"
    PAD = "pad"


class JpegDecode(enum.StrEnum):
    """From how many of a JPEG's pixels an image is resized."""

    EXACT = "exact"
    SCALED = "scaled"
    """Large ones are decoded at an eighth to seven eighths of their size, as long as twice the image size is left."""


class Precision(enum.StrEnum):
    """What the backbone computes in: a Keras dtype policy, or int8; embeddings always leave as float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    """Weights and activations of 8 bits, their ranges found on a sample of images: `transforms.models.engines.int8`."""


@dataclass(frozen=True)
class Calibration:
    """What an int8 model is, beside the float32 model that it approximates.

    Attributes:
        images_sha256: SHA-256 of the SHA-256 digests of the images that it was calibrated on, in their order.
        model_sha256: SHA-256 of the int8 model: of its graph and its numbers.
    """

    images_sha256: str
    model_sha256: str


class Preprocessing(enum.StrEnum):
    """What a model of one's own is given; "caffe", "tf" and "torch" are Keras' names.

    "none" gives the RGB values 0..255 as they are, for a model that has its preprocessing inside; "unit" scales them to
    0..1, "tf" to -1..1; "torch" scales to 0..1 and normalizes by ImageNet's mean and deviation; "caffe" turns RGB into
    BGR and subtracts ImageNet's mean.
    """

    NONE = "none"
    UNIT = "unit"
    TF = "tf"
    TORCH = "torch"
    CAFFE = "caffe"


_ALIASED = (Interpolation.BILINEAR, Interpolation.NEAREST)


def check_decoding(
    *,
    image_size: tuple[int, int] | None,
    interpolation: Interpolation,
    resize_mode: ResizeMode,
    scaled: bool,
    dicom_frame: int | str,
) -> None:
    """Refuse settings of decoding and resizing that contradict each other.

    Args:
        image_size: (height, width) in pixels, or None for each image's own.
        interpolation: filter used when resizing.
        resize_mode: what happens to the aspect ratio.
        scaled: whether large JPEGs are decoded at a fraction of their size.
        dicom_frame: a number, or "middle".

    Raises:
        ImagebeamError: naming the settings, their values and the remedy.
    """
    if dicom_frame != "middle" and (isinstance(dicom_frame, str) or dicom_frame < 1):
        raise ImagebeamError(f"dicom_frame is a number from 1, or 'middle'. Received: {dicom_frame!r}.")
    if resize_mode == ResizeMode.STRETCH_ALIASED and interpolation not in _ALIASED:
        raise ImagebeamError(
            f"Without antialiasing images are resized by {' or '.join(_ALIASED)}. Received: resize_mode="
            f"{resize_mode}, interpolation={interpolation}. Choose another of the two."
        )
    if scaled and (image_size is None or resize_mode == ResizeMode.STRETCH_ALIASED):
        raise ImagebeamError(
            "JPEGs can be decoded scaled where they are resized with antialiasing. Received: jpeg_decode=scaled, "
            f"image_size={size_text(image_size)}, resize_mode={resize_mode}. Decode them exactly, or choose another "
            "size or mode."
        )


_LATER = {"preprocessing": None, "calibration": None, "dicom_frame": 1, "jpeg_decode": None}
"""Fields that specs had not at first, and what they mean where they are left out: a fingerprint stays what it was."""


@dataclass(frozen=True)
class EmbedderSpec:
    """Everything that decides the numbers in an embedding, and nothing else.

    Attributes:
        model: name in `keras.applications`, such as "VGG16"; "file:SHA256" for a `.keras` file of one's own.
        weights_sha256: SHA-256 of the backbone's weight values (see `transforms.models.weights.load.digest`).
        layers: names of the layers whose outputs are pooled; empty for the backbone's last.
        pooling: how each layer's feature map becomes a vector.
        image_size: (height, width) in pixels every image is resized to, or None to keep each image's own ("native").
        interpolation: filter used when resizing.
        resize_mode: what happens to the aspect ratio when resizing.
        precision: what the backbone computes in.
        color_policy: version of the rules that turn bytes into RGB.
        graph_sha256: SHA-256 of the operations the weights are used in (see `transforms.models.graph_digest`); empty in
            specs that were written before it was recorded.
        preprocessing: of a model of one's own; None for a built-in one, which has its own.
        calibration: of an int8 model; None at other precisions.
        dicom_frame: which frame of a DICOM file counts, from 1, or "middle".
        jpeg_decode: SCALED where not all pixels of a JPEG are decoded; None for all of them.
    """

    model: str
    weights_sha256: str
    layers: tuple[str, ...] = ()
    pooling: Pooling = Pooling.AVG
    image_size: tuple[int, int] | None = (224, 224)
    interpolation: Interpolation = Interpolation.BILINEAR
    resize_mode: ResizeMode = ResizeMode.STRETCH
    precision: Precision = Precision.FLOAT32
    color_policy: str = COLOR_POLICY
    graph_sha256: str = ""
    preprocessing: Preprocessing | None = None
    calibration: Calibration | None = None
    dicom_frame: int | str = 1
    jpeg_decode: JpegDecode | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, field by field; without fields of a later version where they have their default."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if not (name in _LATER and value == _LATER[name])
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbedderSpec:
        """The inverse of `to_dict`.

        Raises:
            ImagebeamError: for a field this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ImagebeamError(f"The spec has fields this version does not know: {', '.join(unknown)}.")
        values = dict(values)
        values["layers"] = tuple(values["layers"])
        size = values["image_size"]
        values["image_size"] = None if size is None else (size[0], size[1])
        for name, kind in (
            ("pooling", Pooling),
            ("interpolation", Interpolation),
            ("resize_mode", ResizeMode),
            ("precision", Precision),
        ):
            values[name] = kind(values[name])
        if values.get("preprocessing") is not None:
            values["preprocessing"] = Preprocessing(values["preprocessing"])
        if values.get("jpeg_decode") is not None:
            values["jpeg_decode"] = JpegDecode(values["jpeg_decode"])
        if values.get("calibration") is not None:
            values["calibration"] = Calibration(**values["calibration"])
        return cls(**values)

    def to_json(self) -> str:
        """Canonical JSON, for the fingerprint and the footers of parts."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> EmbedderSpec:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    @property
    def fingerprint(self) -> str:
        """64 hex digits: SHA-256 of the canonical JSON. Equal fingerprints mean comparable embeddings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: EmbedderSpec) -> list[str]:
        """One line for each field in which `other` differs: "pooling: avg != max"."""
        unsaid = {"dicom_frame": _LATER["dicom_frame"], "jpeg_decode": JpegDecode.EXACT}
        mine, theirs = (unsaid | spec.to_dict() | {"image_size": size_text(spec.image_size)} for spec in (self, other))
        return list(differences(mine, theirs).values())


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
