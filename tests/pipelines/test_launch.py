"""What breaks a run breaks it in one clear line, and the same command ends it once the cause is gone."""

import errno
import gc
import os
import tempfile
import time

import apache_beam as beam
import numpy as np
import pytest

from pipelines.runtime import launch, model_staging
from tests.support.extracting import COUNT, embeddings, extract, files_of, manifest
from transforms import storage
from transforms.models.staged import StagedModel
from transforms.runs.manifest import Times


@pytest.fixture
def broken(source, output, capfd):
    """Runs into an error; gives its one line."""

    def run(code, *flags, source=source, output=output):
        assert extract(source, output, *flags) == code
        said = capfd.readouterr()
        assert "Traceback" not in said.err + said.out
        lines = [line for line in said.err.splitlines() if line.startswith("imagebeam: ")]
        assert len(lines) == 1, said.err
        assert "internal error" not in lines[0]
        return lines[0]

    return run


def test_input_without_matches(broken, source, output):
    assert f"--input '{source}/*.tiff'" in broken(2, source=source / "*.tiff")
    assert f"--input '{source}/none'" in broken(2, source=[source, source / "none"])
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--layer", "block1_poll"), "block1_pool"),
        (("--weights", "/none/such.npz"), "/none/such.npz"),
        (("--image_size", "8x8"), "32"),
        (("--rows_per_unit", "0"), "--rows_per_unit"),
        (("--keep_columns", "camera"), "--keep_columns camera"),
        (("--runner", "NoSuchRunner"), "NoSuchRunner"),
        (("--direct_num_workers", "-1"), "--direct_num_workers"),
        (("--profile_cpu",), "--profile_location FOLDER. Received: --profile_cpu without"),
        (("--profile_memory", "--profile_location", "x"), "--profile_cpu"),
    ],
)
def test_wrong_flag_is_named_and_a_later_run_works(broken, source, output, flags, named):
    assert named in broken(2, *flags)
    assert extract(source, output) == 0
    assert len(embeddings(output)) == COUNT


def test_refused_run_leaves_no_folder_of_beams(broken, source, output, tmp_path, monkeypatch):
    """Beam makes one for every pipeline, and removes it at the end of its run."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert extract(source, output) == 0
    broken(2, "--weights", "random:1")
    gc.collect()  # as the end of the process would
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("below", ["", "/run"])
def test_output_is_a_file(broken, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    line = broken(2, output=f"{tmp_path}/file{below}")
    assert "The output cannot be used" in line
    assert f"{tmp_path}/file" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_without_write_permission(broken, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in broken(2, output=tmp_path / "locked" / "run")


@pytest.mark.parametrize(
    ("full_at", "committed"),
    [("run.json", 0), ("model/embedder-", 0), ("embeddings/", 2), ("manifest.json", 4)],
)
def test_full_disk_at_any_write(broken, source, output, monkeypatch, full_at, committed):
    written: list[str] = []

    def full(publish):
        def write(uri, data, **settings):
            if full_at in uri and (full_at != "embeddings/" or len(written) == committed):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), uri)
            written.extend([uri] if "embeddings/" in uri else [])
            publish(uri, data, **settings)

        return write

    with monkeypatch.context() as patch:
        for name in ("publish", "publish_file"):
            patch.setattr(storage, name, full(getattr(storage, name)))
        line = broken(1)
    assert "No space left on device" in line
    assert full_at in line
    assert not (output / "manifest.json").exists()
    assert "he same command goes on" in line
    if full_at != "run.json":
        assert f"{committed} units are committed" in line
    assert extract(source, output) == 0
    assert manifest(output)["totals"]["units_skipped"] == committed
    assert len(embeddings(output)) == COUNT


def test_unloadable_model_stops_the_run(broken, source, output, monkeypatch):
    def load(self):
        raise MemoryError("cannot allocate 500 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(StagedModel, "load", load)
        assert "cannot allocate 500 GiB" in broken(1)
    assert extract(source, output) == 0


def test_changed_staged_model_is_not_used(broken, source, output):
    assert extract(source, output) == 0
    before = files_of(output)
    next(output.glob("embeddings/*")).unlink()
    (path,) = (output / "model").glob("embedder-*.keras")
    path.write_bytes(path.read_bytes() + b"\0")
    assert "is not the file that was staged" in broken(2)
    path.unlink()
    assert extract(source, output) == 0
    assert files_of(output) == before
    (path,) = (output / "model").glob("embedder-*.keras")
    path.write_bytes(path.read_bytes() + b"\0")
    old = embeddings(output)
    assert extract(source, output, "--overwrite") == 0
    new = embeddings(output)
    assert new.keys() == old.keys()
    assert all(np.array_equal(new[key], old[key]) for key in old)


def test_interrupted_overwrite_keeps_old_parts_and_resumes(broken, source, output, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    assert extract(source, output) == 0
    old = embeddings(output)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "new_reports_folder", fail)
        broken(1, "--overwrite", "--pooling", "max")
    kept = embeddings(output)
    assert all(np.array_equal(kept[key], old[key]) for key in old)
    assert extract(source, output, "--pooling", "max") == 0
    new = embeddings(output)
    assert new.keys() == old.keys()
    assert all((new[key] > old[key]).any() for key in new)


def test_unreadable_run_json(broken, source, output):
    assert extract(source, output) == 0
    (output / "run.json").write_text("{")
    assert extract(source, output) == 0  # The manifest says of which run the folder is.
    (output / "run.json").write_text("{")
    (output / "manifest.json").unlink()
    assert "run.json cannot be understood" in broken(2)
    (output / "model" / "spec.json").write_text("[]")
    assert extract(source, output, "--overwrite") == 0
    assert len(embeddings(output)) == COUNT


def test_cause_is_reported_even_when_the_output_is_unreachable(broken, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    def run(self):
        monkeypatch.setattr("transforms.parts.part_files.list_parts", fail)
        raise RuntimeError("what happened")

    monkeypatch.setattr("apache_beam.Pipeline.run", run)
    line = broken(1)
    assert "what happened" in line
    assert "What is committed stays in" in line


def test_worker_error_is_found_in_a_java_traceback(broken, monkeypatch):
    said = """Pipeline BeamApp failed in state FAILED: java.util.concurrent.ExecutionException: Job execution failed.
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 7: Traceback:
  File "/usr/lib/python3.11/site-packages/apache_beam/runners/common.py", line 1498, in process
    self.do_fn_invoker.invoke_process(windowed_value)
