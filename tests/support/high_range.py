"""OpenEXR and Radiance HDR files, by OpenCV and by hand."""

import os
import struct
from pathlib import Path

import numpy as np

os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"  # Before OpenCV is imported: it writes none otherwise.

import cv2 as cv2


def light(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Linear RGB, most of it in 0 to 1, some brighter."""
    source = np.random.default_rng(seed)
    smooth = np.add.outer(np.linspace(0, 1, height), np.linspace(0, 1.5, width))[..., None] * source.uniform(0.2, 1, 3)
    return np.asarray(smooth + source.uniform(0, 0.2, (height, width, 3)), np.float32)


def on_screen(linear: np.ndarray) -> np.ndarray:
    """The tone mapping in one line of its own: IEC 61966-2-1 after clipping."""
    clipped = np.clip(linear.astype(np.float64), 0, 1)
    curve = np.where(clipped > 0.0031308, 1.055 * clipped ** (1 / 2.4) - 0.055, clipped * 12.92)
    return np.asarray(np.rint(curve * 255), np.uint8)


def by_opencv(folder: Path, suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    """A file that OpenCV writes from RGB, RGBA or grey floats."""
    path = folder / f"written{suffix}"
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(pixels.shape[-1] if pixels.ndim == 3 else 0)
    assert cv2.imwrite(str(path), pixels if order is None else pixels[..., order], list(options))
    return path.read_bytes()


def read_by_opencv(folder: Path, suffix: str, data: bytes) -> np.ndarray:
    """RGB floats, as OpenCV reads a file."""
    path = folder / f"read{suffix}"
    path.write_bytes(data)
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))[..., ::-1]


def exr(
    channels: dict[str, np.ndarray],
    *,
    origin: tuple[int, int] = (0, 0),
    display: tuple[int, int, int, int] | None = None,
    sampling: int = 1,
    flags: int = 0,
    **more: tuple[str, bytes],
) -> bytes:
    """An uncompressed scanline file by the format's description.

    Args:
        channels: name -> float32 [height, width].
        origin: (left, top) of the data window.
        display: (left, top, right, bottom) of the display window, both ends included; the data window if None.
        sampling: what the channels' descriptions say.
        flags: of the version field.
        more: attributes, as (type, value).
    """
    names = sorted(channels)
    height, width = channels[names[0]].shape
    left, top = origin
    window = (left, top, left + width - 1, top + height - 1)

    def attribute(name: str, kind: str, value: bytes) -> bytes:
        return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<I", len(value)) + value

    listed = b"".join(name.encode() + b"\0" + struct.pack("<iIii", 2, 0, sampling, sampling) for name in names) + b"\0"
    head = b"\x76\x2f\x31\x01" + struct.pack("<I", 2 | flags)
    head += attribute("channels", "chlist", listed)
    head += attribute("compression", "compression", b"\0")
    head += attribute("dataWindow", "box2i", struct.pack("<4i", *window))
    head += attribute("displayWindow", "box2i", struct.pack("<4i", *(display or window)))
    head += attribute("lineOrder", "lineOrder", b"\0")
    head += attribute("pixelAspectRatio", "float", struct.pack("<f", 1))
    head += attribute("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0))
    head += attribute("screenWindowWidth", "float", struct.pack("<f", 1))
    head += b"".join(attribute(name, *value) for name, value in more.items()) + b"\0"
    rows = [b"".join(channels[name][row].astype("<f4").tobytes() for name in names) for row in range(height)]
    length = 8 + len(rows[0])
    table = b"".join(struct.pack("<Q", len(head) + 8 * height + row * length) for row in range(height))
    return head + table + b"".join(struct.pack("<iI", top + row, len(data)) + data for row, data in enumerate(rows))


def rgbe(linear: np.ndarray) -> np.ndarray:
    """Floats [height, width, 3] -> uint8 [height, width, 4], as Greg Ward's paper has it."""
    brightest = linear.max(axis=-1)
    mantissa, exponent = np.frexp(brightest)
    scale = np.where(brightest > 1e-32, mantissa * 256 / np.maximum(brightest, 1e-32), 0)
    found = np.zeros((*linear.shape[:2], 4), np.uint8)
    found[..., :3] = linear * scale[..., None]
    found[..., 3] = np.where(brightest > 1e-32, exponent + 128, 0)
    return found


def from_rgbe(stored: np.ndarray) -> np.ndarray:
    """The inverse of `rgbe`."""
    return np.asarray(np.ldexp(stored[..., :3].astype(np.float32), stored[..., 3:].astype(int) - 136))


def hdr(stored: np.ndarray, resolution: str, header: str = "#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n") -> bytes:
    """Pixels without runs, uint8 [rows, columns, 4] in the file's order."""
    return f"{header}\n{resolution}\n".encode() + stored.tobytes()
