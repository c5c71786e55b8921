import dataclasses
import gzip
import itertools
import json
import os
import statistics
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.gcs_server import gcs  # noqa: F401
from tests.support.planned import all_of, file_at, shard_at, units_in
from tests.support.shard_files import (
    example,
    images,
    samples,
    tfrecord_offsets,
    write_parquet,
    write_tar,
    write_tfrecord,
)
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard, plan, plan_in_parts
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import ListingPart, ListUnit, Note, RecordRef, Shard, ShardUnit, WorkUnit
from transforms.storage.files import FileInfo

OPTIONS = ReadOptions()


def cut(path, input_format, rows_per_unit=5, options=OPTIONS):
    """A shard's slices, one of each unit; a manifest's units."""
    return pieces(cut_shard(shard_at(path, input_format), rows_per_unit, options))


def pieces(found):
    """The slices of shards, and the units of lists."""
    units = [item for item in found if isinstance(item, WorkUnit)]
    return [piece for unit in units for piece in (unit.slices if isinstance(unit, ShardUnit) else [unit])]


def notes(path, input_format, options=OPTIONS):
    """What was passed over: kind -> how many."""
    found = cut_shard(shard_at(path, input_format), 5, options)
    return {item.kind: item.count for item in found if isinstance(item, Note)}


def ranges(units):
    return [(unit.start, unit.count) for unit in units]


def failed(unit):
    """What is known to be wrong with a unit of a list: {index: error type}."""
    failures = ((unit.start + at, ref) for at, ref in enumerate(unit.refs))
    return {index: ref.error_type for index, ref in failures if isinstance(ref, Failure)}


def kept(*columns):
    return ReadOptions(keep_columns=tuple((name, pa.type_for_alias(kind)) for name, kind in columns))


# Planning.


def test_non_unicode_name_is_an_ordinary_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    (unit,) = units_in(plan([str(tmp_path)], None, 10))
    assert unit.id
    assert unit.version
    records = all_of(Record, read_records(unit, OPTIONS))
    assert [record.data for record in records] == [b"a", b"x"]
    assert [record.key for record in records] == [f"{tmp_path}/a.jpg", f"{tmp_path}/\\xff.jpg"]
    assert records[1].uri.encode()


def test_links_that_leave_a_folder_are_counted_and_followed_when_asked(tmp_path):
    for name in ("in/a.jpg", "in/sub/b.jpg", "out/c.jpg", "out/deep/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "inside.jpg").symlink_to("sub/b.jpg")
    (tmp_path / "in" / "c.jpg").symlink_to("../out/c.jpg")
    (tmp_path / "in" / "deep").symlink_to("../out/deep")
    (tmp_path / "in" / "gone.jpg").symlink_to("../away/x.jpg")
    (tmp_path / "folder").symlink_to("in")
    for folder in ("in", "folder"):
        left_out: Counter[str] = Counter()
        (unit,) = all_of(ListUnit, plan([str(tmp_path / folder)], None, 10, left_out))
        names = [ref.uri.removeprefix(f"{tmp_path}/{folder}/") for ref in unit.refs]
        assert names == ["a.jpg", "gone.jpg", "inside.jpg", "sub/b.jpg"]
        assert list(left_out.values()) == [2]
        assert "--follow_links" in str(left_out)
    (unit,) = all_of(ListUnit, plan([str(tmp_path / "in")], None, 10, options=ReadOptions(follow_links=True)))
    assert unit.count == 6
    (unit,) = all_of(ListUnit, plan([str(tmp_path / "in" / "*.jpg")], None, 10))
    assert unit.count == 4


def test_a_key_that_two_manifests_share_is_a_failure_the_second_time(tmp_path):
    (tmp_path / "a.csv").write_text("uri,key\n1.jpg,one\n2.jpg,two\n")
    (tmp_path / "b.csv").write_text("uri,key\n3.jpg,two\n4.jpg,three\n")
    (tmp_path / "c.csv").write_text("uri\n1.jpg\n")
    items = plan([f"{tmp_path}/*.csv"], None, 10)
    found = all_of(ListUnit, (unit for item in items for unit in cut_shard(item, 10, OPTIONS)))
    keys = [ref.key for unit in found for ref in unit.refs]
    assert sorted(keys) == sorted(["one", "two", f"{tmp_path}/b.csv#0", "three", f"{tmp_path}/c.csv#0"])
    assert [error for unit in found for error in failed(unit).values()] == ["repeated_key"]


def test_a_label_of_a_megabyte_is_a_failure(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps({"uri": "1.jpg", "label": "x" * n}) + "\n" for n in (5, 1 << 20))
    )
    (unit,) = cut(tmp_path / "m.jsonl", "manifest")
    assert failed(unit) == {1: "bad_value"}
    assert len(unit.refs[1].message) < 200


def test_small_shards_share_units_that_stay_the_same(tmp_path):
    for number in range(300):
        write_tar(tmp_path / f"{number:03}.tar", [(f"{number}.jpg", b"x")])

    def units():
        return [unit for item in plan([str(tmp_path)], None, 100) for unit in cut_shard(item, 100, OPTIONS)]

    first = units()
    assert sum(unit.count for unit in first) == 300
    assert len(first) <= 6
    assert [unit.id for unit in units()] == [unit.id for unit in first]
    records = [record for unit in first for record in read_records(unit, OPTIONS)]
    assert len({record.key for record in records}) == 300
    write_tar(tmp_path / "1000.tar", [("new.jpg", b"x")])
    changed = {unit.id for unit in units()} - {unit.id for unit in first}
    assert len(changed) <= 3