OSError: gs://shop/out/embeddings/part-00.parquet: 403 Forbidden [while running 'Embed units/CommitUnits/Commit unit']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient$Handler.onNext(FnApiControlClient.java:180)
\tat java.base/java.lang.Thread.run(Thread.java:840)
\t... 3 more
"""

    def fail(*_):
        raise RuntimeError(said)

    monkeypatch.setattr("apache_beam.Pipeline.run", fail)
    assert "gs://shop/out/embeddings/part-00.parquet: 403 Forbidden. " in broken(1)


@pytest.mark.skipif(os.name != "posix", reason="worker processes are started through cmd.exe")
def test_prism_that_cannot_be_fetched_is_told_with_the_remedy():
    said = launch._last_line(RuntimeError("Unable to fetch remote prism binary at https://x/prism.zip: no network"))
    assert said.startswith("Unable to fetch remote prism binary at https://x/prism.zip: no network. ")
    assert "--prism_location" in said


@pytest.mark.slow
def test_worker_processes_are_children_of_the_launcher(tmp_path):
    """With no shell between, which could be killed alone and leave a worker that nobody waits for."""
    with launch.open_pipeline(["--direct_running_mode=multi_processing", "--direct_num_workers=2"]) as pipeline:
        _ = (
            pipeline
            | beam.Create(range(20))
            | beam.Reshuffle()
            | beam.Map(lambda _: f"{os.getppid()} {os.getpid()}")
            | beam.io.WriteToText(f"{tmp_path}/seen")
        )
    seen = [line.split() for path in tmp_path.glob("seen*") for line in path.read_text().splitlines()]
    assert len(seen) == 20
    assert {parent for parent, _ in seen} == {str(os.getpid())}
    assert 1 <= len({worker for _, worker in seen} - {str(os.getpid())}) <= 2


def test_seconds_of_a_run_count_from_the_start_of_its_command(source, output, monkeypatch):
    """Importing Keras and loading the model are most of a small run."""
    staged_at, counted = [], []
    stage = model_staging.stage_model

    def staged(*args, **settings):
        staged_at.append(time.time())
        return stage(*args, **settings)

    def counting(started, finished):
        counted.append(started)
        return Times(started, finished)

    monkeypatch.setattr(model_staging, "stage_model", staged)
    monkeypatch.setattr("pipelines.runtime.finish.Times", counting)
    before = time.time()
    assert extract(source, output) == 0
    assert before <= counted[0] < staged_at[0]
