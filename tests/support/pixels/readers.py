"""The other decoders that ours is held against: each gives RGB as a user of that library would get it, or nothing.

They decline what they show otherwise on purpose: transparency, which Imagebeam lays on white.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps


def _pillow(data: bytes) -> np.ndarray:
    image = PIL.Image.open(io.BytesIO(data))
    if image.mode not in ("L", "RGB", "P", "1") or "transparency" in image.info:
        raise ValueError(image.mode)
    turned: PIL.Image.Image = PIL.ImageOps.exif_transpose(image)
    return np.asarray(turned.convert("RGB"))


def _opencv(data: bytes) -> np.ndarray:
    stored = np.frombuffer(data, np.uint8)
    whole = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)
    if whole is None or (whole.ndim == 3 and whole.shape[2] == 4):
        raise ValueError("no image, or a transparent one")
    return np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR))[..., ::-1]


def _tensorflow(data: bytes) -> np.ndarray:
    import tensorflow as tf

    if b"ANIM" in data[:64]:
        raise ValueError("TensorFlow 2.21 writes past its memory for an animated WebP with frames of several sizes")
    if data.startswith(b"\xff\xd8"):
        return np.asarray(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy())
    if tf.io.decode_image(data, channels=0, expand_animations=False).shape[2] in (2, 4):
        raise ValueError("a transparent image")
    return np.asarray(tf.io.decode_image(data, channels=3, expand_animations=False).numpy())


def _imagecodecs(data: bytes) -> np.ndarray:
    array = imagecodecs.imread(data)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError("no bytes")
    array = array[..., None].repeat(3, 2) if array.ndim == 2 else array
    if array.shape[2] != 3:
        raise ValueError("no colours")
    return np.asarray(array)


READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "Pillow": _pillow,
    "OpenCV": _opencv,
    "imagecodecs": _imagecodecs,
    "TensorFlow": _tensorflow,
}
