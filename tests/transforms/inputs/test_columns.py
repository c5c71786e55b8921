"""One rule for labels, whatever type a shard stores them as."""

import datetime
import decimal
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.shard_files import example, write_parquet, write_tar, write_tfrecord
from transforms import storage
from transforms.core.formats import InputFormat
from transforms.inputs.columns import NamedLabels, as_label
from transforms.inputs.plan import cut_shard
from transforms.inputs.read import read_records
from transforms.inputs.types import ReadOptions, Shard


@pytest.mark.parametrize(
    "three", [3, 3.0, "3", "3.0", "3.", b"3", b"3.0\n", " 3 ", np.int64(3), np.float32(3), np.float64(3)]
)
def test_three_is_one_label(three):
    assert as_label(three) == "3"
    assert as_label(decimal.Decimal("3.00")) == "3"


@pytest.mark.parametrize(
    "none", [None, "", "  ", "\t\n", b"", b" \r\n", float("nan"), np.float32("nan"), decimal.Decimal("nan"), "\u00a0"]
)
def test_nothing_and_blank_are_no_label(none):
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
        (decimal.Decimal("2.50"), "2.50"),
        (True, "True"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (datetime.time(3, 4), "03:04:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_other_values_become_text(value, label):
    assert as_label(value) == label


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"\xff", "\ud83d"])
def test_what_is_no_label_is_refused(value):
    with pytest.raises(ValueError, match=r"label|utf-8|surrogates"):
        as_label(value)


def labels(path, input_format, options=None):
    options = options or ReadOptions()
    shard = Shard(storage.stat(str(path)), InputFormat(input_format))
    units = cut_shard(shard, 100, options)
    return [record.label for unit in units for record in read_records(unit, options)]


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(5, 2), pa.string(), pa.large_string()],
)
def test_the_type_of_a_parquet_column_does_not_matter(tmp_path, kind):
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
