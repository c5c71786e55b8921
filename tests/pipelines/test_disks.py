"""A disk that fills up or becomes read-only, inputs that change or vanish on the way, and a clock that jumps."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli import run_job
from tests.support import plain_runs
from tests.support.extracting import SMALL_MODEL
from tests.support.gcs_server import gcs as gcs
from tests.support.plain_runs import (
    Layout,
    assert_no_row_is_wrong,
    assert_whole,
    extract,
    failed_of,
    half_written,
    images,
    plain,
    rows_of,
    write_layout,
)
from transforms import storage
from transforms.inputs import plan_units
from transforms.runs import lease
from transforms.runs.reports import publish_group

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def _plain():
    with plain():
        yield


@pytest.fixture
def layout(tmp_path):
    return write_layout(tmp_path / "in", "files", images(12, {4}), 2)


@pytest.fixture
def mount(tmp_path):
    """Mounts a small file system of its own at a folder."""
    mounted = []

    def make(name, options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        found = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if found.returncode:
            pytest.skip(f"NOT TESTED, no file system may be mounted here: {found.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def one_error(capfd):
    """The one line that a failed run says."""
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("imagebeam: ")]
    assert "internal error" not in line
    assert "Traceback" not in said
    return line


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 5, 7, 8, 9, 11, 13])
def test_full_output_disk(mount, layout, capfd, pages):
    """So many pages of 4 KiB are free when the run starts, and nothing is when the last one is taken."""
    disk = mount("disk", f"size={(pages + 1) * 4}k")
    output = disk / "out"
    code = extract(layout.patterns, output, "--rows_per_unit", 2)
    assert code == 1
    assert "No space left on device" in one_error(capfd)
    assert not half_written(output)
    assert_no_row_is_wrong(output, layout)
    remount(disk, "size=4m")
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
    assert_whole(output, layout)
    assert run_job("verify", [str(output)]) == 0


@pytest.mark.slow
def test_full_disk_of_temporary_files(mount, layout, tmp_path):
    """A model's file is made among the temporary files before it is staged."""
    disk, output = mount("temporary", "size=16k"), tmp_path / "out"
    command = [sys.executable, "-m", "pipelines", "extract", "--input", *layout.patterns, "--output", output]

    def run():
        environment = {**os.environ, "TMPDIR": str(disk)}
        return subprocess.run(
            [*map(str, command), *SMALL_MODEL, "--max_failure_rate", "1"],
            env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip

    failed = run()
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("imagebeam: ")]
    assert "No space left on device" in line
    assert "internal error" not in line
    assert "Traceback" not in failed.stderr
    assert not list(output.glob("model/*"))
    assert not list(disk.rglob("*.keras"))
    remount(disk, "size=64m")
    assert run().returncode == 0
    assert len(rows_of(output)) == 11
    assert not list(disk.rglob("*.keras"))


def test_read_only_output(mount, layout, capfd):
    disk = mount("disk", "size=4m")
    output = disk / "out"
    remount(disk, "ro")
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 2
    assert "Read-only file system" in one_error(capfd)
    remount(disk, "rw")
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
    remount(disk, "ro")
    capfd.readouterr()
    assert run_job("verify", [str(output)]) == 0
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 2
    assert "Read-only file system" in one_error(capfd)
    assert_whole(output, layout)


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("train", ["--embeddings", "{run}", "--output", "{disk}/trained", "--skip_image_classifier"]),
        ("compact", ["{run}", "--output", "{disk}/copy"]),
        ("report", ["{disk}/run"]),
    ],
)
def test_read_only_output_of_other_jobs(mount, tmp_path, capfd, job, flags):
    """Their user's to mend, as extract's is: no retry helps."""
    layout, run = write_layout(tmp_path / "in", "files", images(24, {}), 2), tmp_path / "run"
    assert extract(layout.patterns, run) == 0
    disk = mount("disk", "size=4m")
    shutil.copytree(run, disk / "run")
    remount(disk, "ro")
    capfd.readouterr()
    assert run_job(job, [flag.format(run=run, disk=disk) for flag in flags]) == 2
    line = one_error(capfd)
    assert "Read-only file system" in line
    assert f"Received: {'' if job == 'report' else '--output '}'{disk}" in line


@pytest.fixture
def between(monkeypatch):
    """Lets something happen between planning and reading: after the listing, or once the first units are cut."""

    def arrange(action, after="_cut"):
        pending, plan = [action], getattr(plan_units, after)

        def planned(*args):
            items = list(plan(*args))
            while pending:
                pending.pop()()
            return items

        monkeypatch.setattr(plain_runs, after, planned)

    return arrange


def test_inputs_that_vanish_are_failures(layout, tmp_path, between):
    gone = sorted(tmp_path.glob("in/class0/*"))[0]
    between(gone.unlink)
    assert extract(layout.patterns, tmp_path / "out", "--rows_per_unit", 4) == 0
    assert str(gone) in failed_of(tmp_path / "out")
    assert rows_of(tmp_path / "out").keys() | failed_of(tmp_path / "out") == layout.means.keys()


