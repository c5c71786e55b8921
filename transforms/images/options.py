"""The options of the image policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transforms.core.errors import ImagebeamError
from transforms.core.field_types import convert_fields
from transforms.core.limits import MAX_IMAGE_PIXELS
from transforms.core.spec import EmbedderSpec, Interpolation, JpegDecode, ResizeMode, check_decoding
from transforms.core.text import differences
from transforms.images.base import Limits


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How bytes become pixels.

    Attributes:
        image_size: (height, width) in pixels that every image is resized to, or None to keep each image's own.
        interpolation: the filter used when resizing.
        resize_mode: what happens to the aspect ratio when resizing; see `decode_image`.
        max_image_pixels: images of more pixels are refused.
        min_size: (height, width) below which an image that keeps its own size is refused: the model's smallest input.
        accept_truncated: a JPEG whose data stops early is taken, grey where it has none, and not a failure.
        dicom_frame: which frame of a DICOM file counts, from 1, or "middle".
        scale_jpegs: large JPEGs are decoded at a fraction of their size.

    Raises:
        ImagebeamError: for a value of another type, a size that is not positive, or settings that contradict each
            other.
    """

    image_size: tuple[int, int] | None = (224, 224)
    interpolation: Interpolation = Interpolation.BILINEAR
    resize_mode: ResizeMode = ResizeMode.STRETCH
    max_image_pixels: int = MAX_IMAGE_PIXELS
    min_size: tuple[int, int] | None = None
    accept_truncated: bool = False
    dicom_frame: int | str = 1
    scale_jpegs: bool = False

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.image_size is not None and min(self.image_size) < 1:
            raise ImagebeamError(f"image_size must be positive (height, width) or None. Received: {self.image_size}.")
        if self.max_image_pixels < 1:
            raise ImagebeamError(f"max_image_pixels must be at least 1. Received: {self.max_image_pixels}.")
        check_decoding(
            image_size=self.image_size,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            scaled=self.scale_jpegs,
            dicom_frame=self.dicom_frame,
        )

    @classmethod
    def from_spec(
        cls,
        spec: EmbedderSpec,
        *,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        min_size: tuple[int, int] | None = None,
        accept_truncated: bool = False,
    ) -> ImageOptions:
        """The options that a spec asks for; the rest is the run's, since it changes the pixels of no sound image."""
        return cls(
            spec.image_size,
            spec.interpolation,
            spec.resize_mode,
            max_image_pixels,
            min_size,
            accept_truncated,
            spec.dicom_frame,
            scale_jpegs=spec.jpeg_decode == JpegDecode.SCALED,
        )

    def check_spec(self, spec: EmbedderSpec) -> None:
        """Refuse a spec of other pixels: vectors would carry a fingerprint that says what was not done.

        Raises:
            ImagebeamError: naming what differs.
        """
        wanted = ImageOptions.from_spec(spec)
        names = ("image_size", "interpolation", "resize_mode", "dicom_frame", "scale_jpegs")
        mine, theirs = ({name: getattr(options, name) for name in names} for options in (self, wanted))
        if found := list(differences(mine, theirs).values()):
            raise ImagebeamError(
                f"The images are decoded otherwise than the model's spec says ({'; '.join(found)}). Make the options "
                "of the spec, with ImageOptions.from_spec(model.spec)."
            )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImageOptions:
        """Of what JSON makes of the fields."""
        sizes = {name: fields[name] and tuple(fields[name]) for name in ("image_size", "min_size")}
        kinds = {
            "interpolation": Interpolation(fields["interpolation"]),
            "resize_mode": ResizeMode(fields["resize_mode"]),
        }
        return cls(**{**fields, **sizes, **kinds})

    @property
    def limits(self) -> Limits:
        """What decoders need to know of this."""
        side = 2 * max(self.image_size) if self.scale_jpegs and self.image_size is not None else None
        return Limits(self.max_image_pixels, self.accept_truncated, self.dicom_frame, side)
