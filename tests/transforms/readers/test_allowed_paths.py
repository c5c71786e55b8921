"""What data may name: files below its own folder, and what a flag allows."""

import json
import os

import pyarrow as pa
import pytest

from pipelines.options.extraction import InputOptions
from tests.support.planned import shard_at, units_in
from tests.support.shard_files import write_parquet, write_tfrecord
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.types import Failure, Record
from transforms.inputs.plan import cut_shard, plan
from transforms.readers.allowed_paths import reach
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records

CANARY = b"a secret that must not show up"


@pytest.fixture
def folders(tmp_path):
    """The data's folder, and one beside it that holds the canary."""
    for name in ("data/sub", "data-of-others", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.jpg").write_bytes(b"image")
    (tmp_path / "outside" / "canary").write_bytes(CANARY)
    (tmp_path / "data-of-others" / "canary").write_bytes(CANARY)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside")
    return tmp_path


NAMED = (
    "../outside/canary",
    "../data-of-others/canary",
    "sub/../../outside/canary",
    "{base}/outside/canary",
    "file://{base}/outside/canary",
    "link/canary",
    "/etc/passwd",
    "http://127.0.0.1/x.jpg",
    "https://example.org/x.jpg",
    "ftp://example.org/x.jpg",
    "gs://other/x.jpg",
    "s3://other/x.jpg",
    "hdfs://host/../x.jpg",
)


def read(path, input_format, options):
    units = units_in(cut_shard(shard_at(path, input_format), 100, options))
    return [item for unit in units for item in read_records(unit, options)]


def write(folders, kind, named):
    names = [one.format(base=folders) for one in named]
    path = folders / "data" / "x"
    if kind == "parquet":
        rows = [{"bytes": None, "path": name} for name in names]
        return write_parquet(path, {"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}, 9)
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"uri": name}) + "\n" for name in names))
    return path


@pytest.mark.parametrize("kind", ["parquet", "manifest"])
def test_outside_paths_are_refused_and_other_rows_are_read(folders, kind):
    path = write(folders, kind, ["sub/a.jpg", *NAMED, "sub/a.jpg"])
    items = read(path, kind, ReadOptions())
    assert [getattr(item, "error_type", None) for item in items] == [None, *["not_allowed"] * len(NAMED), None]
    assert CANARY not in b"".join(item.data for item in items if isinstance(item, Record))


@pytest.mark.parametrize("kind", ["parquet", "manifest"])
def test_prefix_allows_only_what_is_below_it(folders, kind):
    path = write(
        folders, kind, ["../outside/canary", "../data-of-others/canary", "{base}/outside/canary", "link/canary"]
    )
    items = read(path, kind, ReadOptions(allow_uri_prefix=(f"{folders}/outside/",)))
    assert [isinstance(item, Record) for item in items] == [True, False, True, False]
    assert "--allow_uri_prefix" in items[1].message


def test_prefix_may_be_the_root(folders):
    path = write(folders, "manifest", ["../outside/canary", "sub/a.jpg"])
    assert [isinstance(item, Record) for item in read(path, "manifest", ReadOptions(allow_uri_prefix=("/",)))] == [
        True
    ] * 2


def test_a_manifest_may_lie_in_the_root():
    assert reach("data/a.jpg", "/", ReadOptions()) == "/data/a.jpg"


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("/", "/"),
        ("/a", "/a"),
        ("/a/", "/a/"),
        ("/a//", "/a/"),
        ("file:///a/", "/a/"),
        ("file:///a%20b", "/a b"),
        ("gs://b/", "gs://b/"),
        ("gs://b/x/", "gs://b/x/"),
        ("gs://b/x", "gs://b/x"),
    ],
)
def test_last_slash_of_a_prefix_is_kept(given, prefix):
    """Without it the prefix would allow folders whose names go on."""
    assert InputOptions(("x",), allow_uri_prefix=(given,)).read_options().allow_uri_prefix == (prefix,)


def test_oversized_file_is_not_read(tmp_path, monkeypatch):
    for name, size in (("a.jpg", 10), ("b.jpg", 2_000), ("c.jpg", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    (unit,) = units_in(plan([str(tmp_path)], None, 10))
    opened: list[str] = []
    original = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, version=None: opened.append(uri) or original(uri, version))
    options = ReadOptions(max_record_bytes=1_000)
    items = list(read_records(unit, options))
    assert [isinstance(item, Failure) and item.error_type for item in items] == [False, "too_large", False]
    assert sorted(map(os.path.basename, opened)) == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_oversized_record_costs_no_other(tmp_path, compression):
    from tests.support.shard_files import example

    payloads = [example(image=data) for data in (b"1", bytes(5_000), b"3")]
    path = write_tfrecord(tmp_path / "x", payloads, compression)
    items = read(path, "tfrecord", ReadOptions(max_record_bytes=1_000))
    assert [getattr(item, "error_type", None) for item in items] == [None, "too_large", None]
    path = write_parquet(tmp_path / "y", {"image": [b"1", bytes(5_000), b"3"]}, 9)
    items = read(path, "parquet", ReadOptions(max_record_bytes=1_000))
    assert [getattr(item, "error_type", None) for item in items] == [None, "too_large", None]


def test_braces_name_only_what_is_there(tmp_path):
    for number in (0, 2):
        (tmp_path / f"{number:03}.jpg").write_bytes(b"x")
    with pytest.raises(ImagebeamError, match=r"001\.jpg"):
        list(plan([f"{tmp_path}/{{000..002}}.jpg"], None, 10))
    (unit,) = units_in(plan([f"{tmp_path}/{{000,002}}.jpg"], None, 10))
    assert unit.count == 2
    (unit,) = units_in(plan([f"{tmp_path}/*.{{jpg,png}}"], None, 10))
    assert unit.count == 2
