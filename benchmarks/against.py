"""One benchmark in this checkout and in another one, in turn: has a change cost speed?

    git worktree add ../before COMMIT
    python -m benchmarks.against [--pairs 5] ../before decode_ceiling --images 1000 --rounds 1

Both are run by this Python, each from its own folder, so that they differ in the project's code alone. The ratio of a
figure, this checkout's over the other's, is taken pair by pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import publish

HERE = Path(__file__).parents[1]


def numbers(figures: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a benchmark's JSON with its path in it; the median for a list of rounds."""
    if isinstance(figures, dict):
        for key, value in figures.items():
            yield from numbers(value, f"{name}.{key}" if name else key)
    elif isinstance(figures, list) and figures and all(isinstance(value, (int, float)) for value in figures):
        yield name, statistics.median(figures)
    elif isinstance(figures, (int, float)):
        yield name, figures


def measure(checkout: Path, command: list[str]) -> dict[str, float]:
    """The figures of one run."""
    subprocess.run([sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]], cwd=checkout, check=True)
    written = json.loads((checkout / "benchmarks" / "results" / f"{command[0]}.json").read_text())
    return dict(numbers(written["figures"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a benchmark and its flags")
    args = parser.parse_args()
    pairs = []
    for number in range(args.pairs):
        order = [HERE, args.other] if number % 2 else [args.other, HERE]
        found = {checkout: measure(checkout, args.command) for checkout in order}
        pairs.append((found[HERE], found[args.other]))
    rows, figures = [(" ".join(args.command), "this / other: median (min to max)")], {}
    for name in sorted(set(pairs[0][0]) & set(pairs[0][1])):
        ratios = [this[name] / other[name] for this, other in pairs if other[name]]
        if ratios:
            figures[name] = {"this": [this[name] for this, _ in pairs], "other": [other[name] for _, other in pairs]}
            rows.append((name, f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"))
    publish("against", figures, rows)


if __name__ == "__main__":
    main()
