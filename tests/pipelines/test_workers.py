"""Who does the work: processes of this machine, as many as are asked for or as fit the machine."""

import os

import numpy as np
import pytest

from pipelines.cli import run_job
from pipelines.options import workers
from pipelines.options.workers import WorkerOptions, complete, suggested
from tests.support.extracting import COUNT, embeddings, extract, manifest
from transforms.core.engines import PrecisionChoice
from transforms.core.errors import ImagebeamError


def completed(*beam_args, precision=PrecisionChoice.FLOAT32, **options):
    workers = WorkerOptions(**options)
    return complete(beam_args, workers, patterns=["in"], output="out", precision=precision, batch_size=32)


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many cores, with a GPU or without."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)

    def make(cores, gpu):
        monkeypatch.setattr(workers, "available_cores", lambda: cores)
        monkeypatch.setattr(workers, "has_nvidia_gpu", lambda: gpu)

    yield make
    os.environ.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)


@pytest.mark.parametrize(
    ("cores", "gpu", "precision", "batch_size", "count"),
    [
        (16, False, "float32", 32, 1),
        (1, True, "bfloat16", 32, 1),
        (4, True, "bfloat16", 32, 2),
        (16, True, "bfloat16", 256, 8),
        (64, True, "float16", 256, 8),
        (16, True, "float32", 256, 2),
        (16, True, "float32", 128, 4),
        (16, True, "float32", 1024, 1),
        (16, True, "float32", 32, 8),
    ],
)
def test_auto_fits_the_machine(machine, cores, gpu, precision, batch_size, count):
    machine(cores, gpu)
    assert suggested(PrecisionChoice(precision), batch_size) == count


def test_processes_share_the_gpu_of_jax(machine):
    machine(16, gpu=True)
    assert completed() == ()
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ
    given = completed("--runner=DirectRunner", local_workers="auto", precision=PrecisionChoice.BFLOAT16)
    assert given == ("--runner=DirectRunner", "--direct_num_workers=8", "--direct_running_mode=multi_processing")
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


@pytest.mark.parametrize(
    ("beam_args", "named"),
    [
        (["--direct_num_workers=2"], "--direct_num_workers"),
        (["--direct_running_mode", "multi_threading"], "--direct_running_mode"),
        (["--runner=FlinkRunner"], "--runner FlinkRunner"),
        (["--runner", "PortableRunner"], "--runner PortableRunner"),
    ],
)
def test_flags_that_contradict_it_are_refused(beam_args, named):
    with pytest.raises(ImagebeamError, match=named):
        completed(*beam_args, local_workers=2)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_other_numbers_are_refused(text, capsys):
    assert run_job("extract", ["--input", "in", "--output", "out", f"--local_workers={text}"]) == 2
    assert "--local_workers" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(source, output, tmp_path):
    assert extract(source, output, "--local_workers", "2") == 0
    assert extract(source, tmp_path / "one") == 0
    found, expected = embeddings(output), embeddings(tmp_path / "one")
    assert found.keys() == expected.keys()
    assert manifest(output)["totals"]["records"] == COUNT
    for key, vector in found.items():
        np.testing.assert_allclose(vector, expected[key], rtol=1e-5, atol=1e-6)