def test_images_become_units_of_consecutive_files(tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/x y.jpg", "emu/1.jpg", "x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    items = list(plan([str(tmp_path)], None, 2))
    units = [item for item in items if isinstance(item, ListUnit)]
    assert all(1 <= unit.count <= 2 for unit in units)
    assert [unit.start for unit in units] == [0, *itertools.accumulate(unit.count for unit in units)][:-1]
    refs = all_of(RecordRef, (ref for unit in units for ref in unit.refs))
    assert [(ref.key, ref.label) for ref in refs] == [
        (f"{tmp_path}/{name}", name.split("/")[0])
        for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/x y.jpg", "emu/1.jpg")
    ]
    assert all(ref.version == file_at(ref.uri).version for ref in refs)
    assert [item.file.uri for item in items if isinstance(item, Shard)] == [f"{tmp_path}/x.tar"]
    assert list(itertools.chain(*(cut_shard(unit, 2, OPTIONS) for unit in units))) == units


def test_image_at_the_top_of_a_bucket_has_no_label(gcs):  # noqa: F811
    for name in ("1.jpg", "cat/2.jpg"):
        storage.publish(f"gs://{gcs.bucket}/{name}", b"x")
    (unit,) = all_of(ListUnit, plan([f"gs://{gcs.bucket}"], None, 10))
    refs = all_of(RecordRef, unit.refs)
    assert [(ref.key, ref.label) for ref in refs] == [
        (f"gs://{gcs.bucket}/1.jpg", None),
        (f"gs://{gcs.bucket}/cat/2.jpg", "cat"),
    ]
    assert all(ref.version and ref.version.isdigit() for ref in refs)


def test_planning_streams(monkeypatch):
    """The first item is there long before the listing is over, whatever the input is made of."""
    for extension in ("jpg", "tar"):
        endless = (FileInfo(f"/x/{number:09}.{extension}", 1, "1") for number in itertools.count())
        monkeypatch.setattr(storage, "matches", lambda pattern, within, hidden, files=endless: iter([(False, files)]))
        items = plan(["/x/*"], None, 100)
        assert len(list(itertools.islice(items, 3))) == 3
        assert next(endless).uri < "/x/000001000"


@pytest.mark.parametrize("alone", [1, 7, 40, 41])
def test_a_long_listing_planned_in_parts_covers_every_file_once(tmp_path, monkeypatch, alone):
    for number in range(40):
        storage.publish(str(tmp_path / f"class{number % 7}" / f"{number}.jpg"), b"x")
    storage.publish(str(tmp_path / "class3" / "x.tar"), b"")
    monkeypatch.setattr("transforms.inputs.plan.LISTED_ALONE", alone)
    items = list(plan_in_parts([str(tmp_path)], None, 4))
    assert (alone < 40) == any(isinstance(item, ListingPart) for item in items)
    found = [unit for item in items for unit in cut_shard(item, 4, OPTIONS)]
    units = [unit for unit in found if isinstance(unit, WorkUnit)]
    listed = [ref.uri for unit in units if isinstance(unit, ListUnit) for ref in unit.refs]
    assert sorted(listed) == sorted(map(str, tmp_path.glob("*/*.jpg")))
    (cut,) = [unit for unit in units if isinstance(unit, ShardUnit)]
    assert [one.shard.file.uri for one in cut.slices] == [str(tmp_path / "class3" / "x.tar")]
    assert len({unit.id for unit in units}) == len(units)


def plan_names(monkeypatch, names, rows_per_unit):
    files = [FileInfo(name, 1, "1") for name in sorted(names)]
    monkeypatch.setattr(storage, "matches", lambda pattern, within, hidden: iter([(False, iter(files))]))
    return list(plan(["/x/*"], None, rows_per_unit))


@pytest.mark.parametrize("name", ["/x/IMG_{:06}.jpg", "/x/{:03x}/photo.jpg", "/x/{:064b}.jpg"])
def test_units_of_files_are_at_least_half_full_and_never_over(monkeypatch, name):
    units = plan_names(monkeypatch, map(name.format, range(4_000)), 50)
    counts = [unit.count for unit in units]
    assert sum(counts) == 4_000
    assert all(25 <= count <= 50 for count in counts[:-1])
    assert counts[-1] <= 50
    assert 34 <= sum(counts[:-1]) / len(counts[:-1]) <= 41  # 37.5, were the place of the lowest digest random


def test_changed_file_list_changes_only_nearby_units(monkeypatch):
    random = Random(7)
    names = {f"/x/{random.getrandbits(64):016x}.jpg" for _ in range(3_000)}
    before = {unit.id for unit in plan_names(monkeypatch, names, 20)}
    assert len(before) >= 150
    changed = []
    for step, name in enumerate(random.sample(sorted(names), 30)):
        now = names ^ {name if step % 2 else f"/x/{random.getrandbits(64):016x}.jpg"}
        after = {unit.id for unit in plan_names(monkeypatch, now, 20)}
        changed.append(len(after - before))
    assert min(changed) >= 1
    assert statistics.mean(changed) < 4
    assert max(changed) < 20


def test_the_same_files_make_the_same_units_in_every_process(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.jpg").touch()
    here = [unit.id for unit in units_in(plan([str(tmp_path)], None, 3))]
    code = (
        "import sys\nfrom transforms.inputs.plan import plan\nprint(*[unit.id for unit in plan(sys.argv[1:], None, 3)])"
    )
    there = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert there.stdout.split() == here


# Cutting.

COUNT = 23


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Every format and compression, `COUNT` records each."""
    base = tmp_path_factory.mktemp("shards")
    payloads = [example(image=data, label=number) for number, data in enumerate(images(COUNT))]
    columns = {"image": images(COUNT), "label": list(range(COUNT))}
    return {
        "tfrecord": write_tfrecord(base / "plain", payloads),
        "tfrecord gzip": write_tfrecord(base / "gzip", payloads, "GZIP"),
        "tfrecord zlib": write_tfrecord(base / "zlib", payloads, "ZLIB"),
        "webdataset": write_tar(base / "a", samples(COUNT)),
        "webdataset gzip": write_tar(base / "b", samples(COUNT), "w:gz"),
        "webdataset pax": write_tar(
            base / "c", samples(COUNT), format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
        ),
        "parquet": write_parquet(base / "d", columns, 10),
    }


FORMATS = (
    *("tfrecord", "tfrecord gzip", "tfrecord zlib"),
    *("webdataset", "webdataset gzip", "webdataset pax", "parquet"),
)


@pytest.mark.parametrize("rows_per_unit", [1, 5, COUNT, 2048])
@pytest.mark.parametrize("kind", FORMATS)
def test_units_cover_a_shard_without_gap_or_overlap(shards, kind, rows_per_unit):
    units = cut(shards[kind], kind.split()[0], rows_per_unit)
    assert sum(unit.count for unit in units) == COUNT
    assert [unit.start for unit in units] == [0, *itertools.accumulate(unit.count for unit in units)][:-1]
    assert all(1 <= unit.count <= rows_per_unit for unit in units)
    assert not any(unit.errors or unit.unread for unit in units)


def test_offsets_are_where_the_records_start(shards):
    data = Path(shards["tfrecord"]).read_bytes()
    assert [unit.offset for unit in cut(shards["tfrecord"], "tfrecord", 1)] == tfrecord_offsets(data)[:-1]
    for kind in ("gzip", "zlib"):
        units = cut(shards[f"tfrecord {kind}"], "tfrecord", 1)
        assert [unit.offset for unit in units] == tfrecord_offsets(data)[:-1]
    with tarfile.open(shards["webdataset"]) as tar:
        expected = [member.offset for member in tar.getmembers()][::3]
    for kind in ("webdataset", "webdataset gzip"):
        assert [unit.offset for unit in cut(shards[kind], "webdataset", 1)] == expected


def test_row_groups_are_never_crossed(shards):
    assert ranges(cut(shards["parquet"], "parquet", 8)) == [(0, 8), (8, 2), (10, 8), (18, 2), (20, 3)]


def test_an_empty_shard_has_no_units(tmp_path):
    assert cut(write_tfrecord(tmp_path / "gz", [], "GZIP"), "tfrecord") == []
    assert cut(write_tar(tmp_path / "tar", []), "webdataset") == []
    assert cut(write_tar(tmp_path / "tgz", [], "w:gz"), "webdataset") == []
    assert cut(write_parquet(tmp_path / "parquet", {"image": pa.array([], pa.binary())}, 10), "parquet") == []


@pytest.mark.parametrize("input_format", ["tfrecord", "webdataset", "parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"no shard at all" * 100, b"\x1f\x8b\x08broken gzip", b"\x78\x9cbroken zlib"]
)
def test_non_shard_is_one_failure(tmp_path, input_format, content):
    (tmp_path / "x").write_bytes(content)
    if (input_format, content) == ("tfrecord", b""):  # A TFRecord of no records.
        assert cut(tmp_path / "x", input_format) == []
        assert notes(tmp_path / "x", input_format) == {"shards without records": 1}
        return
    (unit,) = cut(tmp_path / "x", input_format)
    assert (unit.start, unit.count, unit.shard.file.uri) == (0, 1, str(tmp_path / "x"))
    assert unit.unread.reason.partition(": ")[0] in ("truncated", "corrupt")
    assert (unit.unread.uri, unit.unread.bytes) == (str(tmp_path / "x"), len(content))
    assert not unit.retryable


def test_missing_shard_is_one_failure(tmp_path):
    (tmp_path / "x.tar").touch()
    gone = shard_at(tmp_path / "x.tar", "webdataset")
    os.remove(tmp_path / "x.tar")
    (unit,) = pieces(cut_shard(gone, 5, OPTIONS))
    assert (unit.count, unit.unread.reason.partition(": ")[0]) == (1, "missing")


@pytest.mark.parametrize("kind", ["tfrecord", "tfrecord gzip", "webdataset", "webdataset gzip"])
def test_truncated_shard_gives_its_whole_records_and_one_failure(shards, tmp_path, kind):
    """At every kind of place: inside headers, contents and padding, and right between two records."""
    data = Path(shards[kind]).read_bytes()
    whole = cut(shards[kind], kind.split()[0], 1)
    if kind == "tfrecord":
        starts = [unit.offset for unit in whole]
        lengths = sorted({place + step for place in starts for step in (-1, 0, 1, 8, 11, 12, 13)} - {-1, 0})
    else:
        lengths = list(range(200, len(data) - 1, len(data) // 50))
    for length in lengths:
        (tmp_path / "x").write_bytes(data[:length])
        units = cut(tmp_path / "x", kind.split()[0], 4)
        good, bad = [unit for unit in units if not unit.unread], [unit for unit in units if unit.unread]
        assert units == good + bad
        covered = sum(unit.count for unit in good)
        if kind == "tfrecord":
            assert covered == sum(end <= length for end in [*starts[1:], len(data)])
            assert bool(bad) == (length not in starts)
        else:
            assert covered <= COUNT
        for unit in bad:
            assert (unit.start, unit.count) == (covered, 1)
            assert unit.unread.reason.startswith(("truncated: ", "corrupt: "))
            assert 0 <= unit.unread.bytes <= length
        if "gzip" in kind:
            assert bad, "a cut gzip stream always shows"


def test_a_damaged_length_ends_a_tfrecord_there(shards, tmp_path):
    data = bytearray(Path(shards["tfrecord"]).read_bytes())
    data[tfrecord_offsets(data)[7] + 2] ^= 1
    (tmp_path / "x").write_bytes(data)
    units = cut(tmp_path / "x", "tfrecord", 5)
    assert ranges(units) == [(0, 5), (5, 2), (7, 1)]
    assert [bool(unit.unread) for unit in units] == [False, False, True]
    assert units[-1].unread.reason.startswith("corrupt: the CRC of a record's length does not match")


def test_a_length_that_looks_like_a_signature_is_a_length(tmp_path):
    for signature in (b"\x1f\x8b", b"\x78\x9c", b"\x78\x01"):
        (length,) = struct.unpack("<H", signature)
        path = write_tfrecord(tmp_path / "x", [bytes(length), b"2"])
        assert Path(path).read_bytes()[:2] == signature
        assert ranges(cut(path, "tfrecord", 5)) == [(0, 2)]


def test_concatenated_gzip_members_are_one_shard(shards, tmp_path):
    data = Path(shards["tfrecord"]).read_bytes()
    middle = len(data) // 2
    (tmp_path / "x").write_bytes(gzip.compress(data[:middle]) + gzip.compress(data[middle:]) + b"\0" * 10)
    assert sum(unit.count for unit in cut(tmp_path / "x", "tfrecord")) == COUNT
    (tmp_path / "x").write_bytes(gzip.compress(data) + b"something else")
    units = cut(tmp_path / "x", "tfrecord", 2048)
    assert ranges(units) == [(0, COUNT), (COUNT, 1)]
    assert "something else follows" in units[-1].unread.reason


def test_a_damaged_tar_header_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "x", [(f"{number:03}.jpg", b"x" * 100) for number in range(10)])
    data = bytearray(Path(path).read_bytes())
    data[6 * 1024 + 5] ^= 1
    (tmp_path / "x").write_bytes(data)
    units = cut(path, "webdataset", 4)
    assert ranges(units) == [(0, 4), (4, 1), (5, 1)], "the damaged member may have been a part of 005"
    assert units[-1].unread.reason.startswith("corrupt: the header of a member is damaged")


def test_adjacent_members_of_one_stem_are_a_sample(tmp_path):
    long = "d" * 120 + "/" + "e" * 150
    path = write_tar(
        tmp_path / "x",
        [
            ("a.jpg", b"1"),
            ("a.cls", b"1"),
            ("a/b.jpg", b"2"),
            ("a/b.left.png", b"2"),
            ("./._b.jpg", b"AppleDouble"),
            ("README", b"no dot"),
            (f"{long}.jpg", b"3"),
            (f"{long}.json", b"{}"),
            ("ü.写.jpg", b"4"),
        ],
    )
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("empty.jpg"))
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert ranges(cut(path, "webdataset", 2)) == [(0, 2), (2, 2), (4, 1)]


def test_repeated_sample_is_the_only_failure(tmp_path):
    names = ["a.jpg", "b.jpg", "c.jpg", "a.cls", "b.cls", "d.jpg", "e.jpg", "a.txt"]
    path = write_tar(tmp_path / "x", [(name, b"1") for name in names])
    units = cut(path, "webdataset", 2)
    assert ranges(units) == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert [index for unit in units for index, _ in unit.errors] == [3, 4, 7]
    assert all(error.startswith("repeated_key: ") for unit in units for _, error in unit.errors)


def test_gs_shards_are_cut_as_local_ones_are(gcs, shards):  # noqa: F811
    for kind, path in shards.items():
        uri = f"gs://{gcs.bucket}/{kind}"
        storage.publish_file(uri, path)
        mine = [(unit.start, unit.count, unit.offset) for unit in cut(path, kind.split()[0])]
        assert [(unit.start, unit.count, unit.offset) for unit in cut(uri, kind.split()[0])] == mine


# Manifests.

ROWS: list[dict[str, str | int | None]] = [
    {"uri": "x/1.jpg", "label": "cat", "key": "one", "year": 2001},
    {"uri": "/abs/2 #.jpg", "label": "dog", "key": "two", "year": 2002},
    {"uri": "gs://b/3.jpg", "label": None, "key": None, "year": None},
    {"uri": "../4.jpg", "label": "écureuil", "key": "four", "year": 2004},
]


def write_manifest(path):
    if path.name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
        return path
    if "csv" in path.name:
        text = "\ufeffuri, label,key,year\n" + "".join(
            ",".join(str(value if value is not None else "") for value in row.values()) + "\n" for row in ROWS
        )
    else:
        text = "\n\n".join(json.dumps(row) for row in ROWS)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith("gz") else data)
    return path


@pytest.mark.parametrize("rows_per_unit", [1, 2, 2048])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_a_key_that_a_manifest_gives_twice_is_a_failure_the_second_time(tmp_path, name, rows_per_unit):
    keys = ["a", "b", "a", None, None, "c", "b"]
    path = tmp_path / name
    rows = [{"uri": f"{index}.jpg", "key": key} for index, key in enumerate(keys)]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("uri,key\n" + "".join(f"{row['uri']},{row['key'] or ''}\n" for row in rows))
    units = cut(path, "manifest", rows_per_unit)
    keys = [ref.key for unit in units for ref in unit.refs]
    assert keys == ["a", "b", f"{path}#2", f"{path}#3", f"{path}#4", "c", f"{path}#6"]
    assert {index: error for unit in units for index, error in failed(unit).items()} == {
        2: "repeated_key",
        6: "repeated_key",
    }


def test_paths_of_windows_in_a_manifest_are_failures_with_the_remedy(tmp_path):
    (tmp_path / "odd\\name.jpg").write_bytes(b"1")  # A name that Linux allows.
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps({"uri": uri}) + "\n" for uri in ("photos\\1.jpg", "odd\\name.jpg"))
    )
    (unit,) = cut(tmp_path / "m.jsonl", "manifest", 50)
    failure, ref = unit.refs
    assert (failure.error_type, failure.message) == (
        "missing",
        "there is no photos\\1.jpg; if the list is from Windows, write / for each \\",
    )
    assert isinstance(ref, RecordRef)


@pytest.mark.parametrize(
    ("listed", "there", "shown"),
    [
        ("my%20photo.jpg", "my photo.jpg", "'my photo.jpg' is there;"),
        ("a b.jpg", "a%20b.jpg", "'a%20b.jpg' is there;"),
        ("0001", "0001.JPG", "'0001.JPG' is there;"),
        ("1.JPG", "1.jpg", "'1.jpg' is there;"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg", "is there, whose accents are other characters"),
        ("my%20cats/1.jpg", "my cats/1.jpg", "'../my cats/1.jpg' is there;"),
    ],
)
def test_a_row_whose_file_is_there_under_another_name_says_which(tmp_path, listed, there, shown):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(b"1")
    (tmp_path / "m.csv").write_text(f"uri\n{listed}\n")
    (unit,) = cut(tmp_path / "m.csv", "manifest")
    assert unit.refs[0].error_type == "missing"
    assert shown in unit.refs[0].message
    (tmp_path / listed).parent.mkdir(exist_ok=True)
    (tmp_path / listed).write_bytes(b"1")  # What is there under its own name is what is meant.
    (unit,) = cut(tmp_path / "m.csv", "manifest")
    assert unit.refs[0].uri == str(tmp_path / listed)


def test_a_row_tells_nothing_of_files_that_it_may_not_name(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"1")
    (tmp_path / "lists" / "m.csv").write_text("uri\n%2e%2e/secret.jpg\n")
    (unit,) = cut(tmp_path / "lists" / "m.csv", "manifest")
    assert isinstance(unit.refs[0], RecordRef)  # A missing file, like any other.


def test_a_row_that_names_a_folder_says_so(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "m.csv").write_text("uri\ncats\n")
    (unit,) = cut(tmp_path / "m.csv", "manifest")
    assert (unit.refs[0].error_type, unit.refs[0].message) == ("bad_value", "cats is a folder; list the files in it")


def test_a_csv_manifest_may_have_delimiters_at_the_ends_of_its_lines(tmp_path):
    (tmp_path / "m.csv").write_text("uri,label\na.jpg,cat,\nb.jpg,dog,, \nc.jpg,cow,x\n")
    (unit,) = cut(tmp_path / "m.csv", "manifest")
    assert [ref.label for ref in unit.refs[:2]] == ["cat", "dog"]
    assert "row names need a name" in unit.refs[2].message


def test_quotes_behind_backslashes_in_csv_are_read_as_spark_writes_them(tmp_path):
    lines = [
        r'a.jpg,"a \"big\" cat, yes"',
        r'b.jpg,"\"q\" C:\dir \\ x \\\""',
        r'c.jpg,"C:\dir"',  # Sound CSV, which stays what it is.
        'd.jpg,"open',
        r'e.jpg,"\""',
        'f.jpg,"say ""b"""',
    ]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *lines, ""]))
    found = [ref for unit in cut(tmp_path / "m.csv", "manifest", 50) for ref in unit.refs]
    labels = [getattr(ref, "label", None) for ref in found]
    assert labels == ['a "big" cat, yes', '"q" C:\\dir \\ x \\"', "C:\\dir", None, '"', 'say "b"']
    assert found[3].error_type == "corrupt"


