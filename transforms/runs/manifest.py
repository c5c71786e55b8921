"""The manifest: what a run did, reconciled input by input, written last of all."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from transforms import storage
from transforms.core.labels import LabelCount
from transforms.core.spec import EmbedderSpec
from transforms.core.text import printable
from transforms.images.decode import DECODERS
from transforms.inputs.types import Note
from transforms.runs import part_files
from transforms.runs.part_files import Commit

MANIFEST_FILE = "manifest.json"

_NAMES = 20
"""Names of what was left out, for each kind."""

_NAME_CHARACTERS = 300

_PACKAGES = (
    *("imagebeam", "apache-beam", "keras", "numpy", "pyarrow", "tensorflow"),
    *sorted({package for decoder in DECODERS.values() for package in decoder.packages} - {"numpy"}),
)


class ModelFacts(Protocol):
    """What the manifest says of a run's model: of a `StagedModel`, or of a `StagedClassifier`."""

    @property
    def spec(self) -> EmbedderSpec:
        """Of the embedder."""

    @property
    def weights(self) -> dict[str, str | None]:
        """Where the weights came from."""

    @property
    def dimensions(self) -> dict[str, int]:
        """Column name -> vector length."""


@dataclass(frozen=True)
class UnitReport:
    """What is said of one unit when it is done.

    Attributes:
        records: planned in the unit.
        commit: what its part says.
        skipped: whether an earlier run had committed it.
        worked_again: records that failed through the machine's fault in an earlier run.
    """

    records: int
    commit: Commit
    skipped: bool
    worked_again: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> UnitReport:
        """The inverse of `to_json`."""
        values = json.loads(line)
        return cls(**{**values, "commit": Commit(**values["commit"])})


@dataclass
class Totals:
    """A run's sums over its units.

    Attributes:
        records: planned.
        embedded: rows written, by this run or an earlier one.
        failed: records that ended as failures.
        units: work units.
        units_skipped: units an earlier run had committed.
        bytes: of the parts.
        icc_profiles_ignored: images whose ICC colour profile was not applied.
        failures: failed records by "stage/error_type".
        retryable: failed records that the next run works again, since the machine is at fault.
        worked_again: records of which this was so in an earlier run.
    """

    records: int = 0
    embedded: int = 0
    failed: int = 0
    units: int = 0
    units_skipped: int = 0
    bytes: int = 0
    icc_profiles_ignored: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    retryable: int = 0
    worked_again: int = 0

    @property
    def failure_rate(self) -> float:
        """Share of the records that failed, 0 to 1."""
        return self.failed / self.records if self.records else 0.0


def sum_up(reports: Iterable[UnitReport]) -> Totals:
    """The sums over a run's units."""
    totals = Totals()
    failures: Counter[str] = Counter()
    for report in reports:
        totals.records += report.records
        totals.embedded += report.commit.embedded
        totals.failed += report.commit.failed
        totals.units += 1
        totals.units_skipped += report.skipped
        totals.bytes += report.commit.part_bytes
        totals.icc_profiles_ignored += report.commit.icc_profiles_ignored
        totals.retryable += report.commit.retryable
        totals.worked_again += report.worked_again
        failures.update(report.commit.failures)
    totals.failures = dict(failures.most_common())
    return totals


def sum_up_labels(reports: Iterable[UnitReport]) -> LabelCount:
    """The labels of a run's rows."""
    total = LabelCount()
    for report in reports:
        total += LabelCount(**report.commit.labels)
    return total


def reconcile(reports: list[UnitReport], output: str, folder: str = part_files.EMBEDDINGS) -> list[str]:
    """Hold the reports against themselves and against what is stored; one line for each thing that does not add up."""
    problems = []
    ids = Counter(report.commit.unit_id for report in reports)
    problems += [f"unit {unit_id} was reported {count} times" for unit_id, count in ids.items() if count > 1]
    for report in reports:
        ended = report.commit.embedded + report.commit.failed
        if ended != report.records:
            problems.append(f"unit {report.commit.unit_id} had {report.records} records, of which {ended} ended")
    stored = {unit_id for unit_id, _ in part_files.list_parts(storage.join(output, folder))}
    problems += [f"the part of unit {unit_id} is gone" for unit_id in ids if unit_id not in stored]
    return problems


def describe_unread(reports: Iterable[UnitReport]) -> list[str]:
    """One line for each file that was not read to its end, saying how much was not."""
    return [_describe(unread) for report in reports for unread in report.commit.unread]


def _describe(unread: dict[str, Any]) -> str:
    size, records = unread["bytes"], unread["records"]
    amounts = [f"{size:,} bytes"] if size else []
    if records:
        amounts.append(f"{'about ' if size else ''}{records:,} records")
    amount = f", {' or '.join(amounts)} of it" if amounts else ""
    return printable(f"{unread['uri']} was not read to its end{amount}: {unread['reason']}")


def sum_up_notes(notes: Iterable[Note]) -> list[dict[str, Any]]:
    """What was left out of the input, by kind: how many, and the first few names."""
    found: dict[str, dict[str, Any]] = {}
    for note in sorted(notes, key=lambda note: (note.kind, note.uri)):
        kind = found.setdefault(note.kind, {"kind": note.kind, "count": 0, "names": []})
        kind["count"] += note.count
        kind["names"] += [
            printable(f"{note.uri}#{name}" if note.uri not in ("", name) else name, _NAME_CHARACTERS)
            for name in note.names[: _NAMES - len(kind["names"])]
        ]
    return list(found.values())


def remove_superseded(reports: list[UnitReport], output: str, parts: str = part_files.EMBEDDINGS) -> int:
    """Delete parts of units that the input no longer has (a file was added, removed or replaced); how many."""
    current = {report.commit.unit_id for report in reports}
    with_failures = {report.commit.unit_id for report in reports if report.commit.failed}
    removed = 0
    for folder, keep in ((parts, current), (part_files.FAILURES, with_failures)):
        for unit_id, uri in list(part_files.list_parts(storage.join(output, folder))):
            if unit_id not in keep:
                storage.delete(uri)
                removed += folder == parts
    return removed


def write_manifest(
    output: str,
    run: dict[str, Any],
    staged: ModelFacts,
    reports: list[UnitReport],
    *,
    folder: str = part_files.EMBEDDINGS,
    superseded: int,
    notes: Iterable[Note] = (),
    timings: dict[str, Any],
) -> dict[str, Any]:
    """Write OUT/manifest.json, and return what it holds."""
    totals = sum_up(reports)
    manifest: dict[str, Any] = {
        "totals": dataclasses.asdict(totals),
        "labels": dataclasses.asdict(sum_up_labels(reports)),
        "superseded_parts_removed": superseded,
        "unread": [unread for report in reports for unread in report.commit.unread],
        "left_out": sum_up_notes(notes),
        "run": run,
        "fingerprint": staged.spec.fingerprint,
        "spec": staged.spec.to_dict(),
        "weights": staged.weights,
        "dimensions": staged.dimensions,
        "versions": versions(),
        "decoders": {kind.value: list(decoder.packages) for kind, decoder in DECODERS.items()},
        "timings": timings,
        "parts": [
            {
                "path": f"{folder}/{part_files.part_name(report.commit.unit_id)}",
                "rows": report.commit.embedded,
                "failed": report.commit.failed,
                "bytes": report.commit.part_bytes,
                "sha256": report.commit.part_sha256,
            }
            for report in sorted(reports, key=lambda report: report.commit.unit_id)
        ],
    }
    storage.publish(storage.join(output, MANIFEST_FILE), json.dumps(manifest, indent=1).encode())
    return manifest


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
