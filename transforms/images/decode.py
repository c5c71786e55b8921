"""Encoded bytes -> uint8 RGB pixels: the image policy.

The rules, each of which has a test: the orientation in EXIF (or XMP) is applied. CMYK and YCCK become RGB by
Pillow's plain arithmetic. 16-bit grey is scaled, ``round(v / 257)``, not clipped; of 16-bit colour Pillow keeps the
high byte. Palettes are expanded; whatever is transparent is laid over white; grey and 1-bit become RGB. Of an
animation or a multi-page file the first frame counts. ICC profiles are ignored, and said to be. An image of more
pixels than allowed is refused by its header. What can't be decoded is an `ImageError` with a reason.

A change of these rules that moves pixels raises `transforms.core.spec.COLOR_POLICY`.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import AvifImagePlugin, ImageOps, TiffImagePlugin
from PIL.ImageFile import ImageFile

from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Interpolation, ResizeMode
from transforms.core.types import Image
from transforms.images.errors import ImageError as ImageError
from transforms.images.errors import explain

IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "ico", "tga"),
        *("avif", "avifs", "jp2", "j2k", "jpf", "jpx", "jpc", "j2c", "pbm", "pgm", "ppm", "pnm", "pfm"),
        *("heic", "heif", "hif", "jxl", "svg"),
    )
)
"""Lower-case suffixes of the files that count as images when a folder is listed.

It holds formats that are not decoded too (HEIC, JPEG XL, SVG): such files are reported as failures with a reason,
not left out in silence.
"""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
"""The Pillow formats that are tried, in this order; a multi-picture JPEG (MPO) opens as JPEG.

A closed list, because Pillow's open one runs other programs (EPS and PS through Ghostscript, with the file's code),
knows scientific containers that are no pictures, and has decoders in pure Python that hold the GIL for minutes. TGA
comes last: it has no signature, so Pillow knows it only by a header that makes sense.
"""

DEFAULT_MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own default warning threshold: a quarter of a GiB at three bytes a pixel."""

_FILTERS = {
    Interpolation.BILINEAR: PIL.Image.Resampling.BILINEAR,
    Interpolation.NEAREST: PIL.Image.Resampling.NEAREST,
    Interpolation.BICUBIC: PIL.Image.Resampling.BICUBIC,
    Interpolation.LANCZOS: PIL.Image.Resampling.LANCZOS,
}

_ORIENTATION_TAG, _BITS_PER_SAMPLE_TAG, _PHOTOMETRIC_TAG = 274, 258, 262
_TRANSPOSES = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How bytes become pixels.

    Attributes:
        image_size: (height, width) in pixels that every image is resized to, or None to keep each image's own.
        interpolation: the filter used when resizing.
        resize_mode: what happens to the aspect ratio when resizing; see `decode_image`.
        max_image_pixels: images of more pixels are refused. See `prepare_pillow` for more than the default.
        min_size: (height, width) below which an image that keeps its own size is refused: the model's smallest input.
    """

    image_size: tuple[int, int] | None = (224, 224)
    interpolation: Interpolation = Interpolation.BILINEAR
    resize_mode: ResizeMode = ResizeMode.STRETCH
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    min_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and min(self.image_size) < 1:
            raise ImagebeamError(f"image_size must be positive (height, width) or None. Received: {self.image_size}.")
        if self.max_image_pixels < 1:
            raise ImagebeamError(f"max_image_pixels must be at least 1. Received: {self.max_image_pixels}.")

    @classmethod
    def from_spec(
        cls,
        spec: EmbedderSpec,
        *,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        min_size: tuple[int, int] | None = None,
    ) -> ImageOptions:
        """The options that a spec asks for; the limits are the run's, since they change no pixels."""
        return cls(spec.image_size, spec.interpolation, spec.resize_mode, max_image_pixels, min_size)


