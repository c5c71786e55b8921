"""Whatever the storage does to a run, no record is lost or comes twice, and the same command ends it."""

import contextlib
import errno
import importlib
import io
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipelines.cli import run_job
from tests.support.faulty_storage import FaultyDisk, Killed, faulty
from tests.support.plain_runs import (
    KINDS,
    assert_no_row_is_wrong,
    assert_whole,
    extract,
    failed_of,
    half_written,
    images,
    make_old,
    plain,
    rows_of,
    write_layout,
)
from transforms.readers import read

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ETIMEDOUT, errno.ESTALE, errno.EDQUOT, errno.EROFS, errno.EMFILE)

CALLS = 500
"""More than a run over the inputs of these tests makes."""


@pytest.fixture(autouse=True, scope="module")
def _plain():
    with plain():
        yield


def layouts():
    return st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.integers(1, 12),
        st.sets(st.integers(0, 11), max_size=4),
        st.integers(1, 3),
        st.integers(1, 7),
    )


faults = st.builds(
    FaultyDisk,
    first=st.integers(1, CALLS),
    errno=st.sampled_from((*ERRORS, None)),
    lasting=st.sampled_from((1, 2, 7, 10**6)),
    late=st.booleans(),
)


def check_faults(folder, layout, disks):
    """A run for each disk, over one input and into one output; then one without faults."""
    kind, count, bad, shards, rows = layout
    layout = write_layout(folder / "in", kind, images(count, bad), min(shards, count))
    output = folder / "out"
    for disk in disks:
        code, said = None, io.StringIO()
        with faulty(disk), contextlib.redirect_stderr(said):
            try:
                code = extract(layout.patterns, output, "--rows_per_unit", rows)
            except Killed:
                assert disk.dead
        check_told(code, said.getvalue())
        if code == 0:
            check_finished(output, layout)
        else:
            assert_no_row_is_wrong(output, layout)
    # Nothing became one row: that is no good run either.
    assert extract(layout.patterns, output, "--rows_per_unit", rows) == (0 if rows_of(output) else 3)
    check_finished(output, layout)
    assert not list(output.glob("lease-*"))


def check_told(code, said):
    """A run ends well, or says in one line, or with its problems, why it did not."""
    errors = [line for line in said.splitlines() if line.startswith("imagebeam: ")]
    assert code in (None, 0, 1, 2, 3)
    assert len(errors) == (code in (1, 2)), said
    assert "internal error" not in said
    assert "Traceback" not in said
    assert code != 3 or "PROBLEM" in said
    assert code != 0 or "PROBLEM" not in said


def check_finished(output, layout):
    assert_whole(output, layout)
    assert run_job("verify", [str(output)]) == 0


def bounded(examples):
    """The same examples every time; one that fails is told as it is, since making it smaller takes minutes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
@bounded(25)
@given(layouts(), st.lists(faults, min_size=1, max_size=2))
def test_every_record_ends_as_a_row_or_a_failure(tmp_path_factory, layout, disks):
    check_faults(tmp_path_factory.mktemp("run"), layout, disks)


@pytest.mark.reliability
@pytest.mark.timeout(1200)
@bounded(600)
@given(layouts(), st.lists(faults, min_size=1, max_size=3))
def test_every_record_ends_as_a_row_or_a_failure_in_600_runs(tmp_path_factory, layout, disks):
    check_faults(tmp_path_factory.mktemp("run"), layout, disks)


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    """Reports at once, since the lease tells that their launcher is gone; half-written files once they are old."""
    layout = write_layout(tmp_path / "in", "files", images(6, ()), 2)
    output = tmp_path / "out"
    left: Counter[str] = Counter()
    for call in ("write", "replace", "fsync"):
        for number in range(1, 40, 4):
            disk = FaultyDisk(number, only=(call,), late=call == "write")
            with faulty(disk), contextlib.suppress(Killed):
                assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
            left.update(path.parent.name for path in half_written(output))
            make_old(half_written(output))
            assert len(list(output.glob("reports-*"))) <= 1
    assert {"out", "embeddings"} < left.keys()
    assert any(name.startswith("reports-") for name in left)
    for _ in range(2):
        assert extract(layout.patterns, output, "--rows_per_unit", 2) == 0
    assert {path.name for path in output.iterdir()} == {"embeddings", "manifest.json", "run.json"}
    assert not half_written(output)
    check_finished(output, layout)


@pytest.mark.parametrize("kind", ["tar", "tfrecord"])
def test_a_shard_that_breaks_off_earlier_than_before_adds_up(tmp_path, monkeypatch, capsys, kind):
    """The samples of a tar behind the break do not tell their names, by which those with a row are known."""
    layout = write_layout(tmp_path / "in", kind, images(10, {8}), 1)
    module = importlib.import_module(f"transforms.readers.{'webdataset' if kind == 'tar' else kind}")
    read_all, judge = module.read, read.judge

    def breaking(place):
        def read_some(*args):
            for index, record in enumerate(read_all(*args)):
                if index == place:
                    raise TimeoutError("the storage is gone")
                yield record

        return read_some

    def machine_fault(source, error):
        return ("unreadable: gone", True) if isinstance(error, TimeoutError) else judge(source, error)

    monkeypatch.setattr(read, "judge", machine_fault)
    for place, rows in ((5, 5), (2, 5), (7, 7), (0, 7)):
        monkeypatch.setattr(module, "read", breaking(place))
        assert extract(layout.patterns, tmp_path / "out", "--rows_per_unit", 10) == 3
        totals = json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]
        assert (totals["embedded"], totals["failed"]) == (rows, 10 - rows)
        assert len(assert_no_row_is_wrong(tmp_path / "out", layout)) == rows
        assert len(failed_of(tmp_path / "out")) == 10 - rows
        assert "of which" not in capsys.readouterr().err
    monkeypatch.setattr(module, "read", read_all)
    assert extract(layout.patterns, tmp_path / "out", "--rows_per_unit", 10) == 0
    assert_whole(tmp_path / "out", layout)
