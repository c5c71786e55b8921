"""The DAG that ships, run by Airflow itself from a lock of its own: its tasks, and what an exit code makes of them."""

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.support.environments import ROOT, Environment
from tests.support.image_samples import encode, picture

pytestmark = [pytest.mark.slow, pytest.mark.install, pytest.mark.timeout(900)]

DAG = "imagebeam_extract"


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


def run(airflow, date, seconds=None):
    """Airflow's own run of the whole DAG in one process; returns its exit code (None: stopped) and its log."""
    command = [airflow.folder / "bin" / "airflow", "dags", "test", DAG, date]
    try:
        done = subprocess.run(
            command,
            env=airflow.variables,
            cwd=airflow.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        return None, (stopped.stdout or b"").decode()
    return done.returncode, done.stdout.decode()


def test_airflow_takes_the_file(airflow):
    assert "No data found" in airflow.command("airflow", "dags", "list-import-errors")
    assert DAG in airflow.command("airflow", "dags", "list")
    assert airflow.command("airflow", "tasks", "list", DAG).split()[-2:] == ["extract", "train"]


def test_it_extracts_and_trains(airflow, command, tmp_path, monkeypatch):
    """The real jobs, with a small model in VGG16's place."""
    for index in range(20):
        image = tmp_path / "images" / "ab"[index % 2] / f"{index:02}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(encode(picture(seed=index), "JPEG"))
    small = "--model VGG16 --weights random:0 --layer block1_pool --image_size 32x32"
    calls = command(
        f'cd {ROOT} && if [ "$1" = extract ]; then exec {sys.executable} -m pipelines "$@" {small}; fi\n'
        f'cd {ROOT} && exec {sys.executable} -m pipelines "$@"'
    )
    for name, value in {
        "input": f"{tmp_path}/images",
        "output": f"{tmp_path}/embeddings",
        "classifier": f"{tmp_path}/classifier",
    }.items():
        monkeypatch.setitem(airflow.variables, f"AIRFLOW_VAR_IMAGEBEAM_{name.upper()}", value)
    code, log = run(airflow, "2026-01-02")
    assert code == 0, log
    assert [line.split()[0] for line in calls()] == ["extract", "train"]
    rows = pq.read_table(tmp_path / "embeddings" / "embeddings", columns=["key"]).num_rows
    assert rows == 20
    assert (tmp_path / "classifier" / "metrics.json").exists()


@pytest.mark.parametrize("code", [2, 3])
def test_what_a_retry_cannot_change_is_not_tried_again(airflow, command, code):
    calls = command(f"exit {code}")
    failed, log = run(airflow, f"2026-02-0{code}")
    assert failed == 1
    assert f"AirflowFailException: exit code {code}" in log
    assert len(calls()) == 1
    assert calls()[0].startswith("extract --input gs://BUCKET/")


def test_the_others_are(airflow, command):
    """Airflow waits ten minutes for it, which nobody does here."""
    calls = command("exit 1")
    code, log = run(airflow, "2026-03-01", seconds=40)
    assert code is None, log
    assert "new_state=up_for_retry" in log
    assert len(calls()) == 1
