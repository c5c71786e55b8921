"""Palettes and channel definitions of JPEG 2000, in files by hand, as OpenJPEG and the standard have them."""

import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np
import pytest

from tests.support.image_samples import encode, picture
from transforms.images.decode import ImageError, ImageOptions, decode_image

NATIVE = ImageOptions(image_size=None)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 4), dtype=np.uint8)
INDICES = np.random.default_rng(1).integers(0, 16, (24, 32), dtype=np.uint8)


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big") or len(data) - position
        yield data[position + 4 : position + 8], data[position + 8 : position + length]
        position += length


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def with_header_boxes(jp2: bytes, *more: bytes, colour_space: int | None = None) -> bytes:
    """The same file with other boxes behind its header's, in place of any channel definition."""
    out = b""
    for name, content in boxes(jp2):
        if name == b"jp2h":
            kept = {inner: body for inner, body in boxes(content) if inner != b"cdef"}
            if colour_space is not None:
                kept[b"colr"] = struct.pack(">BBBI", 1, 0, 0, colour_space)
            content = b"".join(box(inner, body) for inner, body in kept.items()) + b"".join(more)
        out += box(name, content)
    return out


def cdef(*channels: tuple[int, int, int]) -> bytes:
    """Of (number, kind, colour) each."""
    return box(b"cdef", struct.pack(">H", len(channels)) + b"".join(struct.pack(">3H", *one) for one in channels))


def palette(table: np.ndarray, depth: int) -> bytes:
    entries, columns = table.shape
    stored = table.astype(">u2" if depth > 8 else np.uint8).tobytes()
    content = struct.pack(">HB", entries, columns) + bytes([depth - 1]) * columns + stored
    return box(b"pclr", content) + box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, at) for at in range(columns)))


def pixels(data):
    return decode_image(data, NATIVE).pixels


def over_white(colour, alpha):
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share))


@pytest.mark.parametrize("index_bits", [4, 8])
@pytest.mark.parametrize("depth", [8, 16])
def test_palette_is_expanded(index_bits, depth):
    grey = imagecodecs.jpeg2k_encode(
        INDICES, bitspersample=index_bits, codecformat="jp2", level=0, reversible=True, verbose=0
    )
    table = COLOURS[:, :3].astype(np.uint16) * (257 if depth == 16 else 1)
    data = with_header_boxes(bytes(grey), palette(table, depth), colour_space=16)
    np.testing.assert_array_equal(pixels(data), COLOURS[INDICES][..., :3])


def test_palette_of_one_column_is_grey():
    data = with_header_boxes(encode(INDICES, "JPEG2000"), palette(COLOURS[:, :1], 8))
    np.testing.assert_array_equal(pixels(data), COLOURS[INDICES][..., [0, 0, 0]])


def test_palette_with_alpha_is_laid_over_white():
    channels = cdef((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 1, 0))
    data = with_header_boxes(encode(INDICES, "JPEG2000"), palette(COLOURS, 8), channels, colour_space=16)
    found = COLOURS[INDICES]
    np.testing.assert_array_equal(pixels(data), over_white(found[..., :3], found[..., 3]))


def test_palette_of_signed_colours_is_refused():
    signed = palette(COLOURS[:, :3], 8).replace(b"\7\7\7", b"\x87\x87\x87")
    with pytest.raises(ImageError) as caught:
        pixels(with_header_boxes(encode(INDICES, "JPEG2000"), signed, colour_space=16))
    assert caught.value.error_type == "unsupported_depth"


def test_colours_in_another_order_are_put_in_order():
    data = with_header_boxes(encode(picture(), "JPEG2000"), cdef((0, 0, 3), (1, 0, 2), (2, 0, 1)))
    np.testing.assert_array_equal(pixels(data), picture()[..., ::-1])


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [1, 2, 65_535])
@pytest.mark.parametrize("colours", [1, 3])
def test_last_channel_is_what_the_file_says(kind, colours, depth):
    """Alpha, alpha that the colours are multiplied by, or neither, as the infrared of a satellite's picture."""
    colour, alpha = picture()[..., :colours], picture(seed=1)[..., 0]
    samples = np.dstack([colour, alpha]).astype(np.uint8 if depth == 8 else np.uint16) * (257 if depth == 16 else 1)
    stored = bytes(imagecodecs.jpeg2k_encode(samples, codecformat="jp2", level=0, reversible=True, verbose=0))
    plain = [(index, 0, index + 1) for index in range(colours)]
    expected = {
        1: over_white(colour, alpha),
        2: np.minimum(colour + (255.0 - alpha[..., None]), 255),
        65_535: colour,
    }[kind]
    found = pixels(with_header_boxes(stored, cdef(*plain, (colours, kind, 0))))
    assert np.abs(found - np.broadcast_to(expected, found.shape)).max() <= 1
