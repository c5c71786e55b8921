"""Formats that Pillow decodes: GIF, WebP, AVIF, ICO, and BMP of whole bytes."""

from __future__ import annotations

import io
from typing import Any

import PIL.Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.formats import png
from transforms.images.formats.isobmff import clean_aperture
from transforms.images.orientation import read_orientation, turn_upright
from transforms.images.transparency import blank_outside, drop_unused_alpha, flatten


def load(plugin: type[ImageFile], data: bytes, limits: Limits | None = None) -> ImageFile:
    """Decode with one Pillow plugin, after checking the header against the limits."""
    source = plugin(io.BytesIO(data))
    if limits is not None:
        limits.check(*source.size)
    source.load()
    return source


def decode_gif(data: bytes, limits: Limits) -> Decoded:
    """The first frame on its canvas, white where there is none."""
    source = GifImageFile(io.BytesIO(data))
    limits.check(*source.size)
    if not source.tile:
        raise ImageError("undecodable", "The GIF has no frame.")
    box = source.tile[0].extents or (0, 0, *source.size)
    source.load()
    return Decoded(blank_outside(flatten(source), box), *source.size)


def decode_webp(data: bytes, limits: Limits) -> Decoded:
    """The first frame on its canvas, white where there is none."""
    source = load(WebPImageFile, data, limits)
    image = flatten(source)
    if box := _first_webp_frame(data):
        image = blank_outside(image, box)
    return _oriented(source, image)


def read_webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels by the header."""
    return WebPImageFile(io.BytesIO(data)).size


def decode_avif(data: bytes, limits: Limits) -> Decoded:
    """The primary image, or the first of a sequence; of either the part that is to be shown, as libheif has it."""
    source = load(AvifImageFile, data, limits)
    image = flatten(source)
    if box := clean_aperture(data, image.size):
        image = image.crop(box)
    return _oriented(source, image)


def decode_bmp(data: bytes, limits: Limits) -> Decoded:
    """A bitmap of 1, 4, 8 or 24 bits a pixel."""
    source = load(BmpImageFile, data, limits)
    return Decoded(flatten(source), *source.size)


def decode_ico(data: bytes, limits: Limits) -> Decoded:
    """The largest icon, and of those the one of most colours."""
    count = int.from_bytes(data[4:6], "little")
    entries = [data[6 + 16 * index : 22 + 16 * index] for index in range(count)]
    if not entries or len(entries[-1]) < 16:
        raise ImageError("truncated", "The ICO's directory is empty or cut short.")
    best = max(entries, key=lambda entry: ((entry[0] or 256) * (entry[1] or 256), entry[6], entry[2] or 256))
    size, start = int.from_bytes(best[8:12], "little"), int.from_bytes(best[12:16], "little")
    icon = data[start : start + size]
    if len(icon) < size:
        raise ImageError("truncated", "The ICO ends before its largest icon does.")
    return png.decode(icon, limits) if icon.startswith(png.SIGNATURE) else _decode_icon(icon, limits)


def _decode_icon(icon: bytes, limits: Limits) -> Decoded:
    """A bitmap of twice its height: the colours, and below them which pixels are not drawn."""
    source: Any = DibImageFile(io.BytesIO(icon))
    width, height = source.size[0], source.size[1] // 2
    limits.check(width, height)
    bits = int.from_bytes(icon[14:16], "little")
    source._size = (width, height)
    codec, _, offset, arguments = source.tile[0]
    source.tile = [(codec, (0, 0, width, height), offset, arguments)]
    source.load()
    if bits == 32:
        stored = PIL.Image.frombuffer("RGBA", (width, height), icon[offset:], "raw", "BGRA", 0, -1)
        image = drop_unused_alpha(stored.copy())
        if image.mode == "RGBA":
            return Decoded(flatten(image), width, height)
        mask_start = offset + 4 * width * height
    else:
        image = source.convert("RGB")
        mask_start = offset + (width * bits + 31) // 32 * 4 * height
    stride = (width + 31) // 32 * 4
    mask = icon[mask_start : mask_start + stride * height]
    if len(mask) == stride * height:
        image.putalpha(PIL.Image.frombuffer("1", (width, height), mask, "raw", "1;I", stride, -1).convert("L"))
    return Decoded(flatten(image), width, height)


def _oriented(source: ImageFile, image: PIL.Image.Image) -> Decoded:
    """Apply the orientation in Pillow's metadata."""
    info = source.info
    orientation = read_orientation(info.get("exif"), info.get("xmp"))
    return Decoded(turn_upright(image, orientation), *image.size, bool(info.get("icc_profile")))


def _first_webp_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of an animation's first frame; None for a still image."""
    position = 12
    while position + 24 <= len(data):
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if name == b"ANMF":
            numbers = [int.from_bytes(data[at : at + 3], "little") for at in range(position + 8, position + 20, 3)]
            left, top = 2 * numbers[0], 2 * numbers[1]
            return left, top, left + numbers[2] + 1, top + numbers[3] + 1
        position += 8 + size + size % 2
    return None
