"""One rule for labels, whatever type a shard stores them as."""

import datetime
import decimal
import json
import math
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.planned import all_of, shard_at, units_in
from tests.support.shard_files import example, write_parquet, write_tar, write_tfrecord
from transforms.core.errors import ImagebeamError
from transforms.core.types import Failure, Record
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard, plan
from transforms.readers.columns import NamedLabels, as_label
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import ListUnit, RecordRef, WorkUnit

ID = uuid.uuid4()


@pytest.mark.parametrize(
    "three", [3, 3.0, "3", "3.0", "3.", b"3", b"3.0\n", " 3 ", np.int64(3), np.float32(3), np.float64(3)]
)
def test_every_spelling_of_three_is_one_label(three):
    assert as_label(three) == "3"
    assert as_label(decimal.Decimal("3.00")) == "3"


@pytest.mark.parametrize(
    "none", [None, "", "  ", "\t\n", b"", b" \r\n", float("nan"), np.float32("nan"), decimal.Decimal("nan"), "\u00a0"]
)
def test_null_and_blank_are_no_label(none):
    assert as_label(none) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("e\u0301cureuil", "écureuil"),
        (b"\xef\xbb\xbfcat", "cat"),
        ("a b", "a b"),
        ("007", "007"),
        ("1.10", "1.10"),
        ("3.0.0", "3.0.0"),
        (-0.0, "0"),
        ("-0.0", "0"),
        (-1, "-1"),
        (0.5, "0.5"),
        (1e20, "100000000000000000000"),
        (decimal.Decimal("1E+2"), "100"),
        (decimal.Decimal("-0.00"), "0"),
        (decimal.Decimal("0E-30"), "0"),
        (decimal.Decimal("2.50"), "2.5"),
        (decimal.Decimal("1.5E-7"), "0.00000015"),
        (1.5e-7, "0.00000015"),
        (np.float32(1e-5), "0.00001"),
        (np.float32(0.1), "0.1"),
        (float(np.float32(0.1)), "0.1"),
        (float(np.float32(-1234.56)), "-1234.56"),
        (float(np.float32(1.1e-12)), "0.0000000000011"),
        (0.1 + 0.2, "0.30000000000000004"),
        (float(np.float32(8388.607)), "8388.607"),
        (0.0009765625, "0.0009765625"),
        (decimal.Decimal("-Infinity"), "-inf"),
        (-math.inf, "-inf"),
        (True, "True"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (datetime.time(3, 4), "03:04:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_other_values_become_text(value, label):
    assert as_label(value) == label


def test_equal_numbers_of_parquet_columns_are_one_label(tmp_path):
    numbers = ["1.50", "2.50", "10.00", "0.01"]
    kinds = [pa.decimal128(5, 2), pa.decimal128(9, 6), pa.decimal256(60, 30), pa.float64()]
    for index, kind in enumerate(kinds):
        values = pa.array(list(map(decimal.Decimal, numbers))).cast(kind)
        write_png_table(tmp_path / f"{index}.parquet", label=values, kept=pa.array([[one] for one in values]))
    assert {record.label for record in read_all(tmp_path, ReadOptions())} == {"1.5", "2.5", "10", "0.01"}
    lists = [record.label for record in read_all(tmp_path, ReadOptions(label_column="kept"))]
    assert lists == ["1.5", "2.5", "10", "0.01"] * len(kinds)


def test_a_fraction_is_one_label_whatever_the_format_and_its_precision(tmp_path):
    single = pa.array([0.1, None], pa.float32())
    write_png_table(tmp_path / "single.parquet", label=single, kept=pa.array([[0.1], None], pa.list_(pa.float32())))
    write_png_table(tmp_path / "double.parquet", label=single.cast(pa.string()).cast(pa.float64()))
    write_tfrecord(tmp_path / "a.tfrecord", [example(image=b"1", label=0.1)])
    assert {record.label for record in read_all(tmp_path, ReadOptions())} == {"0.1", None}
    lists = [record.label for record in read_all(tmp_path / "single.parquet", ReadOptions(label_column="kept"))]
    assert lists == ["0.1", None]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"\xff", "\ud83d"])
def test_bad_labels_are_refused(value):
    with pytest.raises(ValueError, match=r"label"):
        as_label(value)


def labels(path, input_format, options=None):
    options = options or ReadOptions()
    units = units_in(cut_shard(shard_at(path, input_format), 100, options))
    return [record.label for unit in units for record in all_of(Record, read_records(unit, options))]


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(5, 2), pa.string(), pa.large_string()],
)
def test_label_does_not_depend_on_the_parquet_type(tmp_path, kind):
    values = pa.array(["0", None, "2"]).cast(kind) if not pa.types.is_float16(kind) else pa.array([0, None, 2], kind)
    pq.write_table(pa.table({"image": [b"1"] * 3, "label": values}), tmp_path / "x")
    assert labels(tmp_path / "x", "parquet") == ["0", None, "2"]


