"""TGA of every depth, layout and kind of run, in files by hand."""

import struct

import numpy as np
import pytest

from tests.support.image_samples import picture
from transforms.images.decode import ImageError, ImageOptions, decode_image

VALUES = picture(5, 7)
MAP = picture(1, 16)[0]
INDICES = np.random.default_rng(1).integers(0, 16, (5, 7), dtype=np.uint8)
TOP_DOWN, RIGHT_TO_LEFT = 0x20, 0x10


def header(kind, depth, flags=TOP_DOWN, *, first=0, entries=0, map_depth=0):
    return struct.pack("<BBBHHBHHHHBB", 0, entries > 0, kind, first, entries, map_depth, 0, 0, 7, 5, depth, flags)


def stored(colours, depth):
    """Pixels as the format stores them; 5 bits a colour are cut to these."""
    if depth > 16:
        alpha = np.full((*colours.shape[:-1], depth // 8 - 3), 255, np.uint8)
        return np.concatenate([colours[..., ::-1], alpha], axis=-1).tobytes()
    red, green, blue = (colours[..., channel].astype("<u2") >> 3 for channel in range(3))
    return (red << 10 | green << 5 | blue).astype("<u2").tobytes()


def shown(colours, depth):
    return colours if depth > 16 else (colours >> 3).astype(int) * 255 // 31


def runs(data, size, longest):
    """Pixels that are run-length encoded without a look at the rows: all equal ones in a row are a run."""
    pixels = [data[at : at + size] for at in range(0, len(data), size)]
    out, at = b"", 0
    while at < len(pixels):
        length = next((n for n in range(1, longest) if pixels[at + n : at + n + 1] != [pixels[at]]), longest)
        out += bytes([0x80 | (length - 1)]) + pixels[at]
        at += length
    return out


def pixels(data):
    return decode_image(data, ImageOptions(image_size=None)).pixels


@pytest.mark.parametrize("depth", [15, 16, 24, 32])
def test_colours_of_any_depth(depth):
    np.testing.assert_array_equal(pixels(header(2, depth) + stored(VALUES, depth)), shown(VALUES, depth))


@pytest.mark.parametrize("flags", [0, RIGHT_TO_LEFT, TOP_DOWN, TOP_DOWN | RIGHT_TO_LEFT])
def test_any_corner_may_come_first(flags):
    found = VALUES if flags & TOP_DOWN else VALUES[::-1]
    found = found[:, ::-1] if flags & RIGHT_TO_LEFT else found
    np.testing.assert_array_equal(pixels(header(2, 24, flags) + stored(found, 24)), VALUES)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("index_depth", [8, 16])
@pytest.mark.parametrize("depth", [15, 16, 24, 32])
def test_maps_of_any_depth(depth, index_depth, first):
    head = header(1, index_depth, first=first, entries=16, map_depth=depth)
    indices = (INDICES + first).astype("<u2" if index_depth == 16 else np.uint8).tobytes()
    np.testing.assert_array_equal(pixels(head + stored(MAP, depth) + indices), shown(MAP, depth)[INDICES])


def test_map_beside_colours_is_passed_over():
    head = header(2, 24, entries=16, map_depth=24)
    np.testing.assert_array_equal(pixels(head + stored(MAP, 24) + stored(VALUES, 24)), VALUES)


@pytest.mark.parametrize("longest", [2, 5, 128])
@pytest.mark.parametrize("depth", [15, 16, 24, 32])
def test_runs_may_go_on_in_the_next_row(depth, longest):
    values = np.repeat(VALUES.reshape(-1, 3)[:9], 4, axis=0)[:35].reshape(5, 7, 3)
    data = header(10, depth) + runs(stored(values, depth), -(-depth // 8), longest)
    np.testing.assert_array_equal(pixels(data), shown(values, depth))
    with pytest.raises(ImageError) as caught:
        pixels(data[:-1])
    assert caught.value.error_type == "truncated"


def test_runs_of_grey_and_of_indices():
    grey = VALUES[..., 0]
    np.testing.assert_array_equal(pixels(header(11, 8) + runs(grey.tobytes(), 1, 128))[..., 1], grey)
    head = header(9, 8, entries=16, map_depth=24) + stored(MAP, 24)
    np.testing.assert_array_equal(pixels(head + runs(INDICES.tobytes(), 1, 128)), MAP[INDICES])


@pytest.mark.parametrize(("kind", "depth", "map_depth"), [(2, 8, 0), (3, 24, 0), (1, 8, 8), (11, 1, 0)])
def test_depths_that_are_not_read_are_told(kind, depth, map_depth):
    data = header(kind, depth, entries=16 if map_depth else 0, map_depth=map_depth) + bytes(500)
    with pytest.raises(ImageError) as caught:
        pixels(data)
    assert caught.value.error_type == "unsupported_depth"


def test_file_that_ends_within_its_map_is_truncated():
    with pytest.raises(ImageError) as caught:
        pixels(header(1, 8, entries=16, map_depth=24) + bytes(20))
    assert caught.value.error_type == "truncated"
