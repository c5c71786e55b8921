"""Types of kept columns, told before a run by a sample of the records, or asked for."""

import base64
import gzip
import itertools
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.shard_files import example, write_tar, write_tfrecord
from transforms.core.errors import ColumnTypeError, ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure
from transforms.inputs import inspection, manifest_rows
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard, plan
from transforms.readers import tfrecord
from transforms.readers.base import is_sampled
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import ListUnit, WorkUnit


def kind_of(pattern, name="n", **options):
    found = inspect_input([str(pattern)], None, ReadOptions(keep_columns=((name, pa.null()),), **options))
    assert found.inferred == (name,)
    return found.keep_columns[0][1]


def write_lines(path, values):
    text = "".join(json.dumps({"uri": "a.png", **({} if value is ... else {"n": value})}) + "\n" for value in values)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("name", ["m.jsonl", "m.ndjson.gz"])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1] * 1000 + [0.5], pa.float64()),
        ([None] * 1000 + ["x"], pa.string()),
        ([...] * 1000 + [True], pa.bool_()),
        ([[]] * 20 + [["x"]], pa.list_(pa.string())),
    ],
    ids=str,
)
def test_late_rows_are_sampled(tmp_path, name, values, kind):
    write_lines(tmp_path / name, values)
    assert kind_of(tmp_path / name) == kind


def test_end_of_a_large_manifest_is_sampled(tmp_path):
    write_lines(tmp_path / "m.jsonl", [1] * 60_000 + [0.5])
    assert kind_of(tmp_path / "m.jsonl") == pa.float64()


def test_later_files_are_sampled(tmp_path):
    for number in range(40):
        write_lines(tmp_path / f"{number:02}.jsonl", [1 if number < 39 else 0.5])
    assert kind_of(f"{tmp_path}/*.jsonl") == pa.float64()


def test_sample_is_all_first_records_and_some_later_ones():
    sampled = [index for index in range(100_000) if is_sampled(index)]
    assert sampled[:64] == [*range(64)]
    assert len(sampled) < 500
    assert max(after - before for before, after in itertools.pairwise(sampled)) <= 100_000 / 32


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_records_are_sampled_up_to_the_last(tmp_path, compression):
    records = [example(image=b"\xff\xd8", n=1) for _ in range(126)] + [example(image=b"\xff\xd8", n=[1, 2])]
    write_tfrecord(tmp_path / "x.tfrecord", records, compression)
    assert kind_of(tmp_path / "x.tfrecord") == pa.list_(pa.int64())
    plain = write_tfrecord(tmp_path / "y.tfrecord", [example(image=b"\xff\xd8", n=1)] * 999 + records[-1:])
    assert kind_of(plain) == pa.list_(pa.int64())


def write_int128(path):
    """A Parquet file as Polars writes it: column `n` is of integers of 128 bits, by the schema that Arrow stores."""
    table = pa.table({"image": [b"x"], "n": [bytes(16)]}, pa.schema([("image", pa.binary()), ("n", pa.binary(16))]))
    said = [
        bytearray(pa.schema([("image", pa.binary()), ("n", kind)]).serialize().to_pybytes())
        for kind in (pa.int64(), pa.int32())
    ]
    (bits,) = (place for place, (one, other) in enumerate(zip(*said, strict=True)) if (one, other) == (64, 32))
    said[0][bits] = 128
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(said[0]).decode()})


def failure_of(path):
    options = ReadOptions()
    units = [unit for item in plan([str(path)], None, 100) for unit in cut_shard(item, 100, options)]
    (failed,) = (found for unit in units if isinstance(unit, WorkUnit) for found in read_records(unit, options))
    assert isinstance(failed, Failure)
    return failed


@pytest.mark.parametrize("kept", [(), (("n", pa.null()),), (("n", pa.string()),)])
def test_a_file_that_pyarrow_cannot_read_is_refused_by_name(tmp_path, kept):
    write_int128(tmp_path / "x.parquet")
    with pytest.raises(ImagebeamError) as caught:
        inspect_input([str(tmp_path)], None, ReadOptions(keep_columns=kept))
    for part in (f"{tmp_path}/x.parquet (parquet)", "Integers with more than 64 bits", "leave it out of the file."):
        assert part in str(caught.value)


