"""The interface of decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image

from transforms.images.errors import ImageError


class NeedsIsolation(Exception):  # noqa: N818
    """Not an error: this image is to be decoded in a process of its own (`transforms.images.isolated`)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder may spend, and let pass.

    Attributes:
        max_pixels: images of more pixels are refused, and so is whatever would allocate as much on the way to fewer.
        accept_truncated: a JPEG whose data stops early is decoded as far as it goes.
        dicom_frame: which frame of a DICOM file counts, from 1, or "middle".
        least_side: a JPEG may be decoded at a fraction of its size that leaves both sides as long; None for all of it.
        killable: the decoder works in a process that may crash, and that is ended if it takes too long.
        on_size: called with each number of pixels that passes `check`: memory for as many is needed.
    """

    max_pixels: int
    accept_truncated: bool = False
    dicom_frame: int | str = 1
    least_side: int | None = None
    killable: bool = False
    on_size: Callable[[int], None] | None = None

    def require_killable(self) -> None:
        """Require a process that can be killed, for decoders whose time the image size does not bound.

        Raises:
            NeedsIsolation: if nothing would end it.
        """
        if not self.killable:
            raise NeedsIsolation

    def check(self, width: int, height: int, what: str = "The image") -> None:
        """Refuse a size in pixels that is beyond the limit.

        Raises:
            ImageError: ``too_many_pixels``, or ``undecodable`` for a size of nothing.
        """
        if width < 1 or height < 1:
            raise ImageError("undecodable", f"{what} has {width} x {height} pixels by its header.")
        if width * height > self.max_pixels:
            raise ImageError(
                "too_many_pixels",
                f"{what} has {width} x {height} pixels, more than the {self.max_pixels} allowed.",
            )
        if self.on_size is not None:
            self.on_size(width * height)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image before it is resized.

    Attributes:
        image: RGB, upright.
        width: as stored in the file, in pixels, before orientation.
        height: likewise.
        icc_profile: whether the file carries an ICC colour profile, which is not applied.
    """

    image: PIL.Image.Image
    width: int
    height: int
    icc_profile: bool = False
