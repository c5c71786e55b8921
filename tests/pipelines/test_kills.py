"""Launchers and workers killed at any moment: the same command ends the run, and nothing is lost or comes twice."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import run_job
from tests.support.killable import LABELS, processes, run, wait_until_gone, workers, write_classifier
from tests.support.plain_runs import FLAGS, assert_no_row_is_wrong, half_written, images, make_old, write_layout
from tests.support.plain_runs import assert_whole as assert_embedded

IMAGES, BAD = 60, {3, 31, 58}

LAUNCHERS_KILLED = {"extract": 56, "classify": 40}
WORKERS_KILLED = 4

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(900)]


@pytest.fixture
def job(tmp_path):
    """Starts a job's command: a process."""
    write_classifier(tmp_path / "classifier")
    context = processes()
    flags = {
        "extract": list(FLAGS),
        "classify": ["--classifier", str(tmp_path / "classifier"), "--max_failure_rate", "1"],
    }

    def start(name, layout, output, *more):
        argv = ["--input", *map(str, layout.patterns), "--output", str(output), "--rows_per_unit", "4"]
        process = context.Process(target=run, args=(name, [*argv, *flags[name], *more], f"{tmp_path}/log"))
        process.start()
        return process

    yield start
    shutil.rmtree(tmp_path, ignore_errors=True)


def predictions(output):
    """(label, probability) by key; a row that comes twice is an error."""
    found = {}
    for path in sorted(Path(output).glob("predictions/part-*.parquet")):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            assert row["key"] not in found
            found[row["key"]] = (row["predicted"], row["probability"])
    return found


def assert_labelled(output, layout):
    """Every image that decodes has the label of its brightest channel."""
    found = predictions(output)
    expected = {key: mean for key, mean in layout.means.items() if mean is not None}
    assert found.keys() == expected.keys()
    for key, mean in expected.items():
        assert found[key][0] == LABELS[mean.argmax()]
        np.testing.assert_allclose(found[key][1], mean.max() / mean.sum(), rtol=1e-6)


def check_finished(name, output, layout):
    (assert_embedded if name == "extract" else assert_labelled)(output, layout)
    assert run_job("verify", [str(output)]) == 0


@pytest.mark.parametrize("name", LAUNCHERS_KILLED)
def test_launchers_killed_at_any_moment(tmp_path, job, name):
    layout = write_layout(tmp_path / "in", "files", images(IMAGES, BAD), 2)
    output, moments = tmp_path / "out", random.Random(name)
    for _ in range(2):  # The first waits for what all are forked from.
        shutil.rmtree(output, ignore_errors=True)
        started = time.monotonic()
        process = job(name, layout, output)
        process.join()
        assert process.exitcode == 0
        takes = time.monotonic() - started
    shutil.rmtree(output)
    killed = whole = 0
    while killed < LAUNCHERS_KILLED[name]:
        process = job(name, layout, output)
        process.join(moments.uniform(0, takes))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            whole += 1
            check_finished(name, output, layout)
            shutil.rmtree(output)
        else:
            killed += 1
            if name == "extract":
                assert_no_row_is_wrong(output, layout)
            else:
                assert predictions(output).keys() <= layout.means.keys()
    make_old(half_written(output))
    for _ in range(2):
        process = job(name, layout, output)
        process.join()
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    check_finished(name, output, layout)
    assert not half_written(output)
    assert not [*output.glob("reports-*"), *output.glob("lease-*")]


def test_workers_killed_at_any_moment(tmp_path, job):
    layout = write_layout(tmp_path / "in", "files", images(40 * IMAGES, BAD), 2)
    moments = random.Random(1)
    flags = ("--direct_running_mode", "multi_processing", "--direct_num_workers", "2")
    for number in range(WORKERS_KILLED):
        output = tmp_path / f"out-{number}"
        process = job("extract", layout, output, *flags)
        while len(list(output.glob("embeddings/part-*"))) < 3:
            assert process.exitcode is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        started = workers(process.pid)
        os.kill(started[number % 2], signal.SIGKILL)
        process.join(60)
        assert process.exitcode == 1
        wait_until_gone(started)
        said = (tmp_path / "log").read_text()
        assert "imagebeam: error: A worker process ended before its work did" in said
        assert_no_row_is_wrong(output, layout)
        process = job("extract", layout, output)
        process.join()
        assert process.exitcode == 0
        check_finished("extract", output, layout)