def test_a_manifest_that_pyarrow_cannot_read_is_refused_by_name(tmp_path):
    write_int128(tmp_path / "x.parquet")
    with pytest.raises(ImagebeamError, match=r"x\.parquet \(manifest\): .* more than 64 bits"):
        inspect_input([str(tmp_path / "x.parquet")], InputFormat.MANIFEST, ReadOptions())


def test_a_later_file_that_pyarrow_cannot_read_is_a_failure_of_its_own_type(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "n": [1]}), tmp_path / "a.parquet")
    write_int128(tmp_path / "b.parquet")
    assert kind_of(tmp_path) == pa.int64()
    failed = failure_of(tmp_path / "b.parquet")
    assert (failed.error_type, failed.retryable) == ("unsupported", False)
    assert "more than 64 bits" in failed.message
    assert "another type, or leave it out" in failed.message
    assert failed.unread is not None


def test_type_of_a_kept_column_of_a_damaged_file_blames_the_file(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(ImagebeamError, match=r"not known, since .*x\.parquet could not be read: .* n:string"):
        kind_of(tmp_path)
    assert failure_of(tmp_path).error_type == "corrupt"


ROWS = [{"uri": "a.png", "n": 1}, {"uri": "b.png", "n": 2}]
JSON_TEXTS = {
    "pandas": pd.DataFrame(ROWS).to_json(orient="records"),
    "indented": json.dumps(ROWS, indent=2),
    "coco": json.dumps({"images": ROWS, "annotations": []}, indent=1),
    "strings": json.dumps(["a.png", "b.png"]),
    "bom": "\ufeff" + json.dumps(ROWS),
}


@pytest.mark.parametrize("name", ["m.json", "m.jsonl", "m.csv", "m.jsonl.gz"])
@pytest.mark.parametrize("text", JSON_TEXTS.values(), ids=JSON_TEXTS)
def test_json_that_is_not_of_lines_is_refused_as_a_manifest_with_the_remedy(tmp_path, name, text):
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(ImagebeamError, match=r"one JSON value\. Write one object per line.*\.jsonl"):
        inspect_input([str(tmp_path / name)], InputFormat.MANIFEST, ReadOptions())
    (unit,) = (
        unit
        for item in plan([str(tmp_path / name)], InputFormat.MANIFEST, 100)
        for unit in cut_shard(item, 100, ReadOptions())
    )
    assert isinstance(unit, ListUnit)
    (failed,) = unit.refs
    assert isinstance(failed, Failure)
    assert (failed.error_type, "one object per line" in failed.message) == ("bad_value", True)


def test_tables_beside_shards_are_refused_with_the_way_to_read_the_shards_alone(tmp_path):
    write_tar(tmp_path / "00000.tar", [("0.jpg", b"1"), ("0.cls", b"3")])
    pq.write_table(pa.table({"url": ["http://a/0.jpg"], "key": ["0"]}), tmp_path / "00000.parquet")
    with pytest.raises(ImagebeamError, match=r"00000\.parquet .* pass --input_format webdataset\.$"):
        inspect_input([str(tmp_path)], None, ReadOptions())
    inspect_input([str(tmp_path)], InputFormat.WEBDATASET, ReadOptions())
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(ImagebeamError) as caught:
        inspect_input([str(tmp_path)], None, ReadOptions())
    assert "webdataset" not in str(caught.value)


@pytest.mark.parametrize("input_format", [None, InputFormat.TFRECORD])
def test_a_folder_of_shards_of_other_names_is_refused_with_a_way_that_works(tmp_path, input_format):
    write_tfrecord(tmp_path / "data.tfrecord.0001", [example(image=b"\x89PNG", label=1)])
    with pytest.raises(ImagebeamError, match=r"--input_format tfrecord and name such files with a glob"):
        inspect_input([str(tmp_path)], input_format, ReadOptions())
    inspect_input([f"{tmp_path}/*"], InputFormat.TFRECORD, ReadOptions())


@pytest.mark.parametrize("first", ["# exported by a tool", "\nlabels of today"])
def test_a_csv_manifest_with_a_title_is_refused_by_what_its_first_line_has(tmp_path, first):
    (tmp_path / "m.csv").write_text(f"{first}\nuri,label\na.png,cat\n")
    with pytest.raises(ImagebeamError, match=rf"columns are {first.strip()} \(string\)"):
        inspect_input([str(tmp_path / "m.csv")], None, ReadOptions())
    (tmp_path / "m.csv").write_text("uri,label\na.png\n")  # Its one row is a failure.
    inspect_input([str(tmp_path / "m.csv")], None, ReadOptions())


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("m.csv", '"uri","label"\n"1","a.png","cat"\n"2","b.png","dog"\n', "R's row names need a name"),
        ("m.csv", "uri,label\na.png, cat, sitting\nb.png, cat, asleep, old\n", "needs quotes"),
        ("m.jsonl", '{"uri": "a.png",\n "label": "cat"}\n', "the line is not JSON"),
    ],
)
def test_a_manifest_none_of_whose_first_rows_can_be_read_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ImagebeamError, match=f"None of the first 2 rows can be read: .*{why}"):
        inspect_input([str(tmp_path / name)], None, ReadOptions())
    (tmp_path / name).write_text(text + ("c.png,cow\n" if name == "m.csv" else '{"uri": "c.png"}\n'))
    inspect_input([str(tmp_path / name)], None, ReadOptions())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_json_lines_under_another_name_are_refused_with_the_remedy(tmp_path, encoding):
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding)
    with pytest.raises(ImagebeamError, match=r"which its name does not say\. Write one object per line.*\.jsonl"):
        inspect_input([str(tmp_path / "m.json")], InputFormat.MANIFEST, ReadOptions())


