"""`imagebeam compact`: equal rows in few large files, in another folder."""

import json
import shutil

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import run_job
from tests.support import plain_runs
from tests.support.plain_runs import extract, plain
from transforms.runs.compact import _are_equal


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output of a run of 40 rows in parts of five or fewer, and a failure."""
    folder = tmp_path_factory.mktemp("compact")
    layout = plain_runs.write_layout(folder / "in", "tfrecord", plain_runs.images(41, {7}), 2)
    with plain():
        assert extract(layout.patterns, folder / "out", "--rows_per_unit", 5) == 0
    return folder / "out"


def compact(run, target, *flags):
    return run_job("compact", [str(run), "--output", str(target), *map(str, flags)])


@pytest.mark.parametrize(
    ("flags", "files", "groups"),
    [
        ((), [40], [40]),
        (("--rows_per_file", 16), [16, 16, 8], [16, 16, 8]),
        (("--rows_per_group", 7), [40], [7] * 5 + [5]),
    ],
)
def test_copy_holds_the_rows_of_the_parts(run, tmp_path, flags, files, groups):
    assert compact(run, tmp_path / "copy", *flags) == 0
    paths = sorted((tmp_path / "copy").glob("*.parquet"))
    found = [pq.read_metadata(path) for path in paths]
    assert [metadata.num_rows for metadata in found] == files
    assert [one.row_group(group).num_rows for one in found for group in range(one.num_row_groups)] == groups
    ours, theirs = f"'{tmp_path}/copy/*.parquet'", f"'{run}/embeddings/*.parquet'"
    for one, other in ((ours, theirs), (theirs, ours)):
        assert duckdb.execute(f"from {one} except all from {other}").fetchall() == []
    assert duckdb.execute(f"select count(*), count(distinct key) from {ours}").fetchall() == [(40, 40)]
    assert {b"imagebeam.fingerprint", b"imagebeam.spec"} <= found[0].metadata.keys()
    about = json.loads((tmp_path / "copy" / "_compact.json").read_text())
    assert [file["rows"] for file in about["files"]] == files


def test_kept_values_that_are_no_numbers_are_copied(tmp_path):
    """To Arrow, NaN is not equal to NaN."""
    data = [data for data, _ in plain_runs.images(6, ())]
    nan = float("nan")
    columns = {
        "score": pa.array([nan, 1.5, None, nan, -0.0, 2.0]),
        "half": pa.array(np.array([nan, 1, 2, 3, 4, 5], np.float16)),
        "box": pa.array([[nan, 1.0], [], None, [None, nan], [2.0], [3.0]]),
        "at": pa.array([{"x": nan}, {"x": 1.0}, None, {"x": None}, {"x": 2.0}, {"x": 3.0}]),
        "by": pa.array([[("a", nan)], [], None, [("b", 1.0), ("c", nan)], [], []], pa.map_(pa.string(), pa.float64())),
    }
    pq.write_table(pa.table({"image": pa.array(data, pa.binary()), **columns}), tmp_path / "in.parquet")
    with plain():
        flags = ("--rows_per_unit", 4, "--keep_columns", ",".join(columns))
        assert extract([tmp_path / "in.parquet"], tmp_path / "out", *flags) == 0
    assert compact(tmp_path / "out", tmp_path / "copy") == 0
    ours, theirs = (
        duckdb.execute(
            f"select key, columns(* exclude (key))::varchar from '{tmp_path}/{name}/*.parquet' order by key"
        ).fetchall()
        for name in ("copy", "out/embeddings")
    )
    assert ours == theirs
    assert len(ours) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1.0, None]), pa.array([1.0, 2.0])),
        (pa.array([float("nan")]), pa.array([1.0])),
        (pa.array([[1.0], []]), pa.array([[], [1.0]])),
        (pa.array([[float("nan")]]), pa.array([[None]], pa.list_(pa.float64()))),
        (pa.array([{"x": float("nan"), "y": 1}]), pa.array([{"x": float("nan"), "y": 2}])),
        (pa.array(["a"]), pa.array(["b"])),
    ],
)
def test_a_difference_is_found(one, other):
    assert not _are_equal(one, other)
    assert _are_equal(one, one)


def test_unfinished_copy_is_remade_and_other_files_are_kept(run, tmp_path, capsys):
    (tmp_path / "rows-00007.parquet").write_bytes(b"half")
    assert compact(run, tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_compact.json", "rows-00000.parquet"]
    before = (tmp_path / "rows-00000.parquet").read_bytes()
    assert compact(run, tmp_path, "--rows_per_file", 3) == 2
    assert "_compact.json" in capsys.readouterr().err
    assert (tmp_path / "rows-00000.parquet").read_bytes() == before


def test_damaged_part_stops_compact(run, tmp_path, capsys):
    part = sorted(run.glob("embeddings/*.parquet"))[3]
    data = part.read_bytes()
    part.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    try:
        assert compact(run, tmp_path / "copy") == 1
    finally:
        part.write_bytes(data)
    assert part.name in capsys.readouterr().err
    assert not (tmp_path / "copy" / "_compact.json").exists()


@pytest.fixture(scope="module")
def copy(run):
    """A copy of it."""
    assert compact(run, run.parent / "copy") == 0
    return run.parent / "copy"


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("verify", "COPY"),
        ("report", "COPY"),
        ("compact", "COPY --output OUT"),
        ("train", "--embeddings COPY --output OUT"),
        ("train", "--embeddings COPY --output OUT --allow_unfinished"),
    ],
)
def test_a_copy_is_not_read_as_a_run(run, copy, tmp_path, capsys, job, flags):
    places = {"COPY": str(copy), "OUT": str(tmp_path / "out")}
    assert run_job(job, [places.get(word, word) for word in flags.split()]) == 2
    error = capsys.readouterr().err
    assert "_compact.json" in error
    assert str(run) in error
    assert "own command again" not in error
    assert not (tmp_path / "out").exists()


def test_a_copy_is_not_reused(run, copy, tmp_path, capsys):
    with plain():
        assert extract([run.parent / "in"], tmp_path / "out", "--rows_per_unit", 5, "--reuse", copy) == 2
    error = capsys.readouterr().err
    assert "_compact.json" in error
    assert str(run) in error


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("extract", "--input IN --output COPY --model VGG16 --weights random:0 --image_size native"),
        ("extract", "--input IN --output COPY --model VGG16 --weights random:0 --image_size native --overwrite"),
        ("train", "--embeddings RUN --output COPY --overwrite"),
        ("finetune", "--input IN --output COPY --model VGG16 --weights random:0 --overwrite"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_nothing_is_written_into_a_copy(run, copy, tmp_path, capsys, job, flags, finished):
    target = tmp_path / "copy"
    shutil.copytree(copy, target)
    if not finished:
        (target / "_compact.json").unlink()
    before = sorted(target.rglob("*"))
    places = {"COPY": str(target), "RUN": str(run), "IN": str(run.parent / "in")}
    assert run_job(job, [places.get(word, word) for word in flags.split()]) == 2
    assert "imagebeam compact" in capsys.readouterr().err
    assert sorted(target.rglob("*")) == before


@pytest.mark.parametrize("flags", [("--rows_per_file", 0), ("--rows_per_group", -1)])
def test_bad_values_are_refused(run, tmp_path, flags):
    assert compact(run, tmp_path / "copy", *flags) == 2


def test_a_part_that_is_gone_is_named(run, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    part = min(broken.glob("embeddings/part-*"))
    part.unlink()
    assert compact(broken, tmp_path / "copy") == 1
    assert f"{part} is gone; see imagebeam verify" in capsys.readouterr().err


def test_a_run_that_is_not_there_or_unfinished_is_told_apart(run, tmp_path, capsys):
    assert compact(tmp_path / "none", tmp_path / "copy") == 2
    assert "Name the --output of extract" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "manifest.json").unlink()
    assert compact(tmp_path / "unfinished", tmp_path / "copy") == 2
    assert "own command again" in capsys.readouterr().err


def test_unfinished_run_or_its_own_folder_is_refused(run, tmp_path):
    assert compact(tmp_path, tmp_path / "copy") == 2
    assert compact(run, run / "copy") == 2
    (tmp_path / "link").symlink_to(run)
    assert compact(run, tmp_path / "link" / "copy") == 2
    assert compact(tmp_path / "link", run / "copy") == 2
    assert not (run / "copy").exists()
