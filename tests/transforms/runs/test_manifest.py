"""Reconciliation: what does not add up is said, and what the input no longer has is removed."""

import dataclasses
import hashlib
import json
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.fakes import ChannelMeans
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Row, Stage
from transforms.models.staged import StagedModel
from transforms.parts import part_files
from transforms.readers.units import Shard, ShardSlice, ShardUnit
from transforms.runs import manifest
from transforms.runs.manifest import Settled, Times, UnitReport, reconcile, sum_up, write_manifest
from transforms.runs.settle import settle
from transforms.storage.files import FileInfo

SPEC = ChannelMeans().spec


def unit(start, count=3):
    shard = Shard(FileInfo("/in/a.tfrecord", 99, "v1"), InputFormat.TFRECORD)
    return ShardUnit((ShardSlice(shard, start, count),))


def commit(output, work_unit, failed=0):
    rows = [
        Row(f"k{work_unit.slices[0].start + index}", "u", None, 4, 4, "0" * 64, {"embedding": np.zeros(3, np.float32)})
        for index in range(work_unit.count - failed)
    ]
    failures = [Failure(f"f{index}", "u", Stage.DECODE, "empty", "no bytes") for index in range(failed)]
    table = part_files.rows_to_table(rows, {"embedding": 3}, part_files.PartOptions())
    return part_files.write_unit(str(output), work_unit, table, failures, SPEC)


def report(output, work_unit, failed=0, skipped=False):
    return UnitReport(work_unit.count, commit(output, work_unit, failed), skipped)


@pytest.fixture
def reports(tmp_path):
    return [report(tmp_path, unit(0)), report(tmp_path, unit(3), failed=2), report(tmp_path, unit(6), skipped=True)]


def test_report_round_trips_through_a_file(reports):
    for one in reports:
        line = one.to_json()
        assert "\n" not in line
        assert UnitReport.from_json(line) == one


def test_sums_cover_all_units(reports):
    totals = sum_up(reports)
    assert (totals.records, totals.embedded, totals.failed) == (9, 7, 2)
    assert (totals.units, totals.units_skipped) == (3, 1)
    assert totals.failures == {"decode/empty": 2}
    assert totals.failure_rate == pytest.approx(2 / 9)
    assert totals.bytes == sum(one.commit.part_bytes for one in reports)
    assert sum_up([]).failure_rate == 0


def test_consistent_run_has_no_problems(tmp_path, reports):
    assert reconcile(reports, str(tmp_path)) == []


def test_each_inconsistency_is_one_line(tmp_path, reports):
    gone = reports[0].commit.unit_id
    (tmp_path / "embeddings" / part_files.part_name(gone)).unlink()
    short = dataclasses.replace(reports[1], records=4)
    problems = reconcile([reports[0], short, reports[2], reports[2]], str(tmp_path))
    assert sorted(problems) == sorted(
        [
            f"the part of unit {gone} is gone",
            f"unit {short.commit.unit_id} had 4 records, of which 3 ended",
            f"unit {reports[2].commit.unit_id} was reported 2 times",
        ]
    )


def test_unreported_parts_are_removed_with_their_failures(tmp_path, reports):
    old = commit(tmp_path, unit(9), failed=1).unit_id
    stale = tmp_path / "failures" / part_files.part_name(reports[0].commit.unit_id)  # of a unit without failures
    stale.write_bytes(b"of an attempt that was killed")
    (tmp_path / "embeddings" / "notes.txt").write_text("mine")
    (tmp_path / "embeddings" / "part-00000-of-00001.parquet").write_text("Spark's")
    assert settle(reports, str(tmp_path)).superseded == 1
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        *(f"embeddings/{part_files.part_name(one.commit.unit_id)}" for one in reports),
        f"failures/{part_files.part_name(reports[1].commit.unit_id)}",
        "embeddings/notes.txt",
        "embeddings/part-00000-of-00001.parquet",
    }
    assert not any(old in name for name in left)


def test_manifest_describes_the_parts(tmp_path, reports):
    staged = StagedModel(
        "m", SPEC, "embedder.keras", "ab" * 32, {"source": "random:0", "file_sha256": None}, {"embedding": 3}
    )
    write_manifest(
        str(tmp_path), {"input": ["/in/*"]}, staged, reports, settled=Settled(superseded=1), times=Times(0.0, 60.0)
    )
    found = json.loads((tmp_path / manifest.MANIFEST_FILE).read_text())
    assert found["timings"]["seconds"] == 60
    assert found["fingerprint"] == SPEC.fingerprint
    assert found["spec"] == SPEC.to_dict()
    assert found["run"] == {"input": ["/in/*"]}
    assert found["superseded_parts_removed"] == 1
    assert found["labels"] == {"rows": 7, "labelled": 0, "classes": [], "has_more": False}
    assert found["versions"].keys() >= {"apache-beam", "keras", "pyarrow"}
    assert [part["path"] for part in found["parts"]] == sorted(part["path"] for part in found["parts"])
    for part in found["parts"]:
        data = (tmp_path / part["path"]).read_bytes()
        assert part["bytes"] == len(data)
        assert hashlib.sha256(data).hexdigest() == part["sha256"]
    assert sum(part["rows"] for part in found["parts"]) == found["totals"]["embedded"] == 7
    assert sum(part["failed"] for part in found["parts"]) == found["totals"]["failed"] == 2


def test_versions_name_the_backend_and_what_is_installed(monkeypatch):
    def version(package):
        if package in ("tensorflow", "torch"):
            raise PackageNotFoundError(package)
        return f"{package} 1"

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(backend=SimpleNamespace(backend=lambda: "jax")))
    found = manifest.versions()
    assert (found["jax"], found["keras"], found["keras-backend"]) == ("jax 1", "keras 1", "jax")
    assert not found.keys() & {"tensorflow", "torch"}