def test_a_name_of_a_manifest_that_is_no_text_is_a_failure(tmp_path):
    lines = [{"uri": ["a.jpg"]}, {"uri": {"path": "a.jpg"}}, {"uri": True}, {"uri": 7}, {"uri": "b.jpg", "key": ["k"]}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {"uri": [["a.jpg"], ["b.jpg"]], "label": [1, 2]}
    pq.write_table(pa.table(rows), tmp_path / "m.parquet")
    (unit,) = cut(tmp_path / "m.jsonl", "manifest", 50)
    assert failed(unit) == dict.fromkeys((0, 1, 2, 4), "bad_value")
    assert unit.refs[0].message == "uri holds ['a.jpg'], which is no text"
    (unit,) = cut(tmp_path / "m.parquet", "manifest", 50)
    assert failed(unit) == dict.fromkeys((0, 1), "bad_value")


def test_a_name_that_is_not_utf_8_says_how_to_save_the_file(tmp_path):
    (tmp_path / "m.csv").write_bytes("uri\n\u00e9.jpg\n".encode("cp1252"))
    (unit,) = cut(tmp_path / "m.csv", "manifest", 50)
    (failure,) = unit.refs
    assert failure.error_type == "bad_value"
    assert "save the file as UTF-8" in failure.message


def test_a_parquet_manifest_may_hold_bytes(tmp_path):
    """Hive and others write text without saying that it is."""
    rows = {
        "uri": [b"a.jpg", "\u00e9.jpg".encode(), b"\xe9.jpg"],
        "key": [b"one", None, b"three"],
        "label": [b"cat"] * 3,
    }
    pq.write_table(pa.table(rows), tmp_path / "m.parquet")
    (unit,) = cut(tmp_path / "m.parquet", "manifest", 50)
    assert [(ref.key, ref.uri, ref.label) for ref in unit.refs if isinstance(ref, RecordRef)] == [
        ("one", f"{tmp_path}/a.jpg", "cat"),
        (f"{tmp_path}/m.parquet#1", f"{tmp_path}/\u00e9.jpg", "cat"),
    ]
    assert failed(unit) == {2: "bad_value"}


def test_a_parquet_manifest_is_held_to_its_checksums(tmp_path):
    path = tmp_path / "m.parquet"
    columns = pa.table({"uri": ["a.jpg"], "label": ["cat"]})
    pq.write_table(
        columns, path, write_page_checksum=True, write_statistics=False, compression="none", use_dictionary=False
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\3\0\0\0cat", b"\3\0\0\0rat"))
    (unit,) = cut(path, "manifest", 50)
    assert failed(unit) == {0: "corrupt"}


def test_a_column_that_a_parquet_manifest_has_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a.jpg"]), pa.array(["b.jpg"])], names=["uri", "uri"])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ImagebeamError, match="2 columns are called 'uri'"):
        inspect_input([f"{tmp_path}/m.parquet"], InputFormat.MANIFEST, OPTIONS)


def test_rows_that_repeat_a_manifest_are_few_units(tmp_path):
    path = tmp_path / "m.csv"
    rows = "".join(f"{number}.jpg,{number}\n" for number in range(100))
    path.write_text("uri,key\n" + rows + rows)
    assert ranges(cut(path, "manifest", 50)) == [(0, 50), (50, 50), (100, 50), (150, 50)]


def test_key_may_not_equal_a_default_key(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"uri": "x.jpg", "key": key}) + "\n" for key in (None, f"{path}#0", None)))
    (unit,) = cut(path, "manifest", 50)
    assert [ref.key for ref in unit.refs] == [f"{path}#0", f"{path}#1", f"{path}#2"]
    assert failed(unit) == {1: "repeated_key"}


