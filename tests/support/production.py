"""Input for the jobs of `make production-check`, and what they say of it."""

import json
from pathlib import Path

from tests.support.image_samples import encode, picture

SMALL = ("--model", "VGG16", "--weights", "random:0", "--layer", "block1_pool", "--image_size", "32x32")


def samples(count: int = 20) -> dict[str, bytes]:
    """File name -> JPEG; two classes, by the first letter."""
    return {f"{'ab'[index % 2]}{index:02}.jpg": encode(picture(seed=index), "JPEG") for index in range(count)}


def folder_of_classes(folder: Path) -> Path:
    """Put the samples into a folder for each class."""
    for name, data in samples().items():
        path = folder / name[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def totals(output: Path) -> dict[str, int]:
    """Of a run, as its manifest has them."""
    found: dict[str, int] = json.loads((output / "manifest.json").read_text())["totals"]
    return found
