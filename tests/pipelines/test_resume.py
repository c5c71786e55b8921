"""What a rerun of `imagebeam extract` does: nothing twice, nothing left out, whatever happened to the run before."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import run_job
from tests.support.extracting import COUNT, SMALL_MODEL, embeddings, extract, failures, files_of, manifest
from tests.support.image_samples import encode, picture
from transforms import storage
from transforms.core.text import counted
from transforms.models.staged import StagedModel
from transforms.runs import commit_units
from transforms.training_data.embeddings import open_embeddings


@pytest.fixture
def finished(source, output):
    """The output of a run that is done."""
    assert extract(source, output) == 0
    return output


@pytest.fixture
def no_model(monkeypatch):
    """Call to forbid model work from then on."""

    def load(*_):
        raise AssertionError("the model was loaded")

    def forbid():
        monkeypatch.setattr(StagedModel, "load", load)
        monkeypatch.setattr("pipelines.runtime.model_loader.load_backbone", load)

    return forbid


def damage(path):
    """Make an image a failure, and mend it: returns what mends it, size and time of the file as they were."""
    data, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(data)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def mend():
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return mend


def undisturbed(source, folder, *flags):
    """The output of a run that nothing happened to."""
    assert extract(source, folder, "--max_failure_rate", "1", *flags) == 0
    return folder


def assert_same_run(output, fresh):
    """The same files with the same rows; an image that went through the model in other company may differ a little."""
    ours, theirs = files_of(output), files_of(fresh)
    assert ours.keys() == theirs.keys()
    for name, data in ours.items():
        one, other = (pq.read_table(pa.BufferReader(content)) for content in (data, theirs[name]))
        assert one.schema.equals(other.schema)
        assert one.schema.metadata == other.schema.metadata
        columns = [column for column in one.column_names if column != "embedding"]
        assert one.select(columns).equals(other.select(columns))
    vectors = embeddings(fresh)
    for key, vector in embeddings(output).items():
        np.testing.assert_allclose(vector, vectors[key], rtol=1e-5, atol=1e-5 * np.abs(vector).max())


class TestARerun:
    def test_of_a_finished_run_does_no_model_work(self, source, finished, no_model, capsys):
        before, dates = files_of(finished), [path.stat().st_mtime_ns for path in finished.glob("embeddings/*")]
        capsys.readouterr()
        no_model()
        assert extract(source, finished) == 0
        units = len(dates)
        assert f"Nothing to do: {units} units were committed before; no model was loaded." in capsys.readouterr().err
        assert files_of(finished) == before
        assert [path.stat().st_mtime_ns for path in finished.glob("embeddings/*")] == dates
        totals = manifest(finished)["totals"]
        assert (totals["embedded"], totals["units"], totals["units_skipped"]) == (COUNT, units, units)

    def test_works_only_the_unit_whose_part_is_gone(self, source, finished, capsys):
        before = files_of(finished)
        sorted(finished.glob("embeddings/*"))[1].unlink()
        capsys.readouterr()
        assert extract(source, finished) == 0
        assert f"(1 unit now, {len(before) - 1} before)" in capsys.readouterr().err
        assert files_of(finished) == before

    @pytest.mark.parametrize("change", ["replace", "add", "remove"])
    def test_after_the_input_changed_ends_as_a_run_over_the_new_input(self, source, finished, tmp_path, change):
        path = source / "b" / "0007.jpg"
        if change == "replace":
            path.write_bytes(encode(picture(seed=99), "JPEG"))
        elif change == "add":
            shutil.copy(path, source / "b" / "0008.jpg")
        else:
            path.unlink()
        old = embeddings(finished)
        if change == "remove":  # Its row stays until it is to be removed.
            assert extract(source, finished) == 3
            assert embeddings(finished).keys() == old.keys()
            assert manifest(finished)["missing_inputs"] == {"parts": 1, "rows": 1}
            assert extract(source, finished) == 3
        assert extract(source, finished, "--prune") == 0
        assert_same_run(finished, undisturbed(source, tmp_path / "fresh"))
        new = embeddings(finished)
        assert len(new) == COUNT + {"replace": 0, "add": 1, "remove": -1}[change]
        if change == "replace":
            assert not np.array_equal(new[str(path)], old[str(path)])

    def test_ignores_leftovers_of_a_killed_write(self, source, finished, no_model):
        before = files_of(finished)
        (finished / "embeddings" / ".imagebeam-tmp-0123").write_bytes(b"half a part")
        no_model()
        assert extract(source, finished) == 0
        assert files_of(finished) == before
        assert len(embeddings(finished)) == COUNT

    def test_notices_a_part_that_changed(self, source, finished, capsys):
        part = sorted(finished.glob("embeddings/*"))[0]
        data = bytearray(part.read_bytes())
        group = pq.ParquetFile(part).metadata.row_group(0)
        vectors = group.column(group.num_columns - 1)
        data[vectors.data_page_offset + vectors.total_compressed_size // 2] ^= 1
        part.write_bytes(data)
        assert extract(source, finished) == 0  # A resume reads footers alone.
        assert run_job("verify", [str(finished)]) == 3
        said = capsys.readouterr()
        assert str(part) in said.out
        assert "--discard" in said.err
        assert run_job("verify", [str(finished), "--discard"]) == 3
        assert not part.exists()
        capsys.readouterr()
        assert extract(source, finished) == 0
        assert "(1 unit now" in capsys.readouterr().err
        assert run_job("verify", [str(finished)]) == 0
        assert len(embeddings(finished)) == COUNT

    def test_removes_reports_that_were_left_long_ago_and_no_others(self, source, finished):
        now, month = int(time.time()), 30 * 24 * 3600
        for started in (now, now - month):
            folder = finished / f"reports-{started:08x}01234567"
            folder.mkdir()
            (folder / "units-00003-of-00016.jsonl").touch()
        assert extract(source, finished) == 0
        assert [path.name for path in finished.glob("reports-*")] == [f"reports-{now:08x}01234567"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (("--layer", "block2_pool"), "layers:"),
            (("--pooling", "max"), "pooling: avg != max"),
            (("--weights", "random:1"), "weights_sha256:"),
            (("--image_size", "48x48"), "image_size: 32x32 != 48x48"),
            (("--precision", "bfloat16"), "precision: float32 != bfloat16"),
            (("--rows_per_unit", "6"), "rows_per_unit: 5 != 6"),
            (("--embedding_dtype", "float16"), "embedding_dtype: float32 != float16"),
            (("--label_column", "class"), "label_column: label != class"),
            (("--label_from", "none"), "label_from: auto != none"),
            (("--jpeg_decode", "scaled"), "jpeg_decode: exact != scaled"),
        ],
    )
    def test_another_run_into_the_same_output(self, source, finished, capsys, flags, named):
        before = files_of(finished)
        assert extract(source, finished, *flags) == 2
        message = capsys.readouterr().err
        assert named in message
        assert "--overwrite" in message
        assert files_of(finished) == before
        assert extract(source, finished) == 0

    def test_more_files_of_a_wildcard_that_the_shell_expanded(self, source, output, capsys):
        files = sorted(source.rglob("*.jpg"))
        assert extract(files[:6], output) == 0
        assert extract(files, output) == 2
        message = capsys.readouterr().err
        assert f"(input: {COUNT - 6} more, such as {files[6]})" in message
        assert "in quotes" in message
        assert extract([*files[2:6], *files[:1]], output) == 2
        assert f"(input: 1 fewer, such as {files[1]})" in capsys.readouterr().err
        assert extract(reversed(files[:6]), output) == 2
        assert "(input: the same in another order)" in capsys.readouterr().err

    def test_another_model_when_the_model_folder_is_gone(self, source, finished, capsys):
        shutil.rmtree(finished / "model")
        assert extract(source, finished, "--weights", "random:1") == 2
        assert "weights_sha256:" in capsys.readouterr().err
        assert extract(source, finished) == 0

    def test_parts_of_an_unknown_run(self, source, finished, capsys):
        (finished / "run.json").unlink()
        (finished / "manifest.json").unlink()
        assert extract(source, finished) == 2
        assert "no run.json says of which run" in capsys.readouterr().err

    def test_foreign_files_that_readers_would_take_for_parts(self, source, finished, capsys):
        parts = len(files_of(finished))
        foreign = finished / "embeddings" / "part-00000-of-00001.parquet"
        foreign.write_bytes(b"somebody's")
        for flags in ((), ("--overwrite",)):
            assert extract(source, finished, *flags) == 2
            assert f"{foreign} is not a part of a run" in capsys.readouterr().err
        assert foreign.read_bytes() == b"somebody's"
        assert len(files_of(finished)) == parts + 1

    @pytest.mark.parametrize("name", ["manifest.json", "run.json"])
    @pytest.mark.parametrize("flags", [(), ("--overwrite",)])
    def test_another_programs_files_of_the_same_name(self, source, output, capsys, name, flags):
        """A web application's manifest.json, say, which a first run set aside and a second one lost."""
        output.mkdir()
        (output / name).write_text('{"name": "mine"}')
        assert extract(source, output, *flags) == 2
        assert f"{output}/{name} is of something else" in capsys.readouterr().err
        assert [path.name for path in output.iterdir()] == [name]

    @pytest.mark.parametrize("flags", [("--layer", "blok1_pool"), ("--weights", "missing.npz")])
    def test_overwrite_deletes_nothing_when_the_new_model_cannot_be_had(self, source, finished, flags):
        before = files_of(finished)
        assert extract(source, finished, "--overwrite", *flags) == 2
        assert files_of(finished) == before
        assert extract(source, finished) == 0

    def test_overwrite_starts_again_and_deletes_nothing_else(self, source, finished, tmp_path):
        mine = [finished / name for name in ("model/notes.txt", "reports-2026/summary.txt", "plan/b.json")]
        for path in mine:
            path.parent.mkdir(exist_ok=True)
            path.write_text("keep me")
        old_reports = finished / "reports-0123456789abcdef"
        old_reports.mkdir()
        (old_reports / "units-00003-of-00016.jsonl").touch()
        old = embeddings(finished)
        assert extract(source, finished, "--pooling", "max", "--rows_per_unit", "12", "--overwrite") == 0
        new = embeddings(finished)
        assert new.keys() == old.keys()
        assert all((new[key] > old[key]).any() for key in new)
        assert len(list(finished.glob("embeddings/*"))) == 1
        assert all(path.read_text() == "keep me" for path in mine)
        assert not old_reports.exists()