def test_all_inputs_that_vanish_are_tried_again(layout, tmp_path, between):
    """A lost mount leaves an empty folder."""

    def lose():
        for folder in tmp_path.glob("in/*"):
            shutil.move(folder, tmp_path / f"{folder.name}.away")
            folder.mkdir()

    between(lose)
    output = tmp_path / "out"
    assert extract(layout.patterns, output, "--rows_per_unit", 4) in (1, 3)
    for folder in tmp_path.glob("in/*"):
        folder.rmdir()
        shutil.move(tmp_path / f"{folder.name}.away", folder)
    assert extract(layout.patterns, output, "--rows_per_unit", 4) == 0
    assert_whole(output, layout)


@pytest.mark.parametrize("kind", ["files", "tar", "parquet", "tfrecord"])
def test_input_replaced_before_reading_is_never_mixed(tmp_path, between, kind):
    layout = write_layout(tmp_path / "in", kind, images(12, {4}), 2)
    newer = write_layout(tmp_path / "new", kind, [(data, mean) for data, mean in images(20, {4})[8:]], 2)

    def replace():
        time.sleep(0.02)
        for path in sorted(tmp_path.glob("new/**/*.*")):
            target = tmp_path / "in" / path.relative_to(tmp_path / "new")
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)

    between(replace)
    output = tmp_path / "out"
    assert extract(layout.patterns, output, "--rows_per_unit", 4) in (1, 3)
    assert extract(layout.patterns, output, "--rows_per_unit", 4) == 0
    means = {key.replace(str(tmp_path / "new"), str(tmp_path / "in")): mean for key, mean in newer.means.items()}
    assert_whole(output, Layout(layout.patterns, means, []))


@pytest.mark.parametrize("jump", [-3600, DAY, -30 * DAY])
def test_clock_that_jumps(layout, tmp_path, monkeypatch, jump):
    """At the end of a run: neither leases nor versions nor reports mind, then or in the next run."""
    clock, output, written = time.time, tmp_path / "out", []

    def counted(*args, **keywords):
        written.append(args)
        return publish_group(*args, **keywords)

    monkeypatch.setattr(plain_runs, "publish_group", counted)
    monkeypatch.setattr(time, "time", lambda: clock() + (jump if len(written) > 2 else 0))
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
    assert_whole(output, layout)
    before = {path: path.stat().st_mtime_ns for path in output.glob("embeddings/*")}
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("embeddings/*")} == before
    assert {path.name for path in output.iterdir()} == {"embeddings", "failures", "manifest.json", "run.json"}
    with lease.hold(str(output)):
        lease.check(str(output))
    assert run_job("verify", [str(output)]) == 0


@pytest.fixture
def remote(gcs, layout):
    """The layout's files on gs://."""
    for path in layout.means:
        storage.publish_file(remote_uri(path), path)
    return Layout(["gs://test-bucket/in/*.png"], {remote_uri(path): mean for path, mean in layout.means.items()}, [])


def remote_uri(path):
    return f"gs://test-bucket/in/{Path(path).name}"


@pytest.mark.parametrize(("refusals", "code"), [(2, 0), (9, 3), (1000, 3)])
def test_input_refused_for_a_while(gcs, remote, tmp_path, between, refusals, code):
    """403: of few requests nobody hears; of more, the records are tried again by the next run."""
    output = tmp_path / "out"
    between(lambda: gcs.faults.extend([403] * refusals), after="_list")
    assert extract(remote.patterns, output, "--rows_per_unit", 4) == code
    gcs.faults.clear()
    assert_no_row_is_wrong(output, remote)
    assert extract(remote.patterns, output, "--rows_per_unit", 4) == 0
    assert_whole(output, remote)


@pytest.mark.parametrize("served", [*range(0, 60, 6), *range(60, 120, 20)])
def test_output_refused_for_a_while(gcs, layout, tmp_path, capfd, served):
    """403 after so many requests."""
    output = "gs://test-bucket/out"
    with refused_after(gcs, served):
        code = extract(layout.patterns, output, "--rows_per_unit", 2)
        assert code in (1, 2)
        assert "may not be accessed" in one_error(capfd)
    assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
    for info in storage.list_files(output):
        target = tmp_path / "copy" / info.uri.removeprefix(f"{output}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_bytes(info.uri))
    assert_whole(tmp_path / "copy", layout)
    assert run_job("verify", [output]) == 0


@contextlib.contextmanager
def refused_after(server, served):
    """403 to every request after so many."""
    begun = len(server.requests)

    class Refusals:
        def __bool__(self):
            return len(server.requests) - begun > served

        def popleft(self):
            return 403

    before, server.faults = server.faults, Refusals()
    try:
        yield
    finally:
        server.faults = before
