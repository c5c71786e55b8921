"""How a run ends: what it finds missing, and its exit code."""

import os

import pytest

from pipelines.cli import run_job
from pipelines.runtime import finish
from tests.support import plain_runs
from tests.support.extracting import extract, files_of, manifest
from tests.support.plain_runs import plain
from transforms.embed.inventory import take_inventory
from transforms.readers.options import ReadOptions
from transforms.runs.manifest import Totals
from transforms.runs.reports import read_reports
from transforms.runs.retries import Retries


def test_missing_reports_remove_no_parts(source, output, monkeypatch):
    """Else their parts would be removed as superseded."""
    assert extract(source, output) == 0
    before = files_of(output)

    def lose(prefix):
        os.unlink(os.path.join(prefix, os.listdir(prefix)[0]))
        return read_reports(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(finish, "read_reports", lose)
        assert extract(source, output) == 1
    assert files_of(output) == before
    assert extract(source, output) == 0


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_rerun_removes_copies_of_parts_and_no_part(tmp_path, own, last):
    """Under a name of no part, and in place of another part of the same shard."""
    layout = plain_runs.write_layout(tmp_path / "in", "tfrecord", plain_runs.images(6, ()), 1)
    output = tmp_path / "out"

    def parts():
        return {path.name: path.read_bytes() for path in (output / "embeddings").iterdir()}

    with plain():
        assert plain_runs.extract(layout.patterns, output, "--rows_per_unit", 3) == 0
        before = parts()
        one, other = sorted(before)[::-1] if last else sorted(before)
        name = other if own else f"part-{'f0'[last] * 16}.parquet"
        (output / "embeddings" / name).write_bytes(before[one])
        patterns = tuple(map(str, layout.patterns))
        earlier = Retries(str(output), None, retry_failed=False)
        inventory = take_inventory(patterns, None, 3, ReadOptions(), on_unit=lambda unit: None, earlier=earlier)
        assert inventory.committed.units == (1 if own else 2)
        assert plain_runs.extract(layout.patterns, output, "--rows_per_unit", 3) == 0
    assert parts() == before
    assert run_job("verify", [str(output)]) == 0


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("1 of 2 records failed",), 3)])
def test_failed_check_is_exit_code_3(problems, code):
    assert finish.Result(Totals(), problems).exit_code == code


def test_run_with_problems_finishes_and_reports_them(source, output, capfd):
    (source / "a" / "bad.jpg").write_bytes(b"no image")
    assert extract(source, output) == 3
    said = capfd.readouterr().err
    assert "PROBLEM: 1 of 13 records failed (7.69%), more than --max_failure_rate 0.01" in said
    assert manifest(output)["totals"]["failed"] == 1
    assert not list(output.glob("reports*"))
