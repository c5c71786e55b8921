"""Print the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.common.console import say
from pipelines.common.log import add_totals
from pipelines.runtime.run_folder import RunFolder
from transforms import storage
from transforms.core.busy import describe
from transforms.core.label_counts import LabelCount
from transforms.core.text import counted
from transforms.parts import part_files
from transforms.readers.units import Note
from transforms.runs import manifest
from transforms.runs.manifest import Settled, Totals

_NAMES_SHOWN = 3


def print_summary(
    totals: Totals,
    labels: LabelCount,
    problems: list[str],
    folder: RunFolder,
    settled: Settled,
    seconds: float,
    notes: list[Note],
    busy: Mapping[str, float] | None,
) -> None:
    """Print the summary of a run.

    Args:
        totals: sums over all units, those of earlier runs too.
        labels: of its rows.
        problems: what did not hold, one line each.
        folder: it wrote to.
        settled: parts that were removed.
        seconds: it took.
        notes: on its input.
        busy: shares of each stage; None where a unit's are not known.
    """
    fresh = totals.units - totals.units_skipped
    counts = {
        "records": totals.records,
        folder.parts: totals.embedded,
        "reused": totals.reused,
        "equal": totals.equal,
        "failed": totals.failed,
        "failures": dict(totals.failures),
        "units": totals.units,
        "units_skipped": totals.units_skipped,
        "problems": len(problems),
        "seconds": round(seconds, 3),
        "busy": None if busy is None else dict(busy),
    }
    add_totals(**counts)
    if totals.units and not fresh:
        say(f"Nothing to do: {counted(totals.units, 'unit was', 'units were')} committed before; no model was loaded.")
    say(
        f"{counted(totals.embedded, folder.parts.removesuffix('s'))} and {counted(totals.failed, 'failure')} from "
        f"{counted(totals.records, 'record')} in {seconds:,.1f} s ({counted(fresh, 'unit')} now, "
        f"{totals.units_skipped:,} before)",
        counts,
    )
    if totals.reused or totals.equal:
        say(f"  vectors taken over from earlier parts: {totals.reused:,}; copied from equal images: {totals.equal:,}")
    if fresh and busy is not None:
        say(f"  {describe(busy)}")
    if totals.embedded and folder.parts == part_files.EMBEDDINGS:
        say(f"  {labels.describe()}")
    for kind, count in list(totals.failures.items())[:10]:
        say(f"  failed at {kind.replace('/', ': ')}: {count:,}")
    if totals.not_tried_again:
        say(
            f"  not tried again, since they failed in an earlier run: {totals.not_tried_again:,}; --retry_failed tries "
            "them, after a larger limit or an installed extra, say"
        )
    if totals.worked_again:
        say(f"  tried again because the machine had been at fault: {totals.worked_again:,}")
    for left_out in manifest.sum_up_notes(notes):
        names = ", ".join(left_out["names"][:_NAMES_SHOWN])
        say(f"  left out, {left_out['kind']}: {left_out['count']:,}{f' ({names})' if names else ''}")
    if totals.icc_profiles_ignored:
        say(f"  ICC colour profiles ignored: {totals.icc_profiles_ignored:,}")
    if settled.superseded:
        say(f"  parts of changed input removed: {settled.superseded:,}")
    if settled.pruned:
        say(f"  parts of missing input removed: {settled.pruned:,}")
    say(f"  {storage.join(folder.output, folder.parts)}")
    say(f"  {storage.join(folder.output, manifest.MANIFEST_FILE)}")
    for problem in problems:
        say(f"PROBLEM: {problem}")