def test_lone_surrogate_in_a_kept_column_is_escaped(tmp_path):
    texts = ["x \ud83d", "fine"]
    members = [
        member
        for n, text in enumerate(texts)
        for member in ((f"{n}.png", b"x"), (f"{n}.json", json.dumps({"caption": text, "n": n, "l": [text]}).encode()))
    ]
    path = write_tar(tmp_path / "x.tar", members)
    options = inspect_input([path], None, kept(("caption", "null"), ("n", "null"), ("l", "null")))
    assert [str(kind) for _, kind in options.keep_columns] == ["string", "int64", "list<item: string>"]
    (unit,) = units_in(cut_shard(shard_at(path, "webdataset"), 5, options))
    records = all_of(Record, read_records(unit, options))
    assert [record.extras for record in records] == [
        {"caption": "x \\ud83d", "n": 0, "l": ["x \\ud83d"]},
        {"caption": "fine", "n": 1, "l": ["fine"]},
    ]
    for wrong in (ReadOptions("nosuch"), ReadOptions(label_column="nosuch")):
        with pytest.raises(ImagebeamError, match="nosuch"):
            inspect_input([path], None, wrong)


@pytest.mark.parametrize("column", ["key", "uri", "label"])
def test_lone_surrogate_in_a_name_is_one_failure(tmp_path, column):
    path = tmp_path / "m.jsonl"
    rows = [{"uri": f"{number}.jpg", "kept": "x"} for number in range(3)]
    rows[1][column] = "\ud83d"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (unit,) = cut(path, "manifest", 50, kept(("kept", "string")))
    assert failed(unit) == {1: "bad_value"}
    assert unit.count == 3
    assert unit.id
    assert unit.version


