"""Kept columns whose type the first records do not show, from input to DuckDB, Polars and Arrow."""

import decimal
import glob
import io
import json
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.extracting import extract, failures, manifest
from tests.support.shard_files import example, write_tar, write_tfrecord
from transforms.inputs import inspection
from transforms.training_data.embeddings import open_embeddings

ONE_UNIT_EACH = 2
"""The tests' records in a unit: kept columns of several parts are read as one data set."""


@pytest.fixture(scope="module")
def image():
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, "PNG")
    return data.getvalue()


def run(source, output, keep, *more):
    return extract(source, output, "--keep_columns", keep, "--rows_per_unit", str(ONE_UNIT_EACH), *more)


def read(output, *names):
    """Columns by key as pyarrow.dataset has them; DuckDB and Polars must read the same number of rows and values."""
    folder = f"{output}/embeddings"
    parts = glob.glob(f"{folder}/*.parquet")
    assert len(parts) > 1
    assert len({pq.read_schema(part).remove_metadata() for part in parts}) == 1
    table = pyarrow.dataset.dataset(folder).to_table(columns=["key", *names]).sort_by("key")
    by_duckdb = duckdb.execute(
        f"""select {", ".join(f'"{name}"' for name in names)} from '{folder}/*.parquet' order by key"""
    )
    by_polars = polars.read_parquet(parts).sort("key").select(names)
    values = table.drop_columns(["key"]).to_pylist()
    assert len(values) == len(by_polars)
    for row, ours, theirs in zip(values, by_duckdb.fetchall(), by_polars.rows(), strict=True):
        for value, one, other in zip(row.values(), ours, theirs, strict=True):
            if not isinstance(value, list) or not value or not isinstance(value[0], tuple):  # Maps differ in Python.
                assert one == value
                assert other == value
    return table


