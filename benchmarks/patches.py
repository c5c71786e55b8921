"""Photographs cut into patches, a folder for each photograph: a set of labelled images from the package registry alone.

    pip download --no-deps --only-binary :all: --python-version 38 scikit-image==0.17.2
    python -m benchmarks.patches scikit_image-0.17.2-*.whl patches

Later wheels of scikit-image leave the photographs out. Patches do not overlap; which photograph one is of is its label.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

SIDE = 64
"""Pixels of a patch's side."""

MOST = 60
"""Patches of one photograph."""

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip


def write_patches(wheel: Path, folder: Path) -> int:
    """Cut the photographs of a wheel; how many patches there are.

    Args:
        wheel: of scikit-image 0.17.2.
        folder: to write folder/NAME/NUMBER.png into.
    """
    from PIL import Image

    written = 0
    with zipfile.ZipFile(wheel) as archive:
        for name in PHOTOGRAPHS:
            photograph = Image.open(io.BytesIO(archive.read(f"skimage/data/{name}"))).convert("RGB")
            columns, rows = photograph.width // SIDE, photograph.height // SIDE
            places = [(column * SIDE, row * SIDE) for row in range(rows) for column in range(columns)]
            every = max(1, -(-len(places) // MOST))
            below = folder / name.rpartition(".")[0]
            below.mkdir(parents=True, exist_ok=True)
            for number, (left, top) in enumerate(places[::every]):
                photograph.crop((left, top, left + SIDE, top + SIDE)).save(below / f"{number:03d}.png")
                written += 1
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(f"{write_patches(args.wheel, args.folder):,} patches of {len(PHOTOGRAPHS)} photographs in {args.folder}")
