"""What folders' names tell: classes, Hive's columns, and which files are no data."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.support.planned import all_of, units_in
from tests.support.shard_files import example, write_tar, write_tfrecord
from transforms.core.errors import ImagebeamError
from transforms.core.formats import LabelFrom
from transforms.core.types import Record
from transforms.inputs.discover import LeftOutFiles, list_inputs
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard, plan
from transforms.readers.folders import class_folder, partitions
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import ListUnit, RecordRef, WorkUnit

PNG = b"\x89PNG\r\n\x1a\n"


def labels(pattern, **options):
    """Name of the record -> label."""
    read = ReadOptions(**options)
    units = [unit for item in plan([str(pattern)], None, 100, options=read) for unit in cut_shard(item, 100, read)]
    items = [item for unit in units if isinstance(unit, WorkUnit) for item in read_records(unit, read)]
    records = all_of(Record, items)
    return {record.key.rpartition("/")[2].rpartition("#")[2]: record.label for record in records}


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)


# Classes.


def test_first_of_nested_class_folders_is_the_label(tmp_path):
    put(tmp_path, "cat/1.png", "cat/black/2.png", "dog/a/b/3.png", "4.png")
    assert labels(tmp_path) == {"1.png": "cat", "2.png": "cat", "3.png": "dog", "4.png": None}
    last = {"1.png": "cat", "2.png": "black", "3.png": "b", "4.png": tmp_path.name}
    assert labels(tmp_path, label_from=LabelFrom.LAST_FOLDER) == last
    assert set(labels(tmp_path, label_from=LabelFrom.NONE).values()) == {None}
    assert set(labels(tmp_path, label_from=LabelFrom.COLUMN).values()) == {None}


@pytest.mark.parametrize("pattern", ["", "/", "/**", "/**/*.png", "/*/*/*.png"])
def test_label_does_not_depend_on_the_pattern(tmp_path, pattern):
    put(tmp_path, "cat/black/1.png", "dog/brown/2.png")
    assert labels(f"{tmp_path}{pattern}") == {"1.png": "cat", "2.png": "dog"}


def test_file_named_directly_has_the_label_of_its_folder(tmp_path):
    put(tmp_path, "cat/1.png")
    assert labels(tmp_path / "cat" / "1.png") == labels(tmp_path / "cat" / "*.png") == {"1.png": "cat"}


def test_a_tar_of_class_folders_has_the_labels_of_the_folder(tmp_path):
    put(tmp_path / "in", "cat/1.png", "cat/black/2.png", "dog/3.png")
    for prefix in (".", "./", ""):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in ("cat/1.png", "cat/black/2.png", "dog/3.png"):
                tar.add(tmp_path / "in" / name, f"{prefix.rstrip('/')}/{name}" if prefix else name)
        found = [label for _, label in sorted(labels(tmp_path / "x.tar").items())]
        assert found == ["cat", "cat", "dog"] == [label for _, label in sorted(labels(tmp_path / "in").items())]


def test_folder_whose_name_is_not_utf_8_has_one_label_in_every_format(tmp_path):
    folder = os.fsencode(tmp_path / "in") + b"/caf\xe9"
    os.makedirs(folder)
    Path(os.fsdecode(folder), "1.png").write_bytes(PNG)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(os.fsdecode(folder), "caf\udce9")
    assert [*labels(tmp_path / "x.tar").values()] == [*labels(tmp_path / "in").values()] == [r"caf\xe9"]


def test_times_in_gnu_headers_are_no_folder(tmp_path):
    """``tar --listed-incremental`` puts them where POSIX has the first part of a long name."""
    info = tarfile.TarInfo("cat/1.png")
    info.size = len(PNG)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[345:369] = b"15302326136\00015302326137\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    (tmp_path / "x.tar").write_bytes(header + PNG.ljust(512, b"\0") + bytes(1024))
    assert labels(tmp_path / "x.tar") == {"1": "cat"}


def test_a_member_outside_of_its_tar_has_no_label(tmp_path):
    write_tar(tmp_path / "x.tar", [("cat/1.png", PNG), ("../up/4.png", PNG), ("../5.png", PNG)])
    assert list(labels(tmp_path / "x.tar").values()) == ["cat", None, None]


def test_own_label_of_a_sample_wins_over_its_folder(tmp_path):
    write_tar(tmp_path / "x.tar", [("cat/1.png", PNG), ("cat/1.cls", b"7"), ("dog/2.png", PNG)])
    assert sorted(map(str, labels(tmp_path / "x.tar").values())) == ["7", "dog"]
    found = labels(tmp_path / "x.tar", label_from=LabelFrom.FIRST_FOLDER)
    assert sorted(map(str, found.values())) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("path", "root", "rule", "expected"),
    [
        ("/in/a/b/1.png", "/in", "auto", "a"),
        ("/in/split=train/a/1.png", "/in", "auto", "a"),
        ("/in/split=train/1.png", "/in", "auto", None),
        ("/in/1.png", "/in", "auto", None),
        ("/in/1.png", "/in", "last_folder", "in"),
        ("/in/1.png", None, "auto", "in"),
        ("/1.png", None, "auto", None),
        ("gs://bucket/1.png", None, "auto", None),
        ("gs://bucket/a/b/1.png", "gs://bucket", "auto", "a"),
        ("gs://bucket/1.png", "gs://bucket", "last_folder", None),
        ("1.png", "", "auto", None),
        ("./a/1.png", "", "auto", "a"),
        ("a//./b/1.png", "", "last_folder", "b"),
        ("../1.png", "", "auto", None),
        ("../1.png", "", "last_folder", None),
        ("../up/4.png", "", "auto", None),
        ("./a/../../up/4.png", "", "auto", None),
        ("a/../b/4.png", "", "auto", "b"),
        ("..a/4.png", "", "auto", "..a"),
    ],
)
def test_class_folder(path, root, rule, expected):
    assert class_folder(path, root, LabelFrom(rule)) == expected


# Hive's columns.


@pytest.mark.parametrize("value", ["cat", "a b", "ünï", "50%", "a/b", "x=y", None])
def test_hive_columns_equal_pyarrow(tmp_path, value):
    table = pa.table({"image": [PNG], "label": pa.array([value], pa.string()), "split": ["train"]})
    ds.write_dataset(table, tmp_path, format="parquet", partitioning=["split", "label"], partitioning_flavor="hive")
    (file,) = tmp_path.rglob("*.parquet")
    assert partitions(str(file)) == {"split": "train", "label": value}
    options = inspect_input([str(tmp_path)], None, ReadOptions(keep_columns=(("split", pa.null()),)))
    (item,) = plan([str(tmp_path)], None, 10, options=options)
    (unit,) = units_in(cut_shard(item, 10, options))
    (record,) = all_of(Record, read_records(unit, options))
    assert record.label == value
    assert dict(record.extras) == {"split": "train"}


def test_image_files_have_hive_columns_too(tmp_path):
    put(tmp_path, "split=train/label=cat/1.png", "split=test/dog/2.png")
    assert labels(tmp_path) == {"1.png": "cat", "2.png": "dog"}
    options = inspect_input([str(tmp_path)], None, ReadOptions(keep_columns=(("split", pa.null()),)))
    (unit,) = all_of(ListUnit, plan([str(tmp_path)], None, 10, options=options))
    assert [dict(ref.extras) for ref in all_of(RecordRef, unit.refs)] == [{"split": "test"}, {"split": "train"}]


# What is no data.


def test_hidden_names_are_skipped(tmp_path):
    set_aside = ("_temporary/0/x.parquet", "_delta_log/0.parquet", ".ipynb_checkpoints/a.png", "_x.tar", ".a.png")
    put(tmp_path, "a.png", "cat/_DSC0001.png", *set_aside)
    left_out = LeftOutFiles()
    found = [shard.file.uri for shard in list_inputs([str(tmp_path)], None, left_out)]
    assert found == [f"{tmp_path}/a.png", f"{tmp_path}/cat/_DSC0001.png"]
    named = {uri for uris in left_out.names.values() for uri in uris}
    assert {f"{tmp_path}/{name}" for name in set_aside if name.startswith("_")} <= named
    assert sum(left_out.values()) == len(named)


def test_pattern_can_name_hidden_files(tmp_path):
    put(tmp_path, "_raw/a.png", ".cache/b.png")
    for pattern in ("_raw", "_raw/*.png", "_raw/a.png", ".cache/*.png", "_*/*.png", "{_raw,.cache}/*.png"):
        assert list(list_inputs([f"{tmp_path}/{pattern}"], None)), pattern


# What a file is by its first bytes.


def test_files_of_other_types_are_refused_before_a_run(tmp_path):
    np.save(tmp_path / "array", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", np.zeros(3))
    (tmp_path / "book").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "packed").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    (tmp_path / "list.txt").write_text("katzen/süß.jpg\ndogs/2.jpg\n")
    for protocol in (2, 3, 4, 5):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps([b"a"], protocol))
    kinds = {"array.npy": "NumPy", "arrays.npz": "ZIP", "book": "HDF5", "packed": "7-Zip", "list.txt": "a text file"}
    for name, said in (kinds | {f"{protocol}.pkl": "pickle" for protocol in (2, 3, 4, 5)}).items():
        with pytest.raises(ImagebeamError, match=said):
            inspect_input([f"{tmp_path}/{name}"], None, ReadOptions())


def test_shards_under_other_names_are_refused_with_the_flag(tmp_path):
    write_tar(tmp_path / "t", [("1.png", PNG)])
    pq.write_table(pa.table({"image": [PNG]}), tmp_path / "p.snappy")
    # A length of 8 and its checksum, as TensorFlow writes them.
    (tmp_path / "r.data").write_bytes(bytes.fromhex("0800000000000000ff86240f") + b"payload.CRC ")
    for name, said in (("t", "webdataset"), ("p.snappy", "parquet"), ("r.data", "tfrecord")):
        with pytest.raises(ImagebeamError, match=f"--input_format {said}"):
            inspect_input([f"{tmp_path}/{name}"], None, ReadOptions())


def test_image_under_any_name_is_an_image(tmp_path):
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / kind, kind)
    (tmp_path / "plain").write_text("P3\n1 1\n255\n1 2 3\n")
    (tmp_path / "drawing").write_text('<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>\n')
    inspect_input([f"{tmp_path}/*"], None, ReadOptions())


@pytest.mark.parametrize("mode", ["", "gz", "bz2", "xz"])
def test_compressed_tars_are_read(tmp_path, mode):
    put(tmp_path, *(f"c/{number}.png" for number in range(20)))
    path = tmp_path / (f"x.tar.{mode}" if mode else "x.tar")
    with tarfile.open(path, f"w:{mode}") as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "c", "c")
    assert len(labels(path)) == 20
    assert path.stat().st_size


@pytest.mark.parametrize("name", ["x.tar", "x.tfrecord", "x.csv", "x.jsonl"])
def test_zstandard_is_read_in_every_format(tmp_path, name):
    put(tmp_path, *(f"cat/{number}.png" for number in range(20)))
    plain = tmp_path / name
    if name == "x.tar":
        with tarfile.open(plain, "w") as tar:
            tar.add(tmp_path / "cat", "cat")
    elif name == "x.tfrecord":
        write_tfrecord(plain, [example(image=b"1", label=b"cat")] * 20)
    elif name == "x.csv":
        plain.write_text("uri,label\n" + "".join(f"cat/{number}.png,cat\n" for number in range(20)))
    else:
        plain.write_text("".join(f'{{"uri": "cat/{number}.png", "label": "cat"}}\n' for number in range(20)))
    packed = tmp_path / f"{name}.zst"
    packed.write_bytes(pa.compress(plain.read_bytes(), codec="zstd", asbytes=True))
    assert [*labels(packed).values()] == [*labels(plain).values()] == ["cat"] * 20


# Manifests of other programs.

DIALECTS = {
    "semicolons": ("m.csv", "\ufeffuri;label;x\r\na.png;cat;1\r\n", "utf-8"),
    "tabs": ("m.tsv", "uri\tlabel\na.png\tcat\n", "utf-8"),
    "tabs in csv": ("m.csv", "label\turi\ncat\ta.png\n", "utf-8"),
    "bars": ("m.csv", "uri|label\na.png|cat\n", "utf-8"),
    "sep": ("m.csv", "sep=;\r\nuri;label\r\na.png;cat\r\n", "utf-8"),
    "sep comma": ("m.csv", "SEP=,\nuri,label\na.png,cat\n", "utf-8"),
    "utf-16": ("m.csv", "uri,label\na.png,cat\n", "utf-16"),
    "utf-16 big-endian": ("m.tsv", "\ufeffuri\tlabel\na.png\tcat\n", "utf-16-be"),
    "utf-16 lines": ("m.jsonl", '{"uri": "a.png", "label": "cat"}\n', "utf-16"),
    "quotes": ("m.csv", '"uri";"label"\n"a.png";"cat"\n', "utf-8"),
    "commas in semicolons": ("m.csv", 'uri;label;"a,b"\na.png;cat;"1,5"\n', "utf-8"),
    "semicolon in commas": ("m.csv", 'uri,label,"a;b"\na.png,cat,1;5\n', "utf-8"),
    "blanks": ("m.csv", "uri, label\na.png, cat\n", "utf-8"),
    "blank before": ("m.csv", " uri , label\na.png,cat\n", "utf-8"),
    "quotes behind blanks": ("m.csv", '"label", "uri", "x"\n"cat", "a.png", "a ""b"""\n', "utf-8"),
    "quotes behind blanks and semicolons": ("m.csv", '"label"; "uri"\n"cat"; "a.png"\n', "utf-8"),
    "quotes behind the last blank": ("m.csv", 'uri, label\na.png, "cat" \n', "utf-8"),
    "blanks about uris": ("m.csv", "label, uri\ncat, a.png \n", "utf-8"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_csv_dialects(tmp_path, name):
    file, text, encoding = DIALECTS[name]
    put(tmp_path, "a.png")
    (tmp_path / file).write_bytes(text.encode(encoding))
    assert list(labels(tmp_path / file).values()) == ["cat"]


def test_uri_column_can_be_named(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name;label\na.png;cat\n")
    with pytest.raises(ImagebeamError, match="--uri_column"):
        inspect_input([f"{tmp_path}/metadata.csv"], None, ReadOptions())
    options = inspect_input([f"{tmp_path}/metadata.csv"], None, ReadOptions(uri_column="file_name"))
    assert list(labels(tmp_path / "metadata.csv", uri_column=options.uri_column).values()) == ["cat"]
