"""Pass unit reports from workers to the launcher, as files of JSON lines."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import zlib
from collections.abc import Iterable

from transforms import storage
from transforms.readers.units import Note
from transforms.runs.lease import new_token
from transforms.runs.manifest import UnitReport

_NOTE = b'{"note": '

FILES = 16
"""Always so many, empty or not: one that is missing would pass for units that were never planned."""

_FOLDER = re.compile(r"/reports-([0-9a-f]{8})[0-9a-f]{8}/[^/]*$")
_FILES_OF_RUN = f"units-*-of-{FILES:05d}.jsonl"


def new_reports_folder(output: str, token: str | None = None) -> str:
    """A folder of a run's own, so that two runs over one output at once do not take each other's reports away.

    Args:
        output: of the run.
        token: of the lease under which it runs; None of a run that goes on without its launcher.
    """
    return storage.join(output, f"reports-{token or new_token()}")


def delete_reports(output: str, older_than: float = 0.0) -> None:
    """Delete the reports of runs that began so many seconds ago: those that were killed at their end left theirs."""
    for info in list(storage.list_below(output, f"reports-*/{_FILES_OF_RUN}")):
        if (match := _FOLDER.search(info.uri)) and time.time() - int(match[1], 16) >= older_than:
            storage.delete(info.uri)
            storage.remove_leftovers(storage.parent(info.uri))
            storage.remove_empty_folder(storage.parent(info.uri))


def read_reports(prefix: str) -> tuple[list[UnitReport], list[Note]]:
    """What `write_reports.WriteReports` wrote below `prefix`: of the units, and on the input.

    Raises:
        FileNotFoundError: if a file of them is missing.
        OSError: if one cannot be read.
    """
    lines = (line for number in range(FILES) for line in storage.read_bytes(_uri(prefix, number)).splitlines() if line)
    reports: list[UnitReport] = []
    notes: list[Note] = []
    for line in lines:
        if line.startswith(_NOTE):
            values = json.loads(line)["note"]
            notes.append(Note(values["kind"], values["uri"], values["count"], tuple(values["names"])))
        else:
            reports.append(UnitReport.from_json(line))
    return reports, notes


def to_line(report: UnitReport | Note) -> tuple[int, str]:
    """The number of the file a report belongs to, and the report as JSON."""
    if isinstance(report, Note):
        return zlib.crc32(report.uri.encode("utf-8", "surrogatepass")) % FILES, json.dumps(
            {"note": dataclasses.asdict(report)}
        )
    return zlib.crc32(report.commit.unit_id.encode()) % FILES, report.to_json()


def publish_group(group: tuple[int, Iterable[str]], prefix: str) -> int:
    """Write one file: its number, and its lines. Returns its number: Beam's coder takes no path that is not UTF-8."""
    number, lines = group
    # The line that makes the group is written too, empty: Beam cannot write a file of no bytes to s3://.
    storage.publish(_uri(prefix, number), "".join(f"{line}\n" for line in sorted(lines)).encode())
    return number


def _uri(prefix: str, number: int) -> str:
    return storage.join(prefix, f"units-{number:05d}-of-{FILES:05d}.jsonl")