def prepare_pillow(max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> None:
    """Sets what Pillow keeps for the whole process; for a worker's setup, before its decode threads start.

    Pillow refuses by itself any image of more than twice ``PIL.Image.MAX_IMAGE_PIXELS``: that limit is raised (never
    lowered) to `max_image_pixels`. Pillow's log lines about single files are dropped, since every file that gives no
    image is reported as a failure. AVIF images are decoded on one thread each, since they are decoded side by side.
    Calling it again is harmless; `decode_image` works without it, up to Pillow's own limit.
    """
    if PIL.Image.MAX_IMAGE_PIXELS is not None:
        PIL.Image.MAX_IMAGE_PIXELS = max(PIL.Image.MAX_IMAGE_PIXELS, max_image_pixels)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _silence_warnings()


def decode_image(data: bytes, options: ImageOptions) -> Image:
    """Encoded bytes -> an image as the options say; safe to call from many threads.

    Images are turned to RGB first and resized then, from all their pixels (no JPEG draft mode). ``stretch`` gives the
    pixels of ``keras.utils.load_img(path, target_size=..., interpolation=...)``. ``center_crop`` cuts the largest
    centred part of the right aspect ratio and resizes it (``PIL.ImageOps.fit``). ``pad`` resizes the whole image to
    fit inside and centres it on black (``PIL.ImageOps.pad``).

    Args:
        data: an encoded image file.
        options: what to make of it.

    Returns:
        The image; its pixels are a C-contiguous, read-only uint8 array [height, width, 3].

    Raises:
        ImageError: for whatever gives no image, and for nothing else.
    """
    if not data:
        raise ImageError("empty", "The file has no bytes.")
    _silence_warnings()
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as source:
            width, height = _stored_size(source)
            if width * height > options.max_image_pixels:
                raise ImageError(
                    "too_many_pixels",
                    f"The image has {width} x {height} pixels, more than the {options.max_image_pixels} allowed.",
                )
            image = _resize(_oriented(_to_rgb(source), source), options)
            icc_profile_ignored = bool(source.info.get("icc_profile"))
        return Image(np.asarray(image), width, height, icc_profile_ignored)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds, MemoryError and zlib.error among them.
        raise explain(data, error, FORMATS) from error


def _silence_warnings() -> None:
    """Keeps Pillow's warnings about single files (corrupt EXIF, odd tags) from the log, and from becoming errors.

    `warnings.catch_warnings` would not do: it swaps process-wide state, so that it is not safe in threads. One filter
    is put in front once instead. It is looked for at every image, since any other library's `catch_warnings` drops it.
    """
    if not warnings.filters or warnings.filters[0] != _WARNING_FILTER:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _stored_size(source: ImageFile) -> tuple[int, int]:
    """(width, height) before orientation; Pillow already swaps them for a TIFF that lies on its side."""
    if isinstance(source, TiffImagePlugin.TiffImageFile) and source.tag_v2.get(_ORIENTATION_TAG) in (5, 6, 7, 8):
        return source.height, source.width
    return source.width, source.height


def _oriented(image: PIL.Image.Image, source: ImageFile) -> PIL.Image.Image:
    """Applies the orientation in EXIF or XMP.

    `ImageOps.exif_transpose` also writes the EXIF block anew, which costs time and fails for some corrupt ones. A block
    that can't be read has no orientation. Pillow itself turns TIFF images, and then has deleted the tag.
    """
    try:
        transpose = _TRANSPOSES.get(source.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return image
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(source: ImageFile) -> PIL.Image.Image:
    """Decodes and turns any mode into RGB."""
    if source.mode == "F" or (source.mode == "I" and source.format != "PPM"):
        raise ImageError(
            "unsupported_mode",
            f"The image has {'floating-point' if source.mode == 'F' else 'signed or 32-bit'} samples,"
            " which define no range that white could be read from.",
        )
    _mend_transparency(source)
    source.load()
    if source.mode == "RGB" and "transparency" not in source.info:
        return source
    image: PIL.Image.Image = _from_16_bits(source) if source.mode.startswith("I") else source
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode not in ("RGBA", "LA"):
        image = image.convert("RGBA")
    over_white = PIL.Image.new("RGB", image.size, "white")
    over_white.paste(image, mask=image)
    return over_white


def _mend_transparency(source: ImageFile) -> None:
    """Brings a PNG's transparent colour to the 8 bits that Pillow brings the pixels to, but not the colour.

    Of 16-bit colour the high byte is kept, so that the colours that share it with the transparent one are so too.
    """
    colour = source.info.get("transparency")
    if source.format != "PNG" or colour is None or not source.tile:
        return
    scale = {"L;2": 85, "L;4": 17}.get(str(source.tile[0].args))
    if scale:
        source.info["transparency"] = colour * scale
    elif source.tile[0].args == "RGB;16B":
        source.info["transparency"] = tuple(value >> 8 for value in colour)


def _from_16_bits(source: ImageFile) -> PIL.Image.Image:
    """Grey of more than 8 bits to 8, scaled by its full range where Pillow clips; L, or LA with a transparent value."""
    values = np.asarray(source).astype(np.uint32)  # Room for 65,535 x 255.
    top = 65_535
    inverted = False
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        top = 2 ** int(source.tag_v2.get(_BITS_PER_SAMPLE_TAG, (16,))[0]) - 1
        inverted = source.tag_v2.get(_PHOTOMETRIC_TAG) == 0  # White is zero, which Pillow heeds at 8 bits only.
    grey = ((values * 255 + top // 2) // top).astype(np.uint8)
    image = PIL.Image.fromarray(255 - grey if inverted else grey)
    if "transparency" in source.info:
        image.putalpha(PIL.Image.fromarray(np.where(values == source.info["transparency"], 0, 255).astype(np.uint8)))
    return image


def _resize(image: PIL.Image.Image, options: ImageOptions) -> PIL.Image.Image:
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
        case ResizeMode.CENTER_CROP:
            return ImageOps.fit(image, size, resample)
        case ResizeMode.PAD:
            scale = min(width / image.width, height / image.height)
            if min(image.size) * scale <= 0.5:  # `ImageOps.pad` would round the short side down to no pixels at all.
                inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                image = image.resize(inner, resample)
            return ImageOps.pad(image, size, resample, color="black")