def test_a_categorical_column_of_pandas_has_its_categories(tmp_path):
    frame = pd.DataFrame({"image": [b"1"] * 3, "label": pd.Categorical(["cat", None, " dog"])})
    frame.to_parquet(tmp_path / "x")
    assert labels(tmp_path / "x", "parquet") == ["cat", None, "dog"]


def test_empty_labels_are_none_in_every_format(tmp_path):
    tar = write_tar(
        tmp_path / "t",
        [(f"{n}.{e}", d) for n, c in enumerate([b"cat", b"", b" "]) for e, d in (("png", b"1"), ("cls", c))],
    )
    assert labels(tar, "webdataset") == ["cat", None, None]
    parquet = write_parquet(tmp_path / "p", {"image": [b"1"] * 3, "label": ["cat", "", " "]}, 10)
    assert labels(parquet, "parquet") == ["cat", None, None]
    records = write_tfrecord(tmp_path / "r", [example(image=b"1", label=one) for one in (b"cat", b"", b" ")])
    assert labels(records, "tfrecord") == ["cat", None, None]


def test_class_labels_of_hugging_face_are_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        image=datasets.Value("binary"), label=datasets.ClassLabel(names=["cat", "dog"]), n=datasets.Value("int64")
    )
    rows = {"image": [b"1"] * 4, "label": [0, 1, -1, None], "n": [5, 6, 7, 8]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x")
    assert labels(tmp_path / "x", "parquet") == ["cat", "dog", None, None]
    assert labels(tmp_path / "x", "parquet", ReadOptions(label_column="n")) == ["5", "6", "7", "8"]


def test_a_number_without_a_name_is_refused_and_broken_metadata_is_ignored():
    with pytest.raises(ValueError, match=r"2 class names; received number 2"):
        NamedLabels(["cat", "dog"]).label(2)
    for metadata in (None, {}, {b"huggingface": b"{"}, {b"huggingface": b"[]"}, {b"huggingface": b'{"info": null}'}):
        assert NamedLabels.of(metadata, "label").label(1) == 1


# Lists of labels, and kept columns under other names.


def write_png_table(path, **columns):
    count = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [b"\x89PNG"] * count, **columns}), path)


def read_all(path, options):
    return [
        record
        for item in plan([str(path)], None, 100, options=options)
        for unit in cut_shard(item, 100, options)
        if isinstance(unit, WorkUnit)
        for record in read_records(unit, options)
    ]


LISTS = [["cat", "dog"], ["cat"], [], None, ["dog ", ""], [None, "eel"]]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_lists_in_the_label_column_are_kept_as_labels(tmp_path, kind):
    write_png_table(tmp_path / "x.parquet", label=pa.array(LISTS, kind))
    options = inspect_input([str(tmp_path)], None, ReadOptions(), "labels")
    assert options.keep_columns == (("labels", pa.list_(pa.string())),)
    found = [(record.label, record.extras["labels"]) for record in read_all(tmp_path, options)]
    lists = [["cat", "dog"], ["cat"], [], None, ["dog"], ["eel"]]
    assert found == list(zip([None, "cat", None, None, "dog", "eel"], lists, strict=True))


ANIMALS = {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]}