@pytest.mark.parametrize("text", JSON_TEXTS.values(), ids=JSON_TEXTS)
@pytest.mark.parametrize("pattern", ["/m.json", "/*", ""])
def test_json_given_as_input_is_refused_with_the_remedy(tmp_path, text, pattern):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(
        ImagebeamError, match=r"m\.json is a JSON file, .* Write one object per line.*\.jsonl"
    ) as caught:
        inspect_input([f"{tmp_path}{pattern}"], None, ReadOptions())
    assert "Unpack" not in str(caught.value)


def test_damaged_shard_does_not_hide_types_of_the_others(tmp_path):
    write_tfrecord(tmp_path / "a.tfrecord", [example(image=b"\xff\xd8", n=1)])
    (tmp_path / "b.tfrecord").write_bytes(b"x" * 1000)
    write_tfrecord(tmp_path / "c.tfrecord", [example(image=b"\xff\xd8", n=[1, 2])] * 3)
    (tmp_path / "c.tfrecord").write_bytes((tmp_path / "c.tfrecord").read_bytes()[:-10])
    (tmp_path / "d.tar").write_bytes(b"x" * 10_000)
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    assert kind_of(tmp_path) == pa.list_(pa.int64())


@pytest.mark.parametrize("name", ["m.jsonl", "x.tfrecord", "x.tar", "b.parquet"])
def test_unforeseen_type_fails_no_record(tmp_path, monkeypatch, name):
    monkeypatch.setattr(inspection, "_SAMPLED_RECORDS", 2)
    monkeypatch.setattr(inspection, "_SAMPLED_SHARDS", 2)
    monkeypatch.setattr(manifest_rows, "_TAIL_BYTES", 0)
    values = [1, 2, [3, 4]]
    path = tmp_path / name
    if name == "m.jsonl":
        write_lines(path, values)
    elif name == "x.tfrecord":
        write_tfrecord(path, [example(image=b"\xff\xd8", n=value) for value in values])
        monkeypatch.setattr(tfrecord, "is_sampled", lambda index: index < 2)
    elif name == "x.tar":
        write_tar(path, [(f"{at}.{end}", data) for at, n in enumerate(values) for end, data in sample(n)])
    else:
        for shard, column in (("a", [1]), ("b", [[3, 4]]), ("c", [2])):
            pq.write_table(pa.table({"image": [b"x"], "n": column}), tmp_path / f"{shard}.parquet")
    with pytest.raises(ColumnTypeError) as caught:
        read_all(f"{tmp_path}/*")
    assert str(caught.value) == (
        f"{path}#{0 if name == 'b.parquet' else 2}: the kept column 'n' is int64 in the records that were looked at "
        f"before the run, which [3, 4] is not. Say its type: --keep_columns 'n:list<int64>'"
    )


