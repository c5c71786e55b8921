"""A rerun over an input of which little is new, against the run that made everything.

    python -m benchmarks.reuse [--images 20000] [--new 200] [--model MobileNetV2] [--image_size 224x224]

Both are whole commands, from their start to their end: start-up, listing, reading, decoding, embedding, writing. The
new images lie among the old ones, so that nearly all units are made again. A second rerun finds nothing new; a third
takes every row from the first run into another folder with --reuse, which opens no file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import publish, write_jpegs


def extract(folder: Path, output: Path, args: argparse.Namespace, *flags: str) -> dict[str, Any]:
    """Run the command; seconds of wall and processor, and what became of the records."""
    command = [sys.executable, "-m", "pipelines", "extract", "--input", str(folder), "--output", str(output)]
    command += ["--model", args.model, "--weights", "random:0", "--image_size", args.image_size, *flags]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = sum(after[:2]) - sum(before[:2])
    manifest = json.loads((output / "manifest.json").read_text())
    totals = manifest["totals"]
    embedded = manifest["timings"]["images_embedded_by_this_launcher"]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "rows": totals["embedded"],
        "reused": totals["reused"],
        "through_the_model": embedded,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The four runs, one after the other."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, output, aside = Path(scratch, "in"), Path(scratch, "out"), Path(scratch, "aside")
        write_jpegs(folder, args.images + args.new, (args.width, args.height))
        files = sorted(folder.rglob("*.jpg"))
        step = len(files) // args.new
        for path in files[::step][: args.new]:
            kept = aside / path.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
        figures = {"full": extract(folder, output, args)}
        for path in aside.rglob("*.jpg"):
            path.rename(folder / path.relative_to(aside))
        figures["new"] = extract(folder, output, args)
        figures["nothing_new"] = extract(folder, output, args)
        figures["other_folder"] = extract(folder, Path(scratch, "other"), args, "--reuse", str(output))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--model", default="MobileNetV2")
    parser.add_argument("--image_size", default="224x224")
    parser.add_argument("--width", type=int, default=500, help="of the JPEGs, in pixels")
    parser.add_argument("--height", type=int, default=375)
    args = parser.parse_args()
    figures = measure(args)
    full = figures["full"]
    title = f"{args.model} at {args.image_size}, {args.images:,} images"
    rows = [(title, "seconds | share | processor's | share | embedded | taken over")]
    for name, run in figures.items():
        times = " | ".join(f"{run[one]:7.1f} | {run[one] / full[one]:.3f}" for one in ("seconds", "processor_seconds"))
        rows.append((name, f"{times} | {run['through_the_model']:,} | {run['reused']:,}"))
    publish("reuse", {"model": args.model, "image_size": args.image_size, **figures}, rows)


if __name__ == "__main__":
    main()
