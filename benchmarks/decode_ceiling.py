"""Extract with a model that costs nothing, against the machine's decode-and-resize ceiling.

    python -m benchmarks.decode_ceiling [--images 2000] [--rounds 5]

The ceiling is a thread pool, one thread a core, that reads, decodes and resizes the same JPEGs and keeps nothing.
The other side is a whole work unit: read, SHA-256, decode, resize, batch, "embed" (zeros), Arrow table, Parquet part
on disk. Both run in turn in one process; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.common import publish, write_jpegs
from transforms import storage
from transforms.core.batching import available_cores
from transforms.core.spec import EmbedderSpec
from transforms.embed.embed_units import EmbedOptions, embed_records
from transforms.images.decode import ImageOptions, decode_image
from transforms.inputs.plan import plan
from transforms.parts import part_files
from transforms.parts.part_files import PartOptions
from transforms.readers.options import ReadOptions
from transforms.readers.read import open_records
from transforms.readers.units import ListUnit, RecordRef

DIMENSION = 512


class Nothing:
    """A model that costs nothing."""

    def __init__(self) -> None:
        self.spec = EmbedderSpec("nothing", "0" * 64)
        self.dimensions = {"embedding": DIMENSION}

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Zeros for any images."""
        return {"embedding": np.zeros((len(images), DIMENSION), np.float32)}


def ceiling(unit: ListUnit, options: ImageOptions, pool: ThreadPoolExecutor) -> float:
    """Images/s of reading and decoding alone."""
    refs = [ref for ref in unit.refs if isinstance(ref, RecordRef)]
    started = time.perf_counter()
    for _ in pool.map(lambda ref: decode_image(storage.read_bytes(ref.uri), options).width, refs):
        pass
    return len(unit.refs) / (time.perf_counter() - started)


def whole_unit(unit: ListUnit, options: ImageOptions, output: str) -> float:
    """Images/s of the unit, from its files to its part."""
    started = time.perf_counter()
    model = Nothing()
    result = embed_records(open_records(unit, ReadOptions()), model, EmbedOptions(options))
    table = PartOptions().to_table(result.rows, model.dimensions)
    part_files.write_unit(output, unit, table, result.failures, model.spec)
    return len(unit.refs) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    options = ImageOptions(image_size=(224, 224))
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(available_cores()) as pool:
        write_jpegs(Path(folder, "jpegs"), args.images)
        (unit,) = plan([f"{folder}/jpegs"], None, args.images)
        assert isinstance(unit, ListUnit)
        whole_unit(unit, options, f"{folder}/out")  # warms the page cache and the imports
        for _ in range(args.rounds):
            bare.append(ceiling(unit, options, pool))
            whole.append(whole_unit(unit, options, f"{folder}/out"))
    ratio = statistics.median(whole) / statistics.median(bare)
    rows = [
        ("read, decode, resize alone, images/s", f"{statistics.median(bare):.1f}"),
        ("whole unit, costless model, images/s", f"{statistics.median(whole):.1f}"),
        ("ratio", f"{ratio:.3f}"),
    ]
    publish("decode_ceiling", {"ceiling_images_s": bare, "unit_images_s": whole, "ratio": ratio}, rows)


if __name__ == "__main__":
    main()
