"""Convert the stored samples of a TIFF page to RGB."""

from __future__ import annotations

import numpy as np
import PIL.Image
from tifffile import TiffPage

from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.transparency import image_from_samples

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIE_LAB, ICC_LAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOURS = {
    WHITE_IS_ZERO: 1,
    BLACK_IS_ZERO: 1,
    RGB: 3,
    PALETTE: 1,
    CMYK: 4,
    YCBCR: 3,
    CIE_LAB: 3,
    ICC_LAB: 3,
}
"""Photometric interpretation -> samples of a pixel without alpha."""
JPEG = 7
"""The compression whose decoder turns YCbCr into RGB by itself."""
_ASSOCIATED, _UNASSOCIATED = 1, 2


def to_rgb(page: TiffPage, samples: np.ndarray) -> PIL.Image.Image:
    """Samples [height, width, channels] as stored -> RGB."""
    photometric, bits = int(page.photometric), int(page.bitspersample)
    colours = COLOURS[photometric]
    alpha_kind = _alpha_kind(page, samples)
    has_alpha = samples.shape[2] > colours and alpha_kind in (_ASSOCIATED, _UNASSOCIATED)
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8)
    scaled = scale_to_8_bits(samples[..., : colours + has_alpha], (1 << bits) - 1)
    colour, alpha = scaled[..., :colours], scaled[..., colours:] if has_alpha else None
    if photometric == PALETTE:
        colour = _expand_palette(page, samples[..., 0])
    elif photometric == WHITE_IS_ZERO:
        colour = 255 - colour
    elif photometric == CMYK:
        colour = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(colour), "CMYK").convert("RGB"))
    elif photometric in (CIE_LAB, ICC_LAB):
        colour = _lab_to_rgb(samples[..., :3], bits, signed=photometric == CIE_LAB)
    elif photometric == YCBCR and page.compression != JPEG:
        colour = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(colour), "YCbCr").convert("RGB"))
    if alpha is None:
        return image_from_samples(colour)
    if alpha_kind == _ASSOCIATED:  # Colours are multiplied already: what is left of each pixel is white.
        return image_from_samples(np.minimum(colour.astype(np.uint16) + (255 - alpha), 255).astype(np.uint8))
    return image_from_samples(np.dstack([colour, alpha]))


def _alpha_kind(page: TiffPage, samples: np.ndarray) -> int:
    """What the first sample behind the colours is; a fourth beside RGB of which nothing is said is alpha, if not 0."""
    if page.extrasamples:
        return int(page.extrasamples[0])
    is_alpha = page.photometric == RGB and samples.shape[2] == 4 and samples[..., 3].any()
    return _UNASSOCIATED if is_alpha else 0


def _expand_palette(page: TiffPage, indices: np.ndarray) -> np.ndarray:
    """Indices [height, width] -> uint8 RGB.

    Palettes have 16 bits by the standard. The high byte is what libtiff takes, and right whether a writer multiplied by
    256 or by 257; some writers put 8 bits into them.
    """
    if page.colormap is None:
        raise ImageError("undecodable", "The TIFF has a palette by its header, and none in its tags.")
    palette = np.asarray(page.colormap).T
    table = (palette >> 8 if palette.max(initial=0) > 255 else palette).astype(np.uint8)
    if indices.max(initial=0) >= len(table):
        raise ImageError("undecodable", "The TIFF has pixels beyond its palette.")
    return np.asarray(table[indices])


def _lab_to_rgb(samples: np.ndarray, bits: int, *, signed: bool) -> np.ndarray:
    """L*a*b* [height, width, 3] of 8 or 16 bits -> uint8 sRGB, by Little CMS with the white point D50.

    Args:
        samples: unsigned, as stored.
        bits: of a sample.
        signed: whether a* and b* are two's complement (CIE Lab) rather than an offset from half (ICC Lab).
    """
    if bits == 16:
        top = 65_535 if signed else 65_280
        lightness = scale_to_8_bits(samples[..., :1], top)
        tint = samples[..., 1:].astype(np.int32)
        tint = tint - ((tint >> 15) << 16) if signed else tint - 32_768
        tints = np.clip((tint + 128) >> 8, -128, 127).astype(np.int8).view(np.uint8)
    else:
        lightness = samples[..., :1]
        tints = samples[..., 1:] if signed else samples[..., 1:] ^ 128
    stored = np.concatenate([lightness, tints], axis=2)
    height, width = stored.shape[:2]
    return np.asarray(PIL.Image.frombytes("LAB", (width, height), stored.tobytes()).convert("RGB"))
