"""Encoded bytes -> uint8 RGB pixels: the image policy.

The rules, each of which has a test: the orientation in EXIF or XMP is applied once. CMYK and YCCK become RGB by
Pillow's plain arithmetic, and inks are inverted only where Adobe's marker says so. Samples of more than 8 bits are
scaled to the nearest, ``round(v * 255 / top)``. Palettes are expanded; whatever is transparent is laid over white,
unless the format says that the fourth byte is unused or it is 0 everywhere; grey and 1-bit become RGB. Of an animation
or a multi-page file the first frame counts, on its canvas, which is white where the frame is not; of a TIFF, the first
page that is not a smaller copy. ICC profiles are ignored, and said to be. No metadata costs the pixels. An image that
would take more memory than allowed is refused by its header. What can't be decoded is an `ImageError` with a reason.

Each format has one decoder (`DECODERS`), chosen by the file's first bytes. A change of these rules that moves pixels
raises `transforms.core.spec.COLOR_POLICY`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import AvifImagePlugin, ImageOps

from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Interpolation, JpegDecode, ResizeMode
from transforms.core.types import Image
from transforms.images import bmp, heif, jpeg, jpeg2000, netpbm, pillow, png, tiff
from transforms.images.aliased import resize_aliased
from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError as ImageError
from transforms.images.errors import explain, explain_unknown
from transforms.images.isolated import DecoderProcessError, isolated
from transforms.images.sniff import Format, sniff

IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "ico", "tga"),
        *("avif", "avifs", "jp2", "j2k", "jpf", "jpx", "jpc", "j2c", "pbm", "pgm", "ppm", "pnm", "pfm"),
        *("heic", "heif", "hif", "dcm", "dicom", "exr", "hdr", "jxl", "svg"),
    )
)
"""Lower-case suffixes of the files that count as images when a folder is listed.

It holds formats that are not decoded too (JPEG XL, SVG): such files are reported as failures with a reason,
not left out in silence.
"""


@dataclass(frozen=True, slots=True)
class Decoder:
    """How one format becomes pixels, and the packages whose versions those pixels may depend on."""

    decode: Callable[[bytes, Limits], Decoded]
    packages: tuple[str, ...]


DECODERS = {
    Format.JPEG: Decoder(jpeg.decode, ("simplejpeg", "pillow")),
    Format.PNG: Decoder(png.decode, ("imagecodecs",)),
    Format.WEBP: Decoder(pillow.decode_webp, ("pillow",)),
    Format.GIF: Decoder(pillow.decode_gif, ("pillow",)),
    Format.BMP: Decoder(bmp.decode, ("numpy", "pillow")),
    Format.TIFF: Decoder(tiff.decode, ("tifffile", "imagecodecs")),
    Format.AVIF: Decoder(pillow.decode_avif, ("pillow",)),
    Format.HEIF: Decoder(heif.decode, ("pillow_heif",)),
    Format.JPEG2000: Decoder(jpeg2000.decode, ("pillow", "imagecodecs")),
    Format.PNM: Decoder(netpbm.decode, ("numpy",)),
    Format.ICO: Decoder(pillow.decode_ico, ("pillow", "imagecodecs")),
    Format.TGA: Decoder(pillow.decode_tga, ("pillow",)),
    Format.DICOM: Decoder(isolated("dicom"), ("tensorflow_io", "pydicom")),
    Format.EXR: Decoder(isolated("exr"), ("tensorflow_io",)),
    Format.HDR: Decoder(isolated("hdr"), ("tensorflow_io",)),
}
"""One decoder for each format, whatever else is installed: the same bytes give the same pixels everywhere.

A closed list, because Pillow's open one runs other programs (EPS and PS through Ghostscript, with the file's code),
knows scientific containers that are no pictures, and has decoders in pure Python that hold the GIL for minutes.
"""

DEFAULT_MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own default warning threshold: a quarter of a GiB at three bytes a pixel."""

_FILTERS = {
    Interpolation.BILINEAR: PIL.Image.Resampling.BILINEAR,
    Interpolation.NEAREST: PIL.Image.Resampling.NEAREST,
    Interpolation.BICUBIC: PIL.Image.Resampling.BICUBIC,
    Interpolation.LANCZOS: PIL.Image.Resampling.LANCZOS,
}

_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_LOGGERS = tuple(logging.getLogger(name) for name in ("PIL", "imagecodecs", "tifffile"))


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
    """

    image_size: tuple[int, int] | None = (224, 224)
    interpolation: Interpolation = Interpolation.BILINEAR
    resize_mode: ResizeMode = ResizeMode.STRETCH
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    min_size: tuple[int, int] | None = None
    accept_truncated: bool = False
    dicom_frame: int | str = 1
    scale_jpegs: bool = False

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

    @property
    def limits(self) -> Limits:
        """What decoders need to know of this."""
        side = 2 * max(self.image_size) if self.scale_jpegs and self.image_size is not None else None
        return Limits(self.max_image_pixels, self.accept_truncated, self.dicom_frame, side)


def prepare_pillow() -> None:
    """Sets what Pillow keeps for the whole process; for a worker's setup, before its decode threads start.

    AVIF images are decoded on one thread each, since they are decoded side by side. Calling it again is harmless;
    `decode_image` works without it.
    """
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _silence()


def decode_image(data: bytes, options: ImageOptions) -> Image:
    """Encoded bytes -> an image as the options say; safe to call from many threads.

    Images are turned to RGB first and resized then, from all their pixels unless `scale_jpegs` is set. ``stretch``
    gives the pixels of ``keras.utils.load_img(path, target_size=..., interpolation=...)``. ``stretch_aliased`` does
    without antialiasing, as ``keras.utils.image_dataset_from_directory`` does (see `resize_aliased`). ``center_crop``
    cuts the largest centred part of the right aspect ratio and resizes it (``PIL.ImageOps.fit``). ``pad`` resizes the
    whole image to fit inside and centres it on black (``PIL.ImageOps.pad``).

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
    kind = sniff(data)
    if kind is None:
        raise explain_unknown(data)
    _silence()
    try:
        decoded = DECODERS[kind].decode(data, options.limits)
        image = _resize(decoded.image, options)
        return Image(np.asarray(image), decoded.width, decoded.height, decoded.icc_profile)
    except (ImageError, DecoderProcessError):
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds, MemoryError and zlib.error among them.
        raise explain(data, kind, error) from error


def _silence() -> None:
    """Keep what the decoders say of single files (corrupt EXIF, odd tags) from the log, and from becoming errors.

    They name no file, and a file that gives no image is reported as a failure. `warnings.catch_warnings` would not do:
    it swaps process-wide state, so that it is not safe in threads. One filter is put in front once instead. It is
    looked for at every image, since any other library's `catch_warnings` drops it.
    """
    if not warnings.filters or warnings.filters[0] != _WARNING_FILTER:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    for logger in _LOGGERS:
        if logger.level != logging.CRITICAL:
            logger.setLevel(logging.CRITICAL)


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
