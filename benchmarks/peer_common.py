"""What the peers of `benchmarks.peers` share: how images are decoded, how the model is loaded, what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.dataset
from PIL import Image

if TYPE_CHECKING:
    import keras

SIZE = (224, 224)
BATCH = 32

Vectors = dict[str, np.ndarray]
"""By path."""


def paths_in(folder: Path) -> list[str]:
    """The JPEGs of `common.write_jpegs`, in order."""
    return sorted(map(str, folder.glob("*/*.jpg")))


def decode(path: str) -> tuple[str, np.ndarray]:
    """As a script would: Pillow, RGB, bilinear."""
    return path, np.asarray(Image.open(path).convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))


def saved(model: keras.Model, scratch: Path) -> str:
    """The model as a file, for other processes."""
    path = scratch / f"peer-{model.count_params()}.keras"
    if not path.exists():
        model.save(path)
    return str(path)


def load(path: str) -> keras.Model:
    """What `saved` wrote."""
    import keras

    return keras.saving.load_model(path, compile=False)


def read(folder: Path) -> Vectors:
    """What was written."""
    table = pyarrow.dataset.dataset(folder).to_table(columns=["uri", "embedding"])
    return dict(zip(table["uri"].to_pylist(), np.asarray(table["embedding"].to_pylist()), strict=True))
