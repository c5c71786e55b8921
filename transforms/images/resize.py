"""Resize like Keras and Pillow."""

from __future__ import annotations

import PIL.Image
from PIL import ImageOps

from transforms.core.spec import Interpolation, ResizeMode
from transforms.images.errors import ImageError
from transforms.images.options import ImageOptions
from transforms.images.resize_aliased import resize_aliased

_FILTERS = {
    Interpolation.BILINEAR: PIL.Image.Resampling.BILINEAR,
    Interpolation.NEAREST: PIL.Image.Resampling.NEAREST,
    Interpolation.BICUBIC: PIL.Image.Resampling.BICUBIC,
    Interpolation.LANCZOS: PIL.Image.Resampling.LANCZOS,
}


def resize(image: PIL.Image.Image, options: ImageOptions) -> PIL.Image.Image:
    """Resizes an upright RGB image as the options say, or checks that it is large enough to keep its size."""
    if options.image_size is None:
        least_height, least_width = options.min_size or (1, 1)
        if image.height < least_height or image.width < least_width:
            raise ImageError(
                "too_small",
                f"The image has {image.width} x {image.height} pixels, fewer than the model's smallest input,"
                f" {least_width} x {least_height}.",
            )
        return image
    height, width = options.image_size
    size, resample = (width, height), _FILTERS[options.interpolation]
    if image.size == size:
        return image
    match options.resize_mode:
        case ResizeMode.STRETCH:
            return image.resize(size, resample)
        case ResizeMode.STRETCH_ALIASED:
            return resize_aliased(image, height, width, nearest=options.interpolation == Interpolation.NEAREST)
        case ResizeMode.CENTER_CROP:
            return ImageOps.fit(image, size, resample)
        case ResizeMode.PAD:
            scale = min(width / image.width, height / image.height)
            if min(image.size) * scale <= 0.5:  # `ImageOps.pad` would round the short side down to no pixels at all.
                inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                image = image.resize(inner, resample)
            return ImageOps.pad(image, size, resample, color="black")