@pytest.mark.parametrize("feature", [{"feature": ANIMALS, "_type": "List"}, [ANIMALS]])
def test_lists_of_numbers_have_the_names_of_hugging_face(tmp_path, feature):
    table = pa.table({"image": [b"\x89PNG"] * 2, "label": [[0, 1], [2, -1]]})
    info = {"info": {"features": {"label": feature}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "x.parquet")
    options = inspect_input([str(tmp_path)], None, ReadOptions(), "labels")
    found = [(record.label, record.extras["labels"]) for record in read_all(tmp_path, options)]
    assert found == [(None, ["ant", "bee"]), ("cat", ["cat"])]


def test_a_parquet_manifest_has_the_names_of_hugging_face(tmp_path):
    table = pa.table({"uri": ["a.png", "b.png", "c.png"], "label": [2, -1, 3]})
    info = {"info": {"features": {"label": ANIMALS}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "x.parquet")
    options = ReadOptions(keep_columns=(("label", pa.int64()),))
    (unit,) = cut_shard(shard_at(tmp_path / "x.parquet", "manifest"), 9, options)
    assert isinstance(unit, ListUnit)
    found = [(ref.label, dict(ref.extras)) for ref in unit.refs if isinstance(ref, RecordRef)]
    assert found == [("cat", {"label": 2}), (None, {"label": -1})]
    assert isinstance(unit.refs[2], Failure)


def test_lists_of_labels_in_manifests(tmp_path):
    lines = [{"uri": "a.png", "label": label} for label in ([1, 2.0], [3], "x", None)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = inspect_input([f"{tmp_path}/m.jsonl"], None, ReadOptions(), "labels")
    items = plan([f"{tmp_path}/m.jsonl"], None, 9, options=options)
    (unit,) = all_of(ListUnit, (unit for item in items for unit in cut_shard(item, 9, options)))
    refs = all_of(RecordRef, unit.refs)
    assert [ref.label for ref in refs] == [None, "3", "x", None]
    assert [dict(ref.extras)["labels"] for ref in refs] == [["1", "2"], ["3"], ["x"], None]


def test_lists_of_labels_stay_where_the_user_keeps_them(tmp_path):
    write_png_table(tmp_path / "x.parquet", label=[["a", "b"]])
    own = ReadOptions(keep_columns=(("tags", pa.null()),), renamed=(("tags", "label"),))
    options = inspect_input([str(tmp_path)], None, own, "labels")
    assert options.keep_columns == (("tags", pa.list_(pa.string())),)
    assert [record.extras for record in read_all(tmp_path, options)] == [{"tags": ["a", "b"]}]


def test_several_labels_are_a_failure_with_a_remedy(tmp_path):
    write_png_table(tmp_path / "x.parquet", label=[["a", "b"], ["c"]])
    first, second = read_all(tmp_path, ReadOptions())
    assert "--keep_columns label=labels:list<string>" in first.message
    assert second.label == "c"


def test_kept_columns_are_renamed(tmp_path):
    write_png_table(tmp_path / "x.parquet", key=["a"], width=[7])
    own = ReadOptions(
        keep_columns=(("source_key", pa.null()), ("w", pa.float64())), renamed=(("source_key", "key"), ("w", "width"))
    )
    options = inspect_input([str(tmp_path)], None, own)
    assert options.keep_columns == (("source_key", pa.string()), ("w", pa.float64()))
    assert [record.extras for record in read_all(tmp_path, options)] == [{"source_key": "a", "w": 7.0}]
    missing = ReadOptions(keep_columns=(("b", pa.null()),), renamed=(("b", "nope"),))
    with pytest.raises(ImagebeamError, match="--keep_columns 'nope'"):
        inspect_input([str(tmp_path)], None, missing)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None], pa.timestamp("ns")),
        pa.array([1_600_000_000_000_001], pa.timestamp("us", "Europe/Berlin")),
        pa.array([1, None], pa.duration("ns")),
        pa.array([1, None], pa.time64("ns")),
        pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
        pa.array([decimal.Decimal("3.00"), None]),
        pa.array([{"a": 1, "t": 1}, None], pa.struct([("a", pa.int8()), ("t", pa.timestamp("ns"))])),
        pa.array([[1], [], None], pa.list_(pa.timestamp("ns"))),
        pa.array([2**64 - 1, None], pa.uint64()),
        pa.array([2**53 + 1, None]),
        pa.array([[1.5]], pa.large_list(pa.float64())),
        pa.array(["a", None, "b"]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_kept_columns_equal_those_of_the_shard(tmp_path, values):
    write_png_table(tmp_path / "x.parquet", c=values)
    options = inspect_input([str(tmp_path)], None, ReadOptions(keep_columns=(("c", pa.null()),)))
    found = [record.extras["c"] for record in read_all(tmp_path, options)]
    kind = options.keep_columns[0][1]
    assert pa.array(found, kind).cast(values.type).equals(values)


def test_kept_tensors_are_lists(tmp_path):
    """Arrow cannot make a column of tensors of the values of one."""
    lists = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), lists)
    write_png_table(
        tmp_path / "x.parquet",
        c=tensors,
        id=pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ID.bytes], pa.binary(16))),
    )
    options = inspect_input([str(tmp_path)], None, ReadOptions(keep_columns=(("c", pa.null()), ("id", pa.null()))))
    kinds = dict(options.keep_columns)
    as_bytes = kinds["id"] == pa.binary(16)  # as pyarrow 23 has it
    assert kinds == {"c": lists.type, "id": pa.binary(16) if as_bytes else pa.uuid()}
    (record,) = read_all(tmp_path, options)
    assert pa.array([record.extras["c"]], kinds["c"]).to_pylist() == [[1.0, 2.0]]
    assert pa.array([record.extras["id"]], kinds["id"]).to_pylist() == [ID.bytes if as_bytes else ID]


def test_requested_column_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("uri,label,label,x,x\na.png,cat,dog,1,2\n")
    with pytest.raises(ImagebeamError, match="2 columns are called 'label'"):
        inspect_input([f"{tmp_path}/m.csv"], None, ReadOptions())
    with pytest.raises(ImagebeamError, match="2 columns are called 'x'"):
        inspect_input([f"{tmp_path}/m.csv"], None, ReadOptions(label_column="l", keep_columns=(("x", pa.null()),)))


def test_a_label_that_is_not_utf_8_names_the_remedy(tmp_path):
    (tmp_path / "m.csv").write_bytes("uri,label\na.png,caf\xe9\n".encode("latin-1"))
    items = plan([f"{tmp_path}/m.csv"], None, 9)
    (unit,) = all_of(ListUnit, (unit for item in items for unit in cut_shard(item, 9, ReadOptions())))
    (failure,) = all_of(Failure, unit.refs)
    assert "save the file as UTF-8" in failure.message
