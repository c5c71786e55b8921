"""Unit reports on their way from workers to whoever reconciles the run: files of JSON lines."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam

from transforms import storage
from transforms.manifest import UnitReport

FILES = 16
"""Always so many, empty or not: one that is missing would pass for units that were never planned."""

_FOLDER = "reports-"


def new_reports_folder(output: str) -> str:
    """A folder of a run's own, so that two runs over one output at once do not take each other's reports away."""
    return storage.join(output, f"{_FOLDER}{secrets.token_hex(4)}")


def delete_reports(output: str) -> None:
    """Delete the reports of all runs: those killed at their end leave theirs."""
    for folder in {storage.parent(info.uri) for info in storage.list_files(storage.join(output, f"{_FOLDER}*", "*"))}:
        storage.delete_folder(folder)


@dataclass
class WriteReports(beam.PTransform):  # type: ignore[misc]
    """`UnitReport`s -> the uris of `FILES` files below `prefix`, each written once, whole.

    Through `transforms.storage`: Beam's own sink spends half a minute of every process on looking for credentials
    where there are none, and is not held to the same behaviour when the network fails.
    """

    prefix: str

    def expand(self, reports: beam.PCollection) -> beam.PCollection:
        """Group by file, so that a bundle that is tried again writes the same, and write."""
        empty = reports.pipeline | "Files" >> beam.Create([(number, "") for number in range(FILES)])
        lines = reports | "To JSON" >> beam.Map(_line)
        return (empty, lines) | beam.Flatten() | beam.GroupByKey() | "Publish" >> beam.Map(_publish, prefix=self.prefix)


def read_reports(prefix: str) -> list[UnitReport]:
    """What `WriteReports` wrote below `prefix`.

    Raises:
        FileNotFoundError: if a file of them is missing.
        OSError: if one cannot be read.
    """
    lines = (line for number in range(FILES) for line in storage.read_bytes(_uri(prefix, number)).splitlines())
    return [UnitReport.from_json(line) for line in lines]


def _line(report: UnitReport) -> tuple[int, str]:
    return zlib.crc32(report.commit.unit_id.encode()) % FILES, report.to_json()


def _publish(group: tuple[int, Iterable[str]], prefix: str) -> str:
    number, lines = group
    uri = _uri(prefix, number)
    storage.publish(uri, "".join(f"{line}\n" for line in sorted(lines) if line).encode())
    return uri


def _uri(prefix: str, number: int) -> str:
    return storage.join(prefix, f"units-{number:05d}-of-{FILES:05d}.jsonl")
