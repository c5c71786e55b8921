"""How a run ends: what it finds missing, and its exit code."""

import os

import pytest

from pipelines.runtime import finish
from tests.support.extracting import extract, files_of, manifest
from transforms.runs.manifest import Totals
from transforms.runs.reports import read_reports


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