@pytest.mark.parametrize("rows_per_unit", [1, 3, 2048])
@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz", "m.jsonl", "m.ndjson", "m.jsonl.gz", "m.parquet"])
def test_manifest_rows_are_cut_into_units(tmp_path, name, rows_per_unit):
    path = write_manifest(tmp_path / name)
    options = dataclasses.replace(kept(("year", "int64")), allow_uri_prefix=("/abs/", "gs://b/", f"{tmp_path.parent}/"))
    units = cut(path, "manifest", rows_per_unit, options)
    assert all(unit.count == len(unit.refs) <= rows_per_unit for unit in units)
    assert [unit.start for unit in units] == list(range(0, 4, rows_per_unit))
    refs = [ref for unit in units for ref in unit.refs]
    assert [ref.uri for ref in refs] == [
        f"{tmp_path}/x/1.jpg",
        "/abs/2 #.jpg",
        "gs://b/3.jpg",
        f"{tmp_path.parent}/4.jpg",
    ]
    assert [ref.key for ref in refs] == ["one", "two", f"{path}#2", "four"]
    assert [ref.label for ref in refs] == ["cat", "dog", None, "écureuil"]
    assert [ref.extras for ref in refs] == [(("year", row["year"]),) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "m.csv",
            "uri,label\n1.jpg,a\n\n2.jpg\n3.jpg,b\n4.jpg,c,d\n,e\n",
            [None, "has 1 field, the first line 2 fields", None, "has 3", "no uri"],
        ),
        ("m.csv", 'uri\n1.jpg\n"a"b.jpg\n3.jpg\n', [None, "not CSV", None]),
        ("m.csv", 'uri\n1.jpg\n"never closed\n3.jpg\n', [None, "not CSV", None]),
        ("m.csv", 'uri\n1.jpg\n"never closed\n3.jpg\n"4.jpg"\n5.jpg\n', [None, "not CSV", None, None, None]),
        ("m.csv", 'uri,label\n1.jpg,"two\nlines"\n2.jpg,"open\n3.jpg,"a\nb"\n', [None, "not CSV", None]),
        ("m.jsonl", '{"uri": "1.jpg"}\n' + "[" * 100_000 + '\n{"uri": "3.jpg"}\n', [None, "not JSON", None]),
        (
            "m.jsonl",
            '{"uri": "1.jpg"}\n{oops\n[1]\n{"uri": "4.jpg"}\n{}\n',
            [None, "not JSON", "not a JSON", None, "no uri"],
        ),
        (
            "m.jsonl",
            '{"uri": "1.jpg", "label": {"a": 1}}\n{"uri": "2.jpg", "label": 7}\n{"uri": "3.jpg", "label": [1, 2]}\n',
            ["a label is", None, "a list of 2 labels; keep it with --keep_columns"],
        ),
    ],
)
def test_invalid_rows_are_failures(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    units = cut(tmp_path / name, "manifest", 1)
    assert ranges(units) == [(index, 1) for index in range(len(expected))]
    for unit, part in zip(units, expected, strict=True):
        (ref,) = unit.refs
        assert isinstance(ref, RecordRef) if part is None else (part in ref.message)


def test_a_kept_value_of_another_type_fails_its_row_alone(tmp_path):
    (tmp_path / "m.csv").write_text("uri,year\n1.jpg,2001\n2.jpg,MMII\n3.jpg,\n")
    (unit,) = cut(tmp_path / "m.csv", "manifest", 5, kept(("year", "int16")))
    assert failed(unit) == {1: "bad_value"}
    assert unit.refs[1].message == "the kept column 'year' is int16, which 'MMII' is not"


@pytest.mark.parametrize("at", [0, 1, 1_499, 2_000])
def test_undecodable_text_costs_one_row(tmp_path, at):
    rows = [b"1.jpg,a label of some length"] * 2_000
    rows.insert(at, b"1.jpg,K\xe4se")
    (tmp_path / "m.csv").write_bytes(b"uri,label\n" + b"\n".join(rows))
    (unit,) = cut(tmp_path / "m.csv", "manifest", 2048)
    assert unit.count == 2_001
    assert failed(unit) == {at: "bad_value"}


def test_unclosed_quote_costs_one_row(tmp_path):
    rows = [f"{number}.jpg,x" for number in range(5_000)]
    rows[1_500] = '1500.jpg,"never closed'
    (tmp_path / "m.csv").write_text("uri,label\n" + "\n".join(rows) + "\n")
    (unit,) = cut(tmp_path / "m.csv", "manifest", 10_000)
    assert unit.count == 5_000
    assert failed(unit) == {1_500: "corrupt"}


@pytest.mark.slow
def test_truncated_manifest_reports_what_is_missing(tmp_path):
    data = gzip.compress("".join(f"{Random(number).random()}.jpg\n" for number in range(200_000)).encode())
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(b"uri\n") + data[: len(data) // 2])
    units = cut(tmp_path / "m.csv.gz", "manifest", 1 << 30)
    rest = units[-1].refs[-1]
    assert rest.unread.uri == f"{tmp_path}/m.csv.gz"
    assert rest.unread.bytes is not None
    assert 90_000 < units[-1].count < 110_000


@pytest.mark.slow
def test_a_manifest_streams(tmp_path):
    with open(tmp_path / "m.csv", "w") as file:
        file.write("uri,label\n")
        file.writelines(f"gs://bucket/folder/{number:08}.jpg,{number % 10}\n" for number in range(300_000))
    code = (
        "import resource, sys\nfrom transforms import storage\nfrom transforms.inputs.plan import cut_shard\n"
        "from transforms.core.formats import InputFormat\nfrom transforms.readers.options import ReadOptions\n"
        "from transforms.readers.units import Shard\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "shard = Shard(storage.stat(sys.argv[1]), InputFormat.MANIFEST)\n"
        "print(sum(unit.count for unit in cut_shard(shard, 2048, ReadOptions())), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m.csv"], capture_output=True, text=True, check=True)
    count, kib = map(int, done.stdout.split())
    assert count == 300_000
    assert kib < 20_000


# Looking at the input before a run.


def test_a_wrong_image_column_is_answered_with_the_right_one(tmp_path):
    path = write_tfrecord(
        tmp_path / "x.tfrecord", [example(**{"image/encoded": b"\xff\xd8", "image/class/label": 3, "note": b"text"})]
    )
    with pytest.raises(ImagebeamError) as caught:
        inspect_input([path], None, OPTIONS)
    message = str(caught.value)
    assert message.startswith(f"{path} (tfrecord): The columns are ")
    for part in (
        "image/encoded (binary)",
        "image/class/label (int64)",
        "note (string)",
        "Received: --image_column 'image'",
    ):
        assert part in message
    assert message.endswith("Pass --image_column image/encoded.")
    assert (
        inspect_input([path], None, ReadOptions("image/encoded", "image/class/label")).image_column == "image/encoded"
    )


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"photo": [b"1"], "label": [1]}, r"photo \(binary\).*Pass --image_column photo\."),
        ({"image": [7], "photo": [{"bytes": b"1", "path": "x"}]}, r"a column of int64.*Pass --image_column photo\."),
        (
            {"image": ["x.jpg"], "label": ["a"]},
            r"a column of string.*bytes.*--input_format manifest --uri_column image\.",
        ),
        ({"file": ["x.jpg"], "note": ["a"]}, r"no column.*bytes.*--input_format manifest --uri_column file or note\."),
        (
            {"image": pa.array(["x.jpg"]).dictionary_encode()},
            r"a column of dictionary.*plain bytes.*--uri_column image\.",
        ),
        (
            {"image": [[b"1"]], "label": ["a"]},
            r"a column of list<.*plain bytes\. Write the images of the lists in image ",
        ),
        (
            {"images": [[{"bytes": b"1", "path": "x"}]]},
            r"no column.*plain bytes\. Write the images of the lists in images ",
        ),
        ({"image": [{"bytes": None, "size": 1}], "label": [1]}, r"a column of struct<.*No column holds plain bytes\.$"),
    ],
)
def test_a_parquet_column_must_be_able_to_hold_images(tmp_path, columns, problem):
    path = write_parquet(tmp_path / "x.parquet", columns, 10)
    with pytest.raises(ImagebeamError, match=problem):
        inspect_input([path], None, OPTIONS)