def write_lines(path, image, rows):
    (path.parent / "a.png").write_bytes(image)
    lines = [{"uri": "a.png", "key": f"{index:03}", **row} for index, row in enumerate(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_json_lines_with_wider_later_rows(tmp_path, image):
    early: dict[str, Any] = {
        "score": 1,
        "tags": [],
        "late": None,
        "deep": [[]],
        "id": 7,
        "box": {"x": 1},
        "one": "a",
        "huge": 1,
    }
    late = {
        "score": 0.5,
        "tags": ["x"],
        "late": "é",
        "deep": [[0.5], None],
        "id": 2**64 - 1,
        "box": {"x": 0.5, "y": "b"},
    }
    late |= {"one": ["b", "c"], "huge": 10**30}
    rows = [early] * 17 + [{}] + [late]
    write_lines(tmp_path / "m.jsonl", image, rows)
    assert run(tmp_path / "m.jsonl", tmp_path / "out", ",".join(early)) == 0
    table = read(tmp_path / "out", *early)
    expected = [{name: row.get(name) for name in early} for row in rows]
    for row in expected:
        row["one"] = [row["one"]] if isinstance(row["one"], str) else row["one"]
        row["box"] = row["box"] and {"y": None, **row["box"]}
        row["huge"] = row["huge"] and decimal.Decimal(row["huge"])
    assert table.drop_columns(["key"]).to_pylist() == expected
    kinds = dict(zip(table.schema.names, map(str, table.schema.types), strict=True))
    assert (kinds["score"], kinds["id"], kinds["huge"]) == ("double", "uint64", "decimal128(38, 0)")


def test_tfrecords_and_tars_with_wider_later_records(tmp_path, image):
    values = [[0.5], [0.5, 1.0], [], [1.5]]
    write_tfrecord(tmp_path / "a.tfrecord", [example(image=image, xmin=one, name=b"a") for one in values])
    assert run(tmp_path / "a.tfrecord", tmp_path / "records", "xmin,name") == 0
    assert read(tmp_path / "records", "xmin", "name")["xmin"].to_pylist() == [[0.5], [0.5, 1.0], None, [1.5]]
    fields = [{"n": None}, {"n": 1}, {}, {"n": [1, 0.5]}]
    members = [("%d.json", json.dumps(one).encode()) for one in fields]
    members = [item for at, (name, data) in enumerate(members) for item in ((f"{at}.png", image), (name % at, data))]
    write_tar(tmp_path / "a.tar", members)
    assert run(tmp_path / "a.tar", tmp_path / "samples", "n") == 0
    assert read(tmp_path / "samples", "n")["n"].to_pylist() == [None, [1.0], None, [1.0, 0.5]]


STAMPED = pa.struct([("at", pa.timestamp("us", "UTC"))])

PAIRS = {
    "ints": (pa.array([1], pa.int32()), pa.array([2**40])),
    "floats": (pa.array([0.1], pa.float32()), pa.array([0.1])),
    "number": (pa.array([1], pa.int64()), pa.array([0.5])),
    "text": (pa.array(["a"]), pa.array(["b"], pa.large_string())),
    "coded": (pa.array(["a"]).dictionary_encode(), pa.array(["b"])),
    "nothing": (pa.nulls(1), pa.array(["b"])),
    "times": (pa.array([1], pa.timestamp("ms")), pa.array([1001], pa.timestamp("us"))),
    "zoned": (pa.array([1], pa.timestamp("ms", "UTC")), pa.array([1001], pa.timestamp("us", "UTC"))),
    "money": (pa.array([decimal.Decimal("1.50")]), pa.array([decimal.Decimal("123456.7891")])),
    "boxes": (pa.array([{"x": 1}]), pa.array([{"x": 0.5, "y": "b"}])),
    "many": (pa.array(["a"]), pa.array([["b", "c"]])),
    "lists": (
        pa.array([[1]], pa.list_(pa.int32(), 1)),
        pa.array(
            [
                [],
            ],
            pa.large_list(pa.int64()),
        ),
    ),
    "halves": (pa.array([0.5], pa.float16()), pa.array([1.5], pa.float16())),
    "codes": (pa.array([b"abcd"], pa.binary(4)), pa.array([b"efgh"], pa.binary(4))),
    "hours": (pa.array([1], pa.time32("s")), pa.array([1_000_001], pa.time64("us"))),
    "seen": (pa.array([{"at": 1}], STAMPED), pa.array([None], STAMPED)),
    "days": (pa.array([1], pa.date32()), pa.array([86_400_000], pa.date64())),
    "map": (
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
        pa.array([[("b", 2**40)]], pa.map_(pa.string(), pa.int64())),
    ),
}


@pytest.mark.parametrize("form", ["shards", "manifests"])
def test_parquet_of_different_types(tmp_path, image, form):
    (tmp_path / "a.png").write_bytes(image)
    for at in (0, 1):
        rows = {"image": [image]} if form == "shards" else {"uri": ["a.png"], "key": [f"{at}"]}
        columns = {name: pair[at] for name, pair in PAIRS.items()}
        pq.write_table(pa.table({**rows, **columns}), tmp_path / f"{at}.parquet")
    flags = () if form == "shards" else ("--input_format", "manifest", "--rows_per_unit", "1")
    assert run(f"{tmp_path}/*.parquet", tmp_path / "out", ",".join(PAIRS), *flags, "--rows_per_unit", "1") == 0
    table = read(tmp_path / "out", *PAIRS)
    for name, pair in PAIRS.items():
        values = [value for array in pair for value in array.to_pylist()]
        if name == "many":
            values[0] = [values[0]]
        if name == "boxes":
            values[0]["y"] = None
        assert table[name].to_pylist() == values, name


@pytest.fixture
def late(tmp_path, image, monkeypatch):
    """A tar whose fifth sample is not looked at before the run, and holds a fraction in a column of whole numbers."""
    monkeypatch.setattr(inspection, "_SAMPLED_RECORDS", 4)
    values = [1, 2, 3, 4, 0.5, 6]
    files = [((f"{at}.png", image), (f"{at}.json", json.dumps({"n": n}).encode())) for at, n in enumerate(values)]
    return write_tar(tmp_path / "late.tar", [item for pair in files for item in pair])


def test_unforeseen_type_stops_the_run_and_names_the_remedy(tmp_path, late, capfd):
    assert run(late, tmp_path / "out", "n") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{late}#4: the kept column 'n' is int64" in error
    assert "which 0.5 is not. Say its type: --keep_columns n:float64" in error
    assert error.endswith(
        f"2 units are committed in {tmp_path / 'out'}; the same command with that type goes on from there."
    )
    assert not failures(tmp_path / "out")


def test_remedy_keeps_committed_parts(tmp_path, late):
    assert run(late, tmp_path / "out", "n") == 2
    assert run(late, tmp_path / "out", "n:float64") == 0
    assert read(tmp_path / "out", "n")["n"].to_pylist() == [1.0, 2.0, 3.0, 4.0, 0.5, 6.0]
    assert manifest(tmp_path / "out")["totals"]["units_skipped"] == 2
    assert run(late, tmp_path / "out", "n:float64") == 0
    assert run(late, tmp_path / "whole", "n:float64") == 0
    ours, theirs = (sorted(glob.glob(f"{tmp_path}/{name}/embeddings/*")) for name in ("out", "whole"))
    for one, other in zip(ours, theirs, strict=True):
        assert pq.read_table(one).equals(pq.read_table(other))


def test_narrower_or_other_type_is_another_run(tmp_path, late, capfd):
    assert run(late, tmp_path / "out", "n:float64") == 0
    for keep in ("n:int64", "n:string", "n=m:float64"):
        assert run(late, tmp_path / "out", keep) == 2
        assert "holds another run (keep_columns" in capfd.readouterr().err


def test_value_outside_its_declared_type_is_one_failure(tmp_path, late):
    assert run(late, tmp_path / "out", "n:int64", "--max_failure_rate", "0.5") == 0
    assert failures(tmp_path / "out") == {f"{late}#4": ("read", "bad_value")}


def test_rows_of_missing_inputs_get_the_wider_type(tmp_path, image):
    """They stay, and are read as one data set with the others."""
    source = tmp_path / "*" / "list.jsonl"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows = [{"key": f"{name} {index}", "n": index} for index in range(3)]
        write_lines(tmp_path / name / "list.jsonl", image, rows)
    assert run(source, tmp_path / "out", "n") == 0
    (tmp_path / "one" / "list.jsonl").unlink()
    rows = [{"key": f"two {index}", "n": index + 0.5} for index in range(3)]
    write_lines(tmp_path / "two" / "list.jsonl", image, rows)
    assert run(source, tmp_path / "out", "n") == 3
    table = read(tmp_path / "out", "n")
    assert table["n"].to_pylist() == [0.0, 1.0, 2.0, 0.5, 1.5, 2.5]
    assert open_embeddings([str(tmp_path / "out")]).rows == 6
