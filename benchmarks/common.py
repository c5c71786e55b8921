"""What the benchmarks share: ImageNet-like JPEGs, and results as a table and as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from transforms.models.engines.openvino_model import processor_flags
from transforms.runs.manifest import versions

RESULTS = Path(__file__).parent / "results"


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = (500, 375), quality: int = 90) -> None:
    """`count` different JPEGs of `size` (width, height), about 100 KB each at the default size.

    They are crops of scikit-learn's two sample photographs, so that the decoder has real edges and textures to do;
    500x375 is the size most images of ImageNet have.
    """
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(0)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        share = rng.uniform(0.5, 1.0)
        width, height = int(photograph.width * share), int(photograph.height * share)
        left = int(rng.integers(0, photograph.width - width + 1))
        top = int(rng.integers(0, photograph.height - height + 1))
        crop = photograph.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
        path = folder / f"class{index % 10}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=quality)


def publish(name: str, figures: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    """Print the table, and write the figures with the machine and the date beside them."""
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {value}" for label, value in rows))
    RESULTS.mkdir(exist_ok=True)
    flags = sorted(processor_flags())
    machine = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "flags": flags,
        "python": platform.python_version(),
        **versions(),
    }
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, "date": date, "machine": machine, "figures": figures}, indent=2))
    print(f"written to {path}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