def test_a_column_of_bytes_in_a_dictionary_holds_images(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"image": pa.array([b"1", b"1"]).dictionary_encode()}, 10)
    assert inspect_input([path], None, OPTIONS).image_column == "image"


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "1.png"}])
def test_a_column_of_nulls_may_hold_images(tmp_path, image):
    """Of one shard: pandas and pyarrow write such a column, where no row of a part has an image, without a type."""
    path = write_parquet(tmp_path / "x.parquet", {"image": [image]}, 10)
    assert inspect_input([path], None, OPTIONS).image_column == "image"


@pytest.mark.parametrize("odd", [[], [b""], [7], [b"1", b"2"], [b"text"]])
def test_an_odd_record_does_not_tell_what_a_feature_holds(tmp_path, odd):
    """It is a failure wherever it stands."""
    path = write_tfrecord(tmp_path / "x.tfrecord", [example(image=odd), example(image=b"P3 1 1 9 1 2 3")])
    inspect_input([path], None, OPTIONS)


def test_columns_that_are_not_there_are_refused(shards, tmp_path):
    os.symlink(shards["tfrecord"], tmp_path / "x.tfrecord")
    for options, flag in (
        (ReadOptions(label_column="nope"), "--label_column 'nope'"),
        (kept(("nope", "int64")), "--keep_columns 'nope'"),
    ):
        with pytest.raises(ImagebeamError, match=rf"The columns are .*Received: {flag}"):
            inspect_input([f"{tmp_path}/*.tfrecord"], None, options)
    os.symlink(shards["webdataset"], tmp_path / "x.tar")
    with pytest.raises(ImagebeamError, match=r"jpg \(binary\).*--image_column 'png'"):
        inspect_input([f"{tmp_path}/x.tar"], None, ReadOptions("png"))
    (tmp_path / "m.csv").write_text("image,label\n1.jpg,2\n")
    with pytest.raises(ImagebeamError, match=r"m\.csv.*'uri'.*image"):
        inspect_input([f"{tmp_path}/m.csv"], None, OPTIONS)