def test_parts_that_a_run_with_a_problem_leaves_are_told_and_not_read(source, output, capsys):
    assert extract(source, output, "--rows_per_unit", "5") == 0
    os.unlink(source / "a" / "0000.jpg")
    (source / "b" / "0011.jpg").write_bytes(b"junk")
    (source / "a" / "0002.jpg").rename(source / "a" / "0002a.jpg")
    capsys.readouterr()
    assert extract(source, output, "--rows_per_unit", "5", "--prune") == 3
    named = {part["path"].rpartition("/")[2] for part in manifest(output)["parts"]}
    left = {path.name for path in output.glob("embeddings/*")} - named
    assert left
    assert f"embeddings holds {counted(len(left), 'part')} more, of an earlier input or cut" in capsys.readouterr().err
    for allow_unfinished in (False, True):
        read = open_embeddings([str(output)], allow_unfinished=allow_unfinished)
        assert {group.uri.rpartition("/")[2] for group in read.groups} <= named
        assert read.rows == manifest(output)["totals"]["embedded"] == COUNT - 2
    assert extract(source, output, "--rows_per_unit", "5", "--prune", "--max_failure_rate", "0.5") == 0
    assert {path.name for path in output.glob("embeddings/*")} <= named


class TestRetryFailed:
    @pytest.fixture
    def failed(self, source, output):
        """A run with two failures; gives what mends the first."""
        mend = damage(source / "a" / "0002.jpg")
        damage(source / "b" / "0011.jpg")
        assert extract(source, output, "--max_failure_rate", "1") == 0
        assert set(failures(output)) == {str(source / "a" / "0002.jpg"), str(source / "b" / "0011.jpg")}
        return mend

    def test_works_the_failed_records_alone_and_merges_them(
        self, source, output, failed, tmp_path, monkeypatch, capsys
    ):
        failed()
        capsys.readouterr()
        assert extract(source, output, "--max_failure_rate", "1") == 0
        assert len(failures(output)) == 2  # not asked to
        assert "in an earlier run: 2; --retry_failed tries them" in capsys.readouterr().err
        worked = []
        count = commit_units.count_batch
        monkeypatch.setattr(
            "transforms.embed.embed_units.count_batch", lambda rows, seconds: [worked.append(rows), count(rows, 0)]
        )
        assert extract(source, output, "--retry_failed", "--max_failure_rate", "1") == 0
        assert sum(worked) == 1
        assert set(failures(output)) == {str(source / "b" / "0011.jpg")}
        assert_same_run(output, undisturbed(source, tmp_path / "fresh"))

    @pytest.mark.parametrize("flags", [(), ("--retry_failed",)])
    def test_killed_between_its_two_writes_loses_nothing(self, source, output, failed, tmp_path, monkeypatch, flags):
        failed()
        publish = storage.publish

        def die(uri, data, **settings):
            if "/embeddings/" in uri:
                raise RuntimeError("killed")
            publish(uri, data, **settings)

        monkeypatch.setattr(storage, "publish", die)
        assert extract(source, output, "--retry_failed", "--max_failure_rate", "1") == 1
        monkeypatch.setattr(storage, "publish", publish)
        assert extract(source, output, "--max_failure_rate", "1", *flags) == 0
        assert_same_run(output, undisturbed(source, tmp_path / "fresh"))
        totals = manifest(output)["totals"]
        assert (totals["embedded"], totals["failed"]) == (COUNT - 1, 1)

    def test_a_lost_failures_file_is_made_again(self, source, output, failed):
        before = files_of(output)
        for path in output.glob("failures/*"):
            path.unlink()
        assert extract(source, output, "--max_failure_rate", "1") == 0
        assert files_of(output) == before


