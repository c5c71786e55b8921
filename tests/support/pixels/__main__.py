"""`make pixels`: decode all files of the matrix, print every difference, write the table in ``docs/pixels.md``."""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

from tests.support.pixels.check import Result, cases, check
from tests.support.pixels.readers import READERS

TABLE = Path(__file__).parents[3] / "docs" / "pixels.md"
HEAD = """\
# Pixels

`make pixels` has {files} small files written by hand and by
{names},
over formats, colour models, depths, layouts and compressions, and decodes them. The largest difference is that of any
sample from what was written, of 255; for JPEG and other lossy files, from the nearest of the other readers. A failure
is the one that is right for the file. The last column says how many of the files another reader reads too, and how many
of these it shows within 1 of 255 of what Imagebeam shows. Imagebeam lays transparency on white; readers are not asked
for files that have any.

| format | files | largest difference | failures | other readers: read, alike |
|---|---:|---:|---|---|
"""
TAIL = """
{problems} of them differ in a way that is not explained.

Where a reader shows something else, Imagebeam shows what was written:

- Pillow shows JPEG 2000 of 9 to 16 bits, and 16-bit TIFF with a plane for each colour, as another image.
- OpenCV ignores what PNM calls white, reads blue first in PAM, drops the alpha of grey TIFF, and mistakes tiles of
  16-bit grey; it has another formula for inks. TensorFlow mistakes the palette of a BMP.
- imagecodecs gives samples of 2 and 4 bits and the indices of a palette as they are stored, and does not turn images.
- Around a first frame that is smaller than its canvas, Pillow, OpenCV and imagecodecs put another ground than white.

OpenCV 5 writes PAM, and ImageMagick 6 TGA, that say another image than the one they were given: these are left out.
"""


def table(results: Sequence[Result]) -> str:
    """Markdown, a row for each format."""
    writers = sorted({result.case.writer for result in results} - {"by hand"})
    lines = [HEAD.format(files=len(results), names=", ".join(writers))]
    for kind, group in itertools.groupby(sorted(results, key=lambda result: result.case.kind), lambda r: r.case.kind):
        rows = list(group)
        far = max((row.far for row in rows if row.far is not None), default="")
        failures = ", ".join(sorted({f"`{row.failure}`" for row in rows if row.failure}))
        others = []
        for name in READERS:
            read = [row.readers[name] for row in rows if name in row.readers]
            if read:
                others.append(f"{name} {len(read)}, {sum(far <= 1 for far in read)}")
        lines.append(f"| {kind} | {len(rows)} | {far} | {failures} | {'; '.join(others)} |\n")
    lines.append(TAIL.format(problems=sum(result.problem is not None for result in results)))
    return "".join(lines)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> int:
    """Check all files with all readers; 1 if one of them differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.pixels", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table is written")
    options = parser.parse_args()
    checked = [check(case, READERS) for case in cases()]
    reasons = collections.Counter(result.unwritten.splitlines()[0] for result in checked if result.unwritten)
    for reason, count in reasons.items():
        _say(f"!!! {count} files are not written: {reason}")
    results = [result for result in checked if not result.unwritten]
    problems = [result for result in results if result.problem]
    for result in problems:
        _say(f"DIFFERS: {result.case}: {result.problem}")
    options.table.write_text(table(results), encoding="utf-8")
    _say(f"{len(results)} files, {len(problems)} differ, {len(checked) - len(results)} not written; {options.table}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
