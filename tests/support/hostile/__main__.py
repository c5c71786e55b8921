"""`make hostile`: thousands of seeded attacks; prints what did not hold, writes the table in ``docs/security.md``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.hostile.children import MEGABYTES, SECONDS_EACH, Report, attack_all

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
BEGIN, END = "<!-- make hostile: begin -->\n", "<!-- make hostile: end -->\n"
COUNTS = {
    "images": 10_000,
    "shards": 10_000,
    "records among sound ones": 1_000,
    "manifests": 1_000,
    "weights files": 1_000,
    "configurations": 1_000,
}
"""Attacks on each kind of file, in the long form."""


def table(reports: Sequence[Report]) -> str:
    """Markdown, a row for each kind."""
    lines = ["| damaged | tried | did not hold | taken or decoded | most memory, MB | slowest, s |\n"]
    lines.append("|---|---:|---:|---:|---:|---:|\n")
    for report in reports:
        well = sum(report.outcomes[name] for name in ("decoded", "taken", "all records"))
        lines.append(
            f"| {report.kind} | {report.tried:,} | {len(report.problems):,} | {well:,} | {report.megabytes:,} | "
            f"{report.seconds:.1f} |\n"
        )
    return "".join(lines)


def insert(page: str, text: str) -> str:
    """The page with another table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}"


def main() -> int:
    """Attack everything; 1 if something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.hostile", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks (default: all)")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table is written")
    options = parser.parse_args()
    reports = []
    for kind, count in COUNTS.items():
        report = attack_all(kind, max(1, round(count * options.share)))
        reports.append(report)
        sys.stdout.write(f"{kind}: {report.tried:,} tried, {len(report.problems):,} did not hold; ")
        sys.stdout.write(f"{', '.join(f'{name} {number:,}' for name, number in report.outcomes.most_common())}\n")
        for problem in report.problems:
            sys.stdout.write(f"PROBLEM: {kind}, {problem}\n")
        sys.stdout.flush()
    sys.stdout.write(f"at most {MEGABYTES:,} MB and {SECONDS_EACH} s were allowed to each\n")
    options.page.write_text(insert(options.page.read_text(encoding="utf-8"), table(reports)), encoding="utf-8")
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
