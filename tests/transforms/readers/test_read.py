"""Whatever the units, what is read equals what a plain loop with another library reads; the rest is counted."""

import collections
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.gcs_server import gcs  # noqa: F401
from tests.support.planned import all_of, shard_at, units_in
from tests.support.shard_files import (
    example,
    images,
    read_member,
    samples,
    tfrecord_offsets,
    write_parquet,
    write_tar,
    write_tfrecord,
)
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record, Stage
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard, plan
from transforms.readers import tfrecord
from transforms.readers.image_files import read_file
from transforms.readers.options import ReadOptions
from transforms.readers.read import FILES_AHEAD, open_records, read_records
from transforms.readers.units import ListUnit, RecordRef, ShardUnit, WorkUnit

COUNT = 37
OPTIONS = ReadOptions()
UNIT_SIZES = (1, 5, 2048)


def units_of(path, input_format, rows_per_unit=5, options=OPTIONS):
    found = cut_shard(shard_at(path, input_format), rows_per_unit, options)
    return [item for item in found if isinstance(item, WorkUnit)]


def read(path, input_format, options=OPTIONS, rows_per_unit=5):
    """Every record of a shard, through its units; each unit keeps its promise on the way."""
    found = []
    for unit in units_of(path, input_format, rows_per_unit, options):
        items = list(read_records(pickle.loads(pickle.dumps(unit)), options))  # As a worker gets it.
        assert len(items) == unit.count
        found += items
    keys = [item.key for item in found]
    assert len(set(keys)) == len(keys)
    assert all(item.uri == str(path) for item in found)
    assert all(item.stage == Stage.READ for item in found if isinstance(item, Failure))
    return found


def kept(**columns):
    return ReadOptions(keep_columns=tuple(columns.items()))


def types_of(items):
    return [item.error_type if isinstance(item, Failure) else None for item in items]


# TFRecord.


def test_local_files_are_opened_by_the_decoder_and_others_read_ahead(gcs, tmp_path):  # noqa: F811
    for base in (str(tmp_path), f"gs://{gcs.bucket}"):
        for number in range(3):
            storage.publish(f"{base}/{number}.jpg", b"%d" % number)
    here, there = (all_of(ListUnit, plan([base], None, 10))[0] for base in (str(tmp_path), f"gs://{gcs.bucket}"))
    refs = all_of(RecordRef, here.refs)
    assert list(open_records(here, OPTIONS)) == refs
    assert [read_file(ref) for ref in refs] == list(read_records(here, OPTIONS))
    assert list(open_records(there, OPTIONS)) == list(read_records(there, OPTIONS))
    (tmp_path / "1.jpg").unlink()
    (failure,) = all_of(Failure, [read_file(refs[1])])
    assert (failure.stage, failure.error_type) == ("read", "missing")


@pytest.fixture(scope="module")
def payloads():
    return [example(image=data, label=index, name=f"no. {index}".encode()) for index, data in enumerate(images(COUNT))]


def test_list_of_one_stays_a_list_if_declared(tmp_path):
    tags = [[b"a"], [b"b", b"c"], []]
    path = write_tfrecord(tmp_path / "x", [example(image=b"x", tags=values) for values in tags])
    items = read(path, "tfrecord", kept(tags=pa.list_(pa.string())))
    assert [item.extras["tags"] for item in items] == [["a"], ["b", "c"], None]
    jsonl = tmp_path / "m.jsonl"
    jsonl.write_text("".join(json.dumps({"uri": "x.jpg", "tags": one}) + "\n" for one in ("a", ["b", "c"], [], None)))
    (unit,) = units_of(jsonl, "manifest", options=kept(tags=pa.list_(pa.string())))
    assert [dict(ref.extras)["tags"] for ref in unit.refs] == [["a"], ["b", "c"], [], None]


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_tfrecords_equal_those_of_tensorflow(tmp_path, payloads, compression):
    import tensorflow as tf

    path = write_tfrecord(tmp_path / "x", payloads, compression)
    expected = []
    for index, payload in enumerate(tf.data.TFRecordDataset(path, compression).as_numpy_iterator()):
        features = tf.train.Example.FromString(payload).features.feature
        expected.append(
            Record(
                f"{path}#{index}",
                path,
                features["image"].bytes_list.value[0],
                str(features["label"].int64_list.value[0]),
                {"name": features["name"].bytes_list.value[0].decode()},
            )
        )
    assert len(expected) == COUNT
    for rows_per_unit in UNIT_SIZES:
        assert read(path, "tfrecord", kept(name=pa.string()), rows_per_unit) == expected


