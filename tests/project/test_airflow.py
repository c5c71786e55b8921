"""The DAG that ships, run by Airflow itself from a lock of its own: its tasks, and what an exit code makes of them."""

import sys

import pyarrow.parquet as pq
import pytest

from tests.support.environments import ROOT, Environment
from tests.support.extracting import small_images

pytestmark = [pytest.mark.slow, pytest.mark.install, pytest.mark.timeout(900)]

DAG = "imagebeam_extract"
RUN = ("airflow", "dags", "test", DAG)
"""Airflow's own run of the whole DAG in one process; a date follows."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """An environment that holds Airflow and not Imagebeam, with an empty database."""
    environment = Environment(tmp_path_factory.mktemp("airflow") / "airflow")
    environment.install_lock(ROOT / "requirements-airflow.lock")
    environment.variables |= {
        "AIRFLOW_HOME": str(environment.home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "deploy" / "schedule" / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
    }
    environment.command("airflow", "db", "migrate")
    environment.command("airflow", "dags", "reserialize")
    return environment


@pytest.fixture
def command(airflow, tmp_path, monkeypatch):
    """Puts a script onto the workers' path as `imagebeam`; returns the commands it was given."""

    def put(body):
        folder = tmp_path / "bin"
        folder.mkdir()
        script = folder / "imagebeam"
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setitem(airflow.variables, "PATH", f"{folder}:{airflow.variables['PATH']}")
        return lambda: (tmp_path / "calls").read_text().splitlines()

    return put


def test_airflow_loads_the_dag(airflow):
    assert "No data found" in airflow.command("airflow", "dags", "list-import-errors")
    assert DAG in airflow.command("airflow", "dags", "list")
    assert airflow.command("airflow", "tasks", "list", DAG).split()[-2:] == ["extract", "train"]


def test_dag_extracts_and_trains(airflow, command, tmp_path, monkeypatch):
    """The real jobs, with a small model in VGG16's place."""
    small_images(tmp_path / "images", 20)
    small = "--model VGG16 --weights random:0 --layer block1_pool --image_size 32x32"
    calls = command(f'cd {ROOT}; exec {sys.executable} -m pipelines "$@" $([ "$1" = train ] || echo {small})')
    for name, value in {
        "input": f"{tmp_path}/images",
        "output": f"{tmp_path}/embeddings",
        "classifier": f"{tmp_path}/classifier",
    }.items():
        monkeypatch.setitem(airflow.variables, f"AIRFLOW_VAR_IMAGEBEAM_{name.upper()}", value)
    airflow.command(*RUN, "2026-01-02")
    assert [line.split()[0] for line in calls()] == ["extract", "train"]
    rows = pq.read_table(tmp_path / "embeddings" / "embeddings", columns=["key"]).num_rows
    assert rows == 20
    assert (tmp_path / "classifier" / "metrics.json").exists()


@pytest.mark.parametrize("code", [2, 3])
def test_exit_codes_2_and_3_are_not_retried(airflow, command, code):
    calls = command(f"exit {code}")
    log = airflow.command(*RUN, f"2026-02-0{code}", code=1)
    assert f"AirflowFailException: exit code {code}" in log
    assert len(calls()) == 1
    assert calls()[0].startswith("extract --input gs://BUCKET/")


def test_other_exit_codes_are_retried(airflow, command):
    """Airflow waits ten minutes for it, which nobody does here."""
    calls = command("exit 1")
    log = airflow.command(*RUN, "2026-03-01", code=-9, seconds=40)
    assert "new_state=up_for_retry" in log
    assert len(calls()) == 1