def read_all(pattern):
    options = inspect_input([pattern], None, ReadOptions(keep_columns=(("n", pa.null()),)))
    for item in plan([pattern], None, 10, options=options):
        for unit in cut_shard(item, 10, options):
            assert isinstance(unit, WorkUnit)
            list(read_records(unit, options))


def sample(n):
    return ("png", b"x"), ("json", json.dumps({"n": n}).encode())


def test_a_column_may_begin_late(tmp_path):
    fields: list[dict[str, int]] = [{}] * 30 + [{"n": 1}]
    members = [
        (f"{at:02}.{kind}", data)
        for at, one in enumerate(fields)
        for kind, data in (("png", b"x"), ("json", json.dumps(one).encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    assert kind_of(tmp_path / "a.tar") == pa.int64()
    with pytest.raises(ImagebeamError, match=r"The columns are .*--keep_columns 'm'"):
        kind_of(tmp_path / "a.tar", "m")


def test_csv_column_with_empty_first_rows_is_text(tmp_path):
    (tmp_path / "m.csv").write_text("uri,n\n" + "a.png,\n" * 100)
    assert kind_of(tmp_path / "m.csv") == pa.string()


def test_formats_of_one_run_share_their_types(tmp_path):
    write_lines(tmp_path / "m.jsonl", [1])
    pq.write_table(pa.table({"image": [b"x"], "n": [0.5]}), tmp_path / "a.parquet")
    write_tfrecord(tmp_path / "x.tfrecord", [example(image=b"\xff\xd8", n=[1, 2])])
    assert kind_of(f"{tmp_path}/*") == pa.list_(pa.float64())


def test_lists_in_the_label_column_are_text(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "label": [[1, 2]]}), tmp_path / "a.parquet")
    assert kind_of(tmp_path / "a.parquet", "tags", renamed=(("tags", "label"),)) == pa.list_(pa.string())


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ([1] * 100 + ["x"], "n:string"),
        ([True, 1], "n:string"),
        ([{"a": 1}, 1], "n:string"),
        ([{"a": 1}, {"a": "x"}], "n:string"),
        ([0.5, 2**53 + 1], "n:string"),
        ([-1, 2**63], "n:string"),
        ([0.5, 10**30], "n:string"),
        ([10**50], "n:string"),
        ([[], [], None], "'n:list<string>'"),
        ([None, ...], "n:string"),
        ([{}], "n:string"),
        ([{"a": None}], "n:string"),
    ],
    ids=str,
)
def test_values_without_a_common_type_are_refused_with_a_remedy(tmp_path, values, remedy):
    write_lines(tmp_path / "m.jsonl", values)
    with pytest.raises(ImagebeamError) as caught:
        kind_of(tmp_path / "m.jsonl")
    assert str(caught.value).endswith(f"--keep_columns {remedy}.")


def test_a_refusal_names_both_values_and_files(tmp_path):
    write_lines(tmp_path / "a.jsonl", [1])
    write_lines(tmp_path / "b.jsonl", ["x"])
    with pytest.raises(ImagebeamError) as caught:
        kind_of(f"{tmp_path}/*.jsonl", "m", renamed=(("m", "n"),))
    message = str(caught.value)
    for part in ("'m'", f"int64 (1 in {tmp_path}/a.jsonl)", f"string ('x' in {tmp_path}/b.jsonl)"):
        assert part in message
    assert message.endswith("--keep_columns n=m:string.")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC"))),
        (pa.array([1], pa.timestamp("us", "Europe/Berlin")), pa.array([1], pa.timestamp("us", "UTC"))),
        (pa.array([1]), pa.array(["x"])),
        (pa.array([True]), pa.array([1])),
    ],
    ids=lambda array: str(array.type),
)
def test_parquet_shards_without_a_common_type_are_refused(tmp_path, one, other):
    for name, column in (("a", one), ("b", other)):
        pq.write_table(pa.table({"image": [b"x"], "n": column}), tmp_path / f"{name}.parquet")
    with pytest.raises(ImagebeamError, match=r"a\.parquet.*b\.parquet.*--keep_columns n:string\."):
        kind_of(tmp_path)
