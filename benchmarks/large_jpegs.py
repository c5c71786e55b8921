"""12-megapixel JPEGs: a whole work unit, exact and with scaled decoding, against a plain Pillow loop.

    python -m benchmarks.large_jpegs [--images 24] [--rounds 5] [--weights FILE]

The loop opens each file, converts it to RGB and resizes it to 224x224, as a script would. The other side is a whole
unit as in benchmarks.decode_ceiling, with a model that costs nothing. All run in turn in one process; the ratios are
of the medians. With --weights, VGG16 tells what scaled decoding does to its vectors.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import publish, write_jpegs
from benchmarks.decode_ceiling import whole_unit
from transforms.images.decode import ImageOptions, decode_image
from transforms.inputs.plan import plan
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.engines.int8 import cosines
from transforms.readers.units import ListUnit

SIZE = (224, 224)
EXACT, SCALED = (ImageOptions(image_size=SIZE, scale_jpegs=scale) for scale in (False, True))


def plain_loop(paths: list[Path]) -> float:
    """Images/s."""
    started = time.perf_counter()
    for path in paths:
        np.asarray(Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))
    return len(paths) / (time.perf_counter() - started)


def effect(paths: list[Path], weights: str) -> dict[str, float]:
    """Cosine between VGG16's vectors of the same files decoded whole and scaled."""
    embedder = resolve(EmbedderConfig("VGG16", weights, image_size=SIZE))
    exact, scaled = (
        embedder.embed(np.stack([decode_image(path.read_bytes(), options).pixels for path in paths]))["embedding"]
        for options in (EXACT, SCALED)
    )
    found = cosines(exact, scaled)
    return {"median": float(np.median(found)), "lowest": float(found.min())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", help="of VGG16")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"plain Pillow loop": [], "unit, exact": [], "unit, scaled": []}
    figures: dict[str, Any] = {"images_s": rates}
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder, "jpegs"), args.images, (4000, 3000))
        paths = sorted(Path(folder, "jpegs").glob("*/*.jpg"))
        (unit,) = plan([f"{folder}/jpegs"], None, args.images)
        assert isinstance(unit, ListUnit)
        whole_unit(unit, SCALED, f"{folder}/out")  # warms the page cache and the imports
        for _ in range(args.rounds):
            rates["plain Pillow loop"].append(plain_loop(paths))
            rates["unit, exact"].append(whole_unit(unit, EXACT, f"{folder}/out"))
            rates["unit, scaled"].append(whole_unit(unit, SCALED, f"{folder}/out"))
        if args.weights:
            figures["cosine"] = effect(paths, args.weights)
    loop = statistics.median(rates["plain Pillow loop"])
    rows = [("4000x3000 JPEGs to 224x224", "images/s | over the loop")]
    for name, one in rates.items():
        rows.append((name, f"{statistics.median(one):8.2f} | {statistics.median(one) / loop:.2f}"))
    if args.weights:
        told = "{median:.5f} in the median, {lowest:.5f} at the lowest".format(**figures["cosine"])
        rows.append(("cosine, exact to scaled", told))
    publish("large_jpegs", figures, rows)


if __name__ == "__main__":
    main()