ONE_ENGINE = ("--engine", "keras")
"""The large set is worth a trial, which a busy machine may decide otherwise in the next run."""


def start(source, output):
    command = [sys.executable, "-m", "pipelines", "extract", "--input", source, "--output", output]
    command += [*SMALL_MODEL, *ONE_ENGINE]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_parts(output, count, job):
    deadline = time.monotonic() + 120
    while len(list(Path(output, "embeddings").glob("part-*"))) < count:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_run_resumes(tmp_path, sent, code):
    source = large_set(tmp_path / "in")
    job = start(source, tmp_path / "out")
    wait_for_parts(tmp_path / "out", 3, job)
    job.send_signal(sent)
    _, said = job.communicate(timeout=60)
    assert job.returncode == code
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "manifest.json").exists()
    committed = len(list((tmp_path / "out" / "embeddings").glob("part-*")))
    assert committed < 60
    assert extract(source, tmp_path / "out") == 0
    assert manifest(tmp_path / "out")["totals"]["units_skipped"] == committed
    assert len(embeddings(tmp_path / "out")) == 300


def large_set(folder):
    """300 images that take a while to decode: a run over them can be killed on its way."""
    for index in range(300):
        path = Path(folder, "ab"[index % 2], f"{index:04d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture(500 + index % 7, 600, seed=index)).save(path)
    (Path(folder) / "a" / "broken.png").write_bytes(b"not an image")
    return Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_killed_20_times_ends_with_the_rows_of_an_undisturbed_run(tmp_path):
    source, output = large_set(tmp_path / "in"), tmp_path / "out"
    moments = random.Random(20)
    killed_at = []
    for _ in range(20):
        job = start(source, output)
        committed = len(list(output.glob("embeddings/part-*")))
        more = moments.choice([0, 1, 2, 3, 4])
        if more:
            wait_for_parts(output, committed + more, job)
            time.sleep(moments.uniform(0, 0.05))
        else:
            time.sleep(moments.uniform(0, 4))
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL
        killed_at.append(len(list(output.glob("embeddings/part-*"))))
    assert killed_at[-1] > killed_at[0]  # it did get somewhere, and not to the end
    assert not (output / "manifest.json").exists()
    assert extract(source, output, *ONE_ENGINE) == 0
    assert manifest(output)["totals"]["units_skipped"] == killed_at[-1]
    assert files_of(output) == files_of(undisturbed(source, tmp_path / "fresh", *ONE_ENGINE))
    assert len(embeddings(output)) == 300
    assert not list(output.glob("reports*"))
