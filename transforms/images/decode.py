"""Decode bytes to uint8 RGB pixels by the image policy.

The rules, each of which has a test: the orientation in EXIF or XMP is applied once. CMYK and YCCK become RGB by
Pillow's plain arithmetic, and inks are inverted only where Adobe's marker says so. Samples of more than 8 bits are
scaled to the nearest, ``round(v * 255 / top)``. Palettes are expanded; whatever is transparent is laid over white,
unless the format says that the fourth byte is unused or it is 0 everywhere; grey and 1-bit become RGB. Of an animation
or a multi-page file the first frame counts, on its canvas, which is white where the frame is not; of a TIFF, the first
page that is not a smaller copy; of HEIC and AVIF, the part that is to be shown (`clap`). ICC profiles are ignored, and
said to be. No metadata costs the pixels. An image that would take more memory than allowed is refused by its header.
What can't be decoded is an `ImageError` with a reason.

Each format has one decoder (`DECODERS`), chosen by the file's first bytes. A change of these rules that moves pixels
raises `transforms.core.spec.COLOR_POLICY`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import AvifImagePlugin

from transforms.core.types import Image
from transforms.images.base import Decoded, Limits, NeedsIsolation
from transforms.images.errors import ImageError as ImageError
from transforms.images.errors import explain, explain_unknown
from transforms.images.formats import bmp, jpeg, netpbm, pillow, png, tga
from transforms.images.isolated.decoder_pool import Family
from transforms.images.isolated.isolated_decoder import IS_POSSIBLE, Isolated
from transforms.images.options import ImageOptions as ImageOptions
from transforms.images.resize import resize
from transforms.images.sniff import Format, sniff

IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "mpo", "png", "apng", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "ico", "tga", "avif", "avifs", "jp2", "j2k", "jpf", "jpx", "jpc", "j2c"),
        *("pbm", "pgm", "ppm", "pnm", "pam", "pfm"),
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

    decode: Callable[[bytes, Limits], Decoded] | Isolated
    packages: tuple[str, ...]


def _isolated(name: str, family: Family = Family.PLAIN) -> Isolated:
    return Isolated(f"transforms.images.formats.{name}", family)


DECODERS = {
    Format.JPEG: Decoder(jpeg.decode, ("simplejpeg", "pillow")),
    Format.PNG: Decoder(png.decode, ("imagecodecs",)),
    Format.WEBP: Decoder(_isolated("pillow:decode_webp"), ("pillow",)),
    Format.GIF: Decoder(pillow.decode_gif, ("pillow",)),
    Format.BMP: Decoder(bmp.decode, ("numpy", "pillow")),
    Format.TIFF: Decoder(_isolated("tiff:decode"), ("tifffile", "imagecodecs")),
    Format.AVIF: Decoder(_isolated("pillow:decode_avif"), ("pillow",)),
    Format.HEIF: Decoder(_isolated("heif:decode"), ("pillow_heif",)),
    Format.JPEG2000: Decoder(_isolated("jpeg2000:decode"), ("pillow", "imagecodecs")),
    Format.PNM: Decoder(netpbm.decode, ("numpy",)),
    Format.ICO: Decoder(pillow.decode_ico, ("pillow", "imagecodecs")),
    Format.TGA: Decoder(tga.decode, ("numpy", "pillow")),
    Format.DICOM: Decoder(_isolated("dicom:decode", Family.TENSORFLOW_IO), ("tensorflow_io", "pydicom")),
    Format.EXR: Decoder(_isolated("exr:decode", Family.TENSORFLOW_IO), ("tensorflow_io",)),
    Format.HDR: Decoder(_isolated("hdr:decode", Family.TENSORFLOW_IO), ("tensorflow_io",)),
}
"""One decoder for each format, whatever else is installed: the same bytes give the same pixels everywhere.

A closed list, because Pillow's open one runs other programs (EPS and PS through Ghostscript, with the file's code),
knows scientific containers that are no pictures, and has decoders in pure Python that hold the GIL for minutes.
"""

_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_LOGGERS = tuple(logging.getLogger(name) for name in ("PIL", "imagecodecs", "tifffile"))


def prepare_pillow() -> None:
    """Sets what Pillow keeps for the whole process; for a worker's setup, before its decode threads start.

    AVIF images are decoded on one thread each, since they are decoded side by side. Calling it again is harmless;
    `decode_image` works without it.
    """
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _silence()


def decode_image(data: bytes | bytearray | memoryview, options: ImageOptions) -> Image:
    """Decode bytes to an image by the options. Thread-safe.

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
        ImageError: for whatever gives no image.
        TypeError: for data that are no bytes, or options that are no `ImageOptions`.
        DecoderProcessError: if the machine is at fault: a process that decodes cannot be started, or was killed.
    """
    if isinstance(data, bytearray | memoryview):
        data = bytes(data)
    if not isinstance(data, bytes):
        raise TypeError(f"An encoded image is bytes. Received: {type(data).__name__}.")
    if not isinstance(options, ImageOptions):
        raise TypeError(f"The options are an ImageOptions. Received: {type(options).__name__}.")
    if not data:
        raise ImageError("empty", "The file has no bytes.")
    kind = sniff(data)
    if kind is None:
        raise explain_unknown(data)
    decode = DECODERS[kind].decode
    if isinstance(decode, Isolated):
        if IS_POSSIBLE or decode.family != Family.PLAIN:
            return decode.decode(data, kind, options)
        decode = decode.load()
    try:
        return decode_here(decode, data, options, killable=not IS_POSSIBLE)
    except NeedsIsolation:
        pass
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds, MemoryError and zlib.error among them.
        raise explain(data, kind, error) from error
    return Isolated.of(decode).decode(data, kind, options)


def decode_here(
    decode: Callable[[bytes, Limits], Decoded],
    data: bytes,
    options: ImageOptions,
    *,
    killable: bool = False,
    on_size: Callable[[int], None] | None = None,
) -> Image:
    """Decode and resize in this process.

    Args:
        decode: the format's decoder.
        data: an encoded image file.
        options: what to make of it.
        killable: whether this process may crash or take for ever.
        on_size: see `Limits`.

    Raises:
        Exception: whatever a decoder raises.
    """
    _silence()
    decoded = decode(data, dataclasses.replace(options.limits, killable=killable, on_size=on_size))
    image = resize(decoded.image, options)
    return Image(np.asarray(image), decoded.width, decoded.height, decoded.icc_profile)


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