def test_examples_are_parsed_as_tensorflow_parses_them():
    import tensorflow as tf

    source = random.Random(0)
    makers = (
        lambda: [source.randbytes(source.randrange(20)) for _ in range(source.randrange(4))],
        lambda: [source.uniform(-1e9, 1e9) for _ in range(source.randrange(4))],
        lambda: [source.randrange(-(2**63), 2**63) for _ in range(source.randrange(4))],
    )
    for _ in range(200):
        payload = example(**{f"f/{number} ü": source.choice(makers)() for number in range(source.randrange(6))})
        expected = {}
        for name, feature in tf.train.Example.FromString(payload).features.feature.items():
            kind = feature.WhichOneof("kind")
            expected[name] = list(getattr(feature, kind).value) if kind else []
        assert tfrecord.parse_example(payload) == expected


def test_tensorflow_is_not_imported_to_read_its_records(tmp_path, payloads):
    path = write_tfrecord(tmp_path / "x.tfrecord", payloads)
    code = (
        "import sys\nfrom transforms.readers.read import read_records\nfrom transforms.inputs.plan import *\n"
        "from transforms.inputs.inspection import inspect_input\n"
        "options = inspect_input([sys.argv[1]], None, ReadOptions())\n(shard,) = plan([sys.argv[1]], None, 2048)\n"
        "(unit,) = cut_shard(shard, 2048, options)\n"
        "print(sum(1 for _ in read_records(unit, options)), 'tensorflow' in sys.modules, 'apache_beam' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(COUNT), "False", "False"]


def test_a_record_with_a_wrong_crc_fails_alone(tmp_path, payloads):
    path = write_tfrecord(tmp_path / "x", payloads)
    data = bytearray(Path(path).read_bytes())
    data[tfrecord_offsets(data)[3] + 20] ^= 1  # Content.
    data[tfrecord_offsets(data)[9] - 1] ^= 1  # The CRC itself.
    Path(path).write_bytes(data)
    items = read(path, "tfrecord")
    assert types_of(items) == [None] * 3 + ["corrupt"] + [None] * 4 + ["corrupt"] + [None] * (COUNT - 9)
    assert items[3].key == f"{path}#3"
    assert "CRC" in items[3].message


@pytest.mark.parametrize(
    ("features", "error_type", "message"),
    [
        ({"label": 1, "photo": b"x"}, "no_image", "no feature 'image'; its features are "),
        ({}, "no_image", "no feature 'image'; it has none"),
        ({"image": 3}, "no_image", "holds int, not the bytes of one image"),
        ({"image": [b"1", b"2"]}, "no_image", "holds 2 values"),
        ({"image": []}, "no_image", "holds 0 values"),
        ({"image": b"1", "label": [1, 2]}, "bad_value", "a list of 2 labels; keep it with --keep_columns"),
        ({"image": b"1", "label": b"\xff"}, "bad_value", "not UTF-8"),
        ({"image": b"1", "n": b"x"}, "bad_value", "the kept column 'n' is int64, which 'x' is not"),
        ({"image": b"1", "n": 1.5}, "bad_value", "the kept column 'n' is int64, which 1.5 is not"),
        ({"image": b"1", "n": [1, 2]}, "bad_value", "the kept column 'n' is int64, which [1, 2] is not"),
    ],
)
def test_an_example_that_does_not_fit_fails_alone(tmp_path, features, error_type, message):
    good = example(image=b"good")
    path = write_tfrecord(tmp_path / "x", [good, example(**features), good])
    items = read(path, "tfrecord", kept(n=pa.int64()))
    assert types_of(items) == [None, error_type, None]
    assert message in items[1].message


def test_a_record_that_is_no_example_fails_alone(tmp_path):
    bare = b"\xff\xd8\xff\xe0"
    path = write_tfrecord(tmp_path / "x", [example(image=b"1"), b"\xff\xff\xff", b"", bare, example(image=b"2")])
    items = read(path, "tfrecord")
    assert types_of(items) == [None, "corrupt", "no_image", "corrupt", None]
    assert "JPEG data; write each image" in items[3].message


@pytest.mark.parametrize(
    ("label", "expected"),
    [(3, "3"), (-1, "-1"), (0.5, "0.5"), (b"cat", "cat"), ("écureuil".encode(), "écureuil"), ([], None)],
)
def test_labels_become_text(tmp_path, label, expected):
    path = write_tfrecord(tmp_path / "x", [example(image=b"1", label=label)])
    (record,) = read(path, "tfrecord")
    assert record.label == expected


def test_feature_names_can_be_chosen(tmp_path):
    path = write_tfrecord(
        tmp_path / "x", [example(**{"image/encoded": b"1", "image/class/label": 7, "label": b"no", "image": b"no"})]
    )
    (record,) = read(path, "tfrecord", ReadOptions("image/encoded", "image/class/label"))
    assert (record.data, record.label) == (b"1", "7")


def test_kept_values_have_the_types_of_their_columns(tmp_path):
    values = {"i": 3, "f": 0.5, "s": "é".encode(), "b": b"\xff", "many": [1, 2, 3], "none": []}
    path = write_tfrecord(tmp_path / "x.tfrecord", [example(image=b"\xff", **values)])
    options = ReadOptions(keep_columns=tuple((name, pa.null()) for name in ("i", "f", "s", "b", "many")))
    options = inspect_input([path], None, options)
    (record,) = read(path, "tfrecord", options)
    assert record.extras == {"i": 3, "f": 0.5, "s": "é", "b": b"\xff", "many": [1, 2, 3]}
    as_written = kept(i=pa.string(), f=pa.float32(), none=pa.int64(), absent=pa.string(), many=pa.list_(pa.int8()))
    (record,) = read(path, "tfrecord", as_written)
    assert record.extras == {"i": "3", "f": 0.5, "none": None, "absent": None, "many": [1, 2, 3]}


# WebDataset.


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_samples_equal_those_of_tarfile(tmp_path, mode):
    path = write_tar(tmp_path / "x", samples(COUNT), mode)
    with tarfile.open(path) as tar:
        contents = {member.name: read_member(tar, member) for member in tar}
    expected = [
        Record(
            f"{path}#{name[:-4]}",
            path,
            data,
            contents[f"{name[:-4]}.cls"].decode(),
            {key: json.loads(contents[f"{name[:-4]}.json"])[key] for key in ("caption", "score")},
        )
        for name, data in contents.items()
        if name.endswith(".jpg")
    ]
    assert len(expected) == COUNT
    for rows_per_unit in UNIT_SIZES:
        assert read(path, "webdataset", kept(caption=pa.string(), score=pa.float64()), rows_per_unit) == expected


@pytest.mark.parametrize(
    ("members", "options", "data", "label"),
    [
        ({"cls": b"3\n", "jpg": b"1", "txt": b"no"}, {}, b"1", "3"),
        ({"jpg": b"1", "txt": b" a cat \n"}, {}, b"1", "a cat"),
        ({"jpg": b"1", "txt": b"caption", "json": b'{"label": 5}'}, {}, b"1", "5"),
        ({"jpg": b"1", "json": b'{"label": "x", "kind": "y"}'}, {"label_column": "kind"}, b"1", "y"),
        ({"jpg": b"1", "kind": b"y", "cls": b"no"}, {"label_column": "kind"}, b"1", "y"),
        ({"jpg": b"1", "json": b"{}"}, {}, b"1", None),
        ({"JPG": b"1", "CLS": b"2"}, {}, b"1", "2"),
        ({"mask.png": b"no", "webp": b"1", "png": b"no"}, {}, b"1", None),
        ({"left.png": b"1", "right.png": b"no", "cls": b"7"}, {"image_column": "left.png"}, b"1", "7"),
        ({"png": b"no", "jpg": b"1"}, {"image_column": "jpg"}, b"1", None),
        ({"jpg": b"no", "raw": b"1"}, {"image_column": "raw"}, b"1", None),
    ],
)
def test_image_and_label_of_a_sample(tmp_path, members, options, data, label):
    path = write_tar(tmp_path / "x", [(f"a.{name}", content) for name, content in members.items()])
    (record,) = read(path, "webdataset", ReadOptions(**options))
    assert (record.data, record.label, record.key) == (data, label, f"{path}#a")


@pytest.mark.parametrize(
    ("members", "error_type", "message"),
    [
        ({"cls": b"1", "txt": b"2"}, "no_image", "no image member; its members are cls, txt"),
        ({"jpg": b"1", "json": b"{oops"}, "bad_value", "not JSON"),
        ({"jpg": b"1", "json": b"[1]"}, "bad_value", "holds a list"),
        ({"jpg": b"1", "cls": b"\xff"}, "bad_value", "not UTF-8"),
        ({"jpg": b"1", "json": b'{"label": [1, 2]}'}, "bad_value", "a list of 2 labels"),
        ({"jpg": b"1", "json": b'{"n": "x"}'}, "bad_value", "'n' is int64, which 'x' is not"),
    ],
)
def test_a_sample_that_does_not_fit_fails_alone(tmp_path, members, error_type, message):
    bad = [(f"b.{name}", content) for name, content in members.items()]
    path = write_tar(tmp_path / "x", [("a.jpg", b"1"), *bad, ("c.jpg", b"3")])
    items = read(path, "webdataset", kept(n=pa.int64()))
    assert types_of(items) == [None, error_type, None]
    assert message in items[1].message
    assert items[1].key == f"{path}#b"


def test_members_can_be_kept(tmp_path):
    path = write_tar(tmp_path / "x", [("a.jpg", b"1"), ("a.caption", "é".encode()), ("a.npy", b"\xff\0")])
    (record,) = read(path, "webdataset", kept(caption=pa.string(), npy=pa.binary()))
    assert record.extras == {"caption": "é", "npy": b"\xff\0"}


def test_repeated_samples_are_failures_with_their_own_keys(tmp_path):
    names = ["1.jpg", "2.jpg", "3.jpg", "2.cls", "1.cls", "4.jpg"]
    path = write_tar(tmp_path / "x", [(name, b"1") for name in names])
    items = read(path, "webdataset")
    assert types_of(items) == [None, None, None, "repeated_key", "repeated_key", None]
    assert [item.key for item in items] == [f"{path}#{name}" for name in ("1", "2", "3", ".3", ".4", "4")]


# Parquet.


@pytest.mark.parametrize("row_group_size", [10, COUNT])
@pytest.mark.parametrize("layout", ["binary", "large_binary", "struct", "dictionary"])
def test_rows_equal_those_of_pyarrow(tmp_path, layout, row_group_size):
    data = pa.array(images(COUNT), pa.large_binary() if layout == "large_binary" else pa.binary())
    if layout == "struct":
        data = pa.StructArray.from_arrays([data, pa.nulls(COUNT, pa.string())], ["bytes", "path"])
    columns = {
        "junk": [b"x" * 1000] * COUNT,
        "image": data.dictionary_encode() if layout == "dictionary" else data,
        "label": [index % 3 for index in range(COUNT)],
        "tags": [["a"] * (index % 3) for index in range(COUNT)],
    }
    path = write_parquet(tmp_path / "x", columns, row_group_size)
    expected = []
    for index, row in enumerate(pq.read_table(path).to_pylist()):
        image = row["image"]["bytes"] if layout == "struct" else row["image"]
        expected.append(Record(f"{path}#{index}", path, image, str(row["label"]), {"tags": row["tags"]}))
    for rows_per_unit in UNIT_SIZES:
        assert read(path, "parquet", kept(tags=pa.list_(pa.string())), rows_per_unit) == expected


def test_reads_what_hugging_face_writes(tmp_path):
    import datasets
    import PIL.Image

    files = [tmp_path / f"{index}.png" for index in range(4)]
    for index, file in enumerate(files):
        PIL.Image.new("RGB", (8, 8), (index, 0, 0)).save(file)
    table = {"image": [str(file) for file in files], "label": [0, 1, 0, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    dataset = datasets.Dataset.from_dict(table, features=features)
    dataset.to_parquet(tmp_path / "x.parquet", batch_size=2)
    inspect_input([f"{tmp_path}/x.parquet"], None, OPTIONS)
    records = read(tmp_path / "x.parquet", "parquet")
    assert [(record.data, record.label) for record in records] == [
        (file.read_bytes(), label) for file, label in zip(files, ["cat", "dog"] * 2, strict=True)
    ]


def test_a_path_without_bytes_is_read_beside_the_shard(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1 #.jpg").write_bytes(b"one")
    (tmp_path / "2.jpg").write_bytes(b"two")
    rows = [
        {"bytes": None, "path": "in/1 #.jpg"},
        {"bytes": b"own", "path": "in/1 #.jpg"},
        {"bytes": None, "path": f"{tmp_path}/2.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
        None,
    ]
    items = read(write_parquet(tmp_path / "x", {"image": rows}, 100), "parquet")
    assert types_of(items) == [None, None, None, "missing", "no_image", None, "no_image"]
    assert [item.data for item in items if isinstance(item, Record)] == [b"one", b"own", b"two", b""]


def test_rows_that_do_not_fit_fail_alone(tmp_path):
    columns = {"image": [b"1", None, b"3"], "label": [1.0, 2.0, float("nan")], "n": ["1", "2", "x"]}
    items = read(write_parquet(tmp_path / "x", columns, 100), "parquet", kept(n=pa.int32()))
    assert types_of(items) == [None, "no_image", "bad_value"]
    assert items[0].extras == {"n": 1}
    without = read(write_parquet(tmp_path / "x", {**columns, "n": ["1", "2", "3"]}, 100), "parquet")
    assert [getattr(item, "label", None) for item in without] == ["1", None, None]


@pytest.mark.parametrize("lists", [False, True], ids=["text", "lists"])
def test_text_that_is_not_utf_8_fails_alone(tmp_path, lists):
    """pyarrow does not check what others wrote."""
    labels = pa.Array.from_buffers(pa.string(), 3, pa.array([b"cat", b"caf\xe9", b"dog"]).buffers())
    if lists:
        labels = pa.ListArray.from_arrays([0, 1, 2, 3], labels)
    items = read(write_parquet(tmp_path / "x", {"image": [b"1", b"2", b"3"], "label": labels}, 100), "parquet")
    assert types_of(items) == [None, "bad_value", None]
    assert [item.label for item in items if isinstance(item, Record)] == ["cat", "dog"]
    assert "utf-8" in items[1].message


def test_a_label_beyond_python_fails_alone(tmp_path):
    dates = pa.array([0, 10**8, 1], pa.date32())
    items = read(write_parquet(tmp_path / "x", {"image": [b"1", b"2", b"3"], "label": dates}, 100), "parquet")
    assert types_of(items) == [None, "bad_value", None]
    assert [item.label for item in items if isinstance(item, Record)] == ["1970-01-01", "1970-01-02"]


def test_columns_of_one_name_are_refused_where_they_are_asked_for(tmp_path):
    names = ["image", "image", "n", "n"]
    table = pa.Table.from_arrays([pa.array([value]) for value in (b"1", b"2", 3, 4)], names=names)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ImagebeamError, match="2 columns are called 'image'"):
        inspect_input([f"{tmp_path}/x.parquet"], None, OPTIONS)
    assert types_of(read(tmp_path / "x.parquet", "parquet")) == ["bad_value"]
    pq.write_table(table.select([1, 2, 3]), tmp_path / "x.parquet")
    inspect_input([f"{tmp_path}/x.parquet"], None, OPTIONS)
    assert [record.data for record in all_of(Record, read(tmp_path / "x.parquet", "parquet"))] == [b"2"]


def test_a_shard_without_the_column_fails_whole(tmp_path):
    items = read(write_parquet(tmp_path / "x", {"photo": images(7)}, 4), "parquet")
    assert types_of(items) == ["no_image"] * 7
    assert "The columns are photo (binary)" in items[0].message


def test_a_damaged_row_group_costs_no_other(tmp_path):
    path = tmp_path / "x"
    options = {"row_group_size": 10, "write_page_checksum": True, "compression": None, "use_dictionary": False}
    pq.write_table(pa.table({"image": images(30)}), path, **options)
    metadata = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[metadata.data_page_offset + metadata.total_compressed_size // 2] ^= 1  # Only the page's checksum can tell.
    path.write_bytes(data)
    items = read(path, "parquet", rows_per_unit=2048)
    assert types_of(items) == [None] * 10 + ["corrupt"] * 10 + [None] * 10
    assert [item.data for item in items if isinstance(item, Record)] == images(30)[:10] + images(30)[20:]


# Whole shards that fail.


@pytest.mark.parametrize("input_format", ["tfrecord", "webdataset", "parquet"])
def test_shard_replaced_after_planning_is_reported(tmp_path, payloads, input_format):
    def write(count):
        if input_format == "tfrecord":
            return write_tfrecord(tmp_path / "x", payloads[:count])
        if input_format == "webdataset":
            return write_tar(tmp_path / "x", samples(count))
        return write_parquet(tmp_path / "x", {"image": images(count)}, 100)

    path = write(COUNT)
    (unit,) = units_of(path, input_format, 2048)
    write(COUNT - 1)
    items = list(read_records(unit, OPTIONS))
    assert types_of(items) == ["replaced"] * COUNT
    os.remove(path)
    items = list(read_records(unit, OPTIONS))
    assert types_of(items) == ["missing"] * COUNT
    assert len({item.key for item in items}) == COUNT


@pytest.mark.parametrize("kind", ["tfrecord", "tfrecord gzip", "webdataset", "webdataset gzip"])
def test_every_record_is_accounted_for_wherever_a_shard_breaks_off(tmp_path, payloads, kind):
    """Cut off under the reader's hands, with the version kept: what was planned is what comes."""
    if kind.startswith("tfrecord"):
        path = write_tfrecord(tmp_path / "x", payloads, "GZIP" if "gzip" in kind else "")
    else:
        path = write_tar(tmp_path / "x", samples(COUNT), "w:gz" if "gzip" in kind else "w")
    units = units_of(path, kind.split()[0], 10)
    whole = [item for unit in units for item in read_records(unit, OPTIONS)]
    data = Path(path).read_bytes()
    status = os.stat(path)
    end = len(data.rstrip(b"\0"))
    for length in range(0, end - 10, end // 25):
        Path(path).write_bytes(data[:length] + b"\0" * (len(data) - length))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        items = [item for unit in units for item in read_records(unit, OPTIONS)]
        assert len(items) == COUNT
        assert len({item.key for item in items}) == COUNT
        assert {type(item) for item in items} <= {Record, Failure}
        good = [item for item in items if isinstance(item, Record)]
        assert len(good) < COUNT or good == whole, "only padding was lost"
        if kind.startswith("tfrecord"):  # Only its records have checksums.
            assert all(item in whole for item in good)


def test_planning_error_becomes_the_failure(tmp_path):
    (tmp_path / "x").write_bytes(b"no shard")
    (unit,) = all_of(ShardUnit, units_of(tmp_path / "x", "parquet"))
    assert unit.slices[0].unread is not None
    (item,) = all_of(Failure, read_records(unit, OPTIONS))
    assert (item.key, item.uri, item.stage) == (f"{tmp_path}/x#0", f"{tmp_path}/x", Stage.READ)
    assert item.error_type == "corrupt"
    assert f"{item.error_type}: {item.message}" == unit.slices[0].unread.reason
    assert item.unread == unit.slices[0].unread


def test_bad_rows_of_a_manifest_are_failures(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"1")
    (tmp_path / "m.csv").write_text("uri,label\n1.jpg,cat\n1.jpg\n,\n1.jpg,dog\n")
    items = [item for unit in units_of(tmp_path / "m.csv", "manifest") for item in read_records(unit, OPTIONS)]
    assert types_of(items) == [None, "corrupt", "bad_value", None]
    assert [item.key for item in items] == [f"{tmp_path}/m.csv#{index}" for index in range(4)]
    assert [item.label for item in items if isinstance(item, Record)] == ["cat", "dog"]


# Files.


def refs_unit(refs):
    return ListUnit(InputFormat.FILES, tuple(refs))


def test_files_and_failures_keep_their_order(tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg", "dog/5.jpg", "dog/6.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "cat" / "7.jpg").symlink_to("nowhere")
    (unit,) = all_of(ListUnit, plan([str(tmp_path)], None, 100))
    (tmp_path / "cat/2.jpg").unlink()
    (tmp_path / "dog/3.jpg").write_bytes(b"another")
    (tmp_path / "dog/5.jpg").unlink()
    (tmp_path / "dog/5.jpg").mkdir()
    items = list(read_records(unit, OPTIONS))
    assert [item.key for item in items] == [ref.uri for ref in unit.refs] == [item.uri for item in items]
    assert types_of(items) == [None, "missing", "missing", "replaced", None, "unreadable", None]
    assert [(item.data, item.label) for item in items if isinstance(item, Record)] == [
        (b"cat/1.jpg", "cat"),
        (b"dog/4.jpg", "dog"),
        (b"dog/6.jpg", "dog"),
    ]


def test_reading_files_overlaps_within_bounds(monkeypatch):
    """Latency is hidden, and yet no more files are in memory than promised, however slow the consumer is."""
    lock, now, most, started = threading.Lock(), 0, 0, 0

    def slow_read(uri, version):
        nonlocal now, most, started
        with lock:
            now, started = now + 1, started + 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return uri.encode()

    monkeypatch.setattr(storage, "read_bytes", slow_read)
    refs = [RecordRef(str(number), f"/x/{number}") for number in range(100)]
    records = read_records(refs_unit(refs), OPTIONS)
    assert next(records).key == "0"
    time.sleep(0.3)
    assert started <= FILES_AHEAD + 1
    begin = time.monotonic()
    assert [record.key for record in records] == [str(number) for number in range(1, 100)]
    assert time.monotonic() - begin < 100 * 0.02 / 4
    assert 4 <= most <= FILES_AHEAD


def test_a_reader_can_be_left_early(tmp_path, payloads):
    path = write_tfrecord(tmp_path / "x", payloads)
    refs = [RecordRef(str(number), path) for number in range(1000)]
    for unit in (*units_of(path, "tfrecord", 2048), refs_unit(refs)):
        records = read_records(unit, OPTIONS)
        assert isinstance(records, Generator)
        next(records)
        records.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_gs_inputs_read_as_local_ones_do(gcs, tmp_path, payloads):  # noqa: F811
    paths = {
        "tfrecord": write_tfrecord(tmp_path / "a.tfrecord.gz", payloads, "GZIP"),
        "webdataset": write_tar(tmp_path / "b.tar", samples(COUNT)),
        "parquet": write_parquet(tmp_path / "c.parquet", {"image": images(COUNT), "label": list(range(COUNT))}, 10),
    }
    for name in ("cat/1.jpg", "dog/2 #%.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "m.csv").write_text(f"uri,label\ncat/1.jpg,c\ngs://{gcs.bucket}/dog/2 #%.jpg,d\n")
    base = f"gs://{gcs.bucket}"
    for path in tmp_path.rglob("*.*"):
        storage.publish_file(f"{base}/{path.relative_to(tmp_path)}", path)
    found: dict[InputFormat, list[Record]] = collections.defaultdict(list)
    for item in plan([base, f"{base}/m.csv"], None, 8):
        for unit in units_in(cut_shard(item, 8, OPTIONS)):
            found[unit.format] += all_of(Record, read_records(unit, OPTIONS))
    for input_format, path in paths.items():
        mine = [(record.data, record.label) for record in read(path, input_format)]
        assert [(record.data, record.label) for record in found[InputFormat(input_format)]] == mine
    assert [
        (record.data, record.label) for record in itertools.chain(found[InputFormat.FILES], found[InputFormat.MANIFEST])
    ] == [
        (b"cat/1.jpg", "cat"),
        (b"dog/2 #%.jpg", "dog"),
        (b"cat/1.jpg", "c"),
        (b"dog/2 #%.jpg", "d"),
    ]


def test_a_gs_shard_replaced_while_it_is_read_fails_from_there_on(gcs, monkeypatch):  # noqa: F811
    from transforms.storage import gcs as gcs_store

    monkeypatch.setattr(gcs_store, "READ_CHUNK", 10_000)
    uri = f"gs://{gcs.bucket}/x.tfrecord"
    storage.publish(uri, b"".join(_tfrecord_of(images(COUNT))))
    (unit,) = units_of(uri, "tfrecord", 2048)
    records = read_records(unit, OPTIONS)
    items = [next(records) for _ in range(3)]
    storage.publish(uri, b"".join(_tfrecord_of(images(COUNT, seed=1))))
    items += records
    assert [item.data for item in items if isinstance(item, Record)] == images(COUNT)[: items.index(_first(items))]
    assert set(types_of(items)) == {None, "replaced"}
    assert len(items) == COUNT


def _first(items):
    return next(item for item in items if isinstance(item, Failure))


def _tfrecord_of(data):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield Path(write_tfrecord(Path(folder) / "x", [example(image=one) for one in data])).read_bytes()