def test_types_of_kept_columns_are_inferred(tmp_path):
    def types(name, *names):
        options = inspect_input([f"{tmp_path}/{name}"], None, kept(*((one, "null") for one in names)))
        return [str(kind) for _, kind in options.keep_columns]

    write_tfrecord(
        tmp_path / "x.tfrecord",
        [example(image=b"\xff", i=1, f=2.0, s=b"text", b=b"\xff\xfe", many=[1, 2]), example(image=b"\xff", late=3)],
    )
    found = types("x.tfrecord", "i", "f", "s", "b", "many", "late")
    assert found == ["int64", "double", "string", "binary", "list<item: int64>", "int64"]
    write_tar(
        tmp_path / "x.tar",
        [
            ("a.jpg", b"\xff"),
            ("a.caption", b"text"),
            ("a.json", json.dumps({"i": 1, "f": 0.5, "t": ["a"], "n": None}).encode()),
        ],
    )
    assert types("x.tar", "caption", "i", "f", "t") == ["string", "int64", "double", "list<item: string>"]
    write_parquet(tmp_path / "x.parquet", {"image": [b"1"], "d": pa.array([1], pa.int8())}, 1)
    assert types("x.parquet", "d") == ["int8"]
    (tmp_path / "m.jsonl").write_text('{"uri": "1", "y": 3}\n')
    (tmp_path / "m.csv").write_text("uri,y\n1,3\n")
    assert types("m.jsonl", "y") == ["int64"]
    assert types("m.csv", "y") == ["string"]
    with pytest.raises(ImagebeamError, match=r"--keep_columns n:string"):
        types("x.tar", "n")


def test_declared_types_stay(tmp_path):
    write_tfrecord(tmp_path / "x.tfrecord", [example(image=b"\xff", i=1)])
    options = kept(("i", "float32"))
    assert inspect_input([str(tmp_path)], None, options) == options


def test_images_have_no_columns_to_keep(tmp_path):
    (tmp_path / "x.jpg").touch()
    with pytest.raises(ImagebeamError, match=r"no columns to keep.*--keep_columns a, b.*manifest"):
        inspect_input([str(tmp_path)], None, kept(("a", "int64"), ("b", "null")))


def test_damaged_first_shard_is_not_a_user_mistake(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"")
    (tmp_path / "b.tar").write_bytes(b"x" * 1000)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    write_tfrecord(tmp_path / "d.tfrecord", [])
    assert inspect_input([str(tmp_path)], None, OPTIONS) == OPTIONS
    write_tfrecord(tmp_path / "e.tfrecord", [example(photo=b"\xff")])
    with pytest.raises(ImagebeamError, match=r"e\.tfrecord.*Pass --image_column photo"):
        inspect_input([str(tmp_path)], None, OPTIONS)
