"""Patterns -> input files with their formats; a listing in parts is the same listing."""

import itertools
import os
from collections import Counter
from random import Random

import pyarrow as pa
import pytest
from pyarrow import feather

from tests.support.gcs_server import gcs  # noqa: F401
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.inputs.discover import detect_format, list_inputs
from transforms.storage.files import UriRange

# Formats by name.


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a.tfrecord a.tfrecords a.tfrec a.TFRecord a.tfrecord.gz a.tfrec.zlib", "tfrecord"),
        ("a.tfrecord-00000-of-00010 a.tfrecord-00000-of-00010.gz a.tfrecord.gz-00000-of-00010", "tfrecord"),
        ("train-00000-of-00010", "tfrecord"),
        ("a.tar a.tar.gz a.tgz a.b.tar shard-{00..99}.tar a.tar.zst", "webdataset"),
        ("a.parquet train-00000-of-00010.parquet a.parquet.gzip a.pq.zstd a.snappy.parquet", "parquet"),
        ("a.csv a.jsonl a.ndjson a.csv.gz a.jsonl.zst", "manifest"),
        ("a.jpg a.JPEG a.b.png x.tar.webp a.heic", "files"),
        ("a.txt a jpg a.json tfrecord .tfrecordx a.parquet.crc a.parquet.gz _SUCCESS photo-1-of-2", None),
    ],
)
def test_names_tell_the_format(names, expected):
    for name in names.split():
        assert detect_format(f"/data/{name}") == expected, name


# Listing.


@pytest.fixture
def folder(tmp_path):
    for name in (
        *("b/2.jpg", "b/1.png", "a/3.jpg", "a/.hidden.jpg", "a/notes.txt", "a/README", "x.tar", "y.parquet"),
        *("labels.csv", "z.tfrecord", "part-00000", "more.txt"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listed(folder, patterns, input_format=None, left_out=None):
    found = list_inputs([f"{folder}{pattern}" for pattern in patterns], input_format, left_out)
    return [(shard.file.uri.removeprefix(f"{folder}/"), str(shard.format)) for shard in found]


def test_folder_gives_shards_and_images_and_counts_the_rest(folder):
    left_out: Counter[str] = Counter()
    assert listed(folder, [""], None, left_out) == [
        ("a/3.jpg", "files"),
        ("b/1.png", "files"),
        ("b/2.jpg", "files"),
        ("x.tar", "webdataset"),
        ("y.parquet", "parquet"),
        ("z.tfrecord", "tfrecord"),
    ]
    assert left_out == {".txt": 2, ".csv": 1, "(no extension)": 2, "(names that begin with _ or .)": 1}


def test_folders_of_a_nas_or_windows_are_counted_and_not_read(folder):
    """Thumbnails would be a class, snapshots copies of all images."""
    names = (
        "a/@eaDir/3.jpg/SYNOPHOTO_THUMB_M.jpg",
        "#recycle/old.png",
        "#snapshot/monday/a/3.jpg",
        "$RECYCLE.BIN/S-1/$R1.JPG",
    )
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    left_out: Counter[str] = Counter()
    assert len(listed(folder, [""], None, left_out)) == 6
    assert left_out["(thumbnails, deleted files and snapshots of a NAS or Windows)"] == 4
    assert [name for name, _ in listed(folder, ["/**/*.jpg"])] == ["a/3.jpg", "b/2.jpg"]
    assert listed(folder, ["/#snapshot", "/*/@eaDir/*/*"]) == [(names[2], "files"), (names[0], "files")]


def test_images_in_hidden_folders_are_counted_and_other_hidden_files_are_not(folder):
    for name in (".DS_Store", ".git/objects/aa", ".git/config.txt", ".cache/thumb/1.png", "a/._3.jpg"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    left_out: Counter[str] = Counter()
    assert len(listed(folder, [""], None, left_out)) == 6
    assert left_out["(names that begin with _ or .)"] == 3
    assert left_out[".txt"] == 2
    assert [name for name, _ in listed(folder, ["/**/*.jpg"])] == ["a/3.jpg", "b/2.jpg"]
    assert listed(folder, ["/.cache"], None, left_out) == [(".cache/thumb/1.png", "files")]


def test_named_file_is_read_under_any_name(folder):
    assert listed(folder, ["/a/README", "/labels.csv", "/*.txt"]) == [
        ("a/README", "files"),
        ("labels.csv", "manifest"),
        ("more.txt", "files"),
    ]


@pytest.mark.parametrize(
    ("input_format", "expected"),
    [
        ("tfrecord", ["a/README", "part-00000", "z.tfrecord"]),
        ("manifest", ["a/README", "labels.csv", "part-00000", "y.parquet"]),
        ("files", ["a/3.jpg", "a/README", "b/1.png", "b/2.jpg", "part-00000"]),
    ],
)
def test_input_format_selects_among_the_files_of_a_folder(folder, input_format, expected):
    assert listed(folder, [""], InputFormat(input_format)) == [(name, input_format) for name in expected]


def test_input_format_applies_to_every_named_file(folder):
    assert listed(folder, ["/*.txt", "/x.tar"], InputFormat.TFRECORD) == [
        ("more.txt", "tfrecord"),
        ("x.tar", "tfrecord"),
    ]


def test_overlapping_patterns_give_each_file_once(folder):
    names = [name for name, _ in listed(folder, ["", "/b", "/**/*.jpg", "/b/2.jpg", "/{b,a}/*.jpg"])]
    assert names == ["a/3.jpg", "b/1.png", "b/2.jpg", "x.tar", "y.parquet", "z.tfrecord"]


def test_pattern_without_matches_is_named_first(folder):
    for pattern in ("/*.nothing", "/none.jpg", "/none/**"):
        with pytest.raises(ImagebeamError, match="quote wildcards") as caught:
            next(list_inputs([str(folder), f"{folder}{pattern}"], None))
        assert f"--input '{folder}{pattern}'" in str(caught.value)


def test_a_folder_of_other_files_says_what_it_holds(tmp_path):
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / name).touch()
    with pytest.raises(ImagebeamError, match=r"\.csv 1, \.txt 2.*--input_format"):
        next(list_inputs([str(tmp_path)], None))


@pytest.mark.parametrize("kind", ["file", "stream", "first Feather"])
def test_folder_of_unusable_files_says_what_they_are(tmp_path, kind):
    table = pa.table({"image": [b"abc"]})
    if kind == "file":
        feather.write_feather(table, str(tmp_path / "x.arrow"))
    elif kind == "stream":
        with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as writer:
            writer.write_table(table)
    else:
        (tmp_path / "x.arrow").write_bytes(b"FEA1" + bytes(20) + b"FEA1")
    with pytest.raises(ImagebeamError, match=r"\.arrow 1.*x\.arrow is an? (Arrow|Feather)"):
        next(list_inputs([str(tmp_path)], None))


def test_missing_bucket_is_a_user_mistake(gcs):  # noqa: F811
    with pytest.raises(ImagebeamError, match=r"--input 'gs://no-such/\*\.tar'"):
        next(list_inputs(["gs://no-such/*.tar"], None))


# In parts.


TREE = [
    *(f"top{number}.jpg" for number in range(3)),
    *(f"a/{number:02}.jpg" for number in range(12)),
    *(f"a/deep/er/{number}.jpg" for number in range(3)),
    *("a.b/1.jpg", "a0/1.jpg", "a-/1.jpg", "a!/x.jpg"),  # "-", "!" and "." sort before a slash, "0" after it
    *(f"b{number}/{name}.jpg" for number in range(5) for name in "xyz"),
    "é/ü.jpg",
]


@pytest.fixture(params=["local", "gs"])
def tree(request, tmp_path):
    base = str(tmp_path / "in")
    if request.param == "gs":
        base = f"gs://{request.getfixturevalue('gcs').bucket}/in"
    for name in TREE:
        storage.publish(f"{base}/{name}", b"x")
    return base


def uris(infos):
    return [info.uri for info in infos]


def within(pattern, part):
    return sorted(uris(itertools.chain.from_iterable(files for _, files in storage.matches(pattern, part))))


@pytest.mark.parametrize("pattern", ["", "/**/*.jpg", "/*/*.jpg", "/a*/**", "/{a,b1}", "/top1.jpg"])
def test_range_lists_what_is_between_its_ends(tree, pattern):
    whole = uris(storage.list_files(tree + pattern))
    random = Random(3)
    names = [f"{tree}/{name}" for name in TREE]
    bounds = [
        *names,
        tree,
        f"{tree}/",
        f"{tree}/a/",
        f"{tree}/a",
        f"{tree}/b",
        f"{tree}/zz",
        "/",
        "gs://a",
        "gs://zz",
        "",
    ]
    for _ in range(30):
        start, end = sorted(random.choices(bounds, k=2))
        assert within(tree + pattern, UriRange(start, end)) == [uri for uri in whole if start <= uri < end]
        assert within(tree + pattern, UriRange(start)) == [uri for uri in whole if start <= uri]


@pytest.mark.parametrize("wanted", [2, 3, 7, 1000])
@pytest.mark.parametrize("patterns", [[""], ["/b*/*.jpg", "/a"], ["/none*", "/top0.jpg"]])
def test_a_listing_is_split_without_gap_or_overlap(tree, patterns, wanted):
    whole = sorted(set(itertools.chain.from_iterable(uris(storage.list_files(tree + pattern)) for pattern in patterns)))
    start = whole[0]
    parts = storage.split_listing([tree + pattern for pattern in patterns], start, wanted)
    assert (parts[0].start, parts[-1].end) == (start, None)
    assert all(one.end == other.start for one, other in itertools.pairwise(parts))
    assert 1 <= len(parts) <= wanted
    listed = [
        shard.file.uri for part in parts for shard in list_inputs([tree + one for one in patterns], None, None, part)
    ]
    assert listed == whole


def test_a_listing_is_split_into_about_as_many_parts_as_wanted(tree):
    assert len(storage.split_listing([tree], f"{tree}/a", 7)) == 7
    assert len(storage.split_listing([f"{tree}/b0"], f"{tree}/b0/x.jpg", 7)) == 1  # all files in one folder


def test_a_split_lists_no_file_twice_on_gs(gcs):  # noqa: F811
    base = f"gs://{gcs.bucket}/in"
    for name in TREE:
        storage.publish(f"{base}/{name}", b"x")
    gcs.page_size = 1
    gcs.requests.clear()
    assert len(within(base, UriRange(f"{base}/b1/", f"{base}/b3/"))) == 6
    listings = [path for _, path in gcs.requests if "/o?" in path]
    assert 6 <= len(listings) <= 8  # a look at the folder, and a page for each of six objects; all 33 otherwise


def test_unreadable_folder_outside_the_pattern_is_harmless(tmp_path, monkeypatch):
    for name in ("photos/a/1.jpg", "photos/b/1.jpg", "photos/.Trash-0/x/1.jpg", "private/y/1.jpg"):
        storage.publish(str(tmp_path / name), b"x")
    asked, scandir = [], os.scandir

    def guarded(folder):
        asked.append(str(folder))
        if "Trash" in str(folder) or "private" in str(folder):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    parts = storage.split_listing([f"{tmp_path}/ph*/**/*.jpg"], f"{tmp_path}/photos/a/1.jpg", 64)
    assert [part.start for part in parts][1:] == [f"{tmp_path}/photos/b/"]
    assert not any("Trash" in folder or "private" in folder for folder in asked)


def test_new_folders_move_few_bounds(tmp_path, monkeypatch):
    names = [f"/x/{number:04}/" for number in range(2_000)]
    monkeypatch.setattr(storage, "_look_at", lambda _: [storage._Named("/x", None, True)])

    def bounds(folders):
        monkeypatch.setattr("transforms.storage.local.list_folders", lambda folder: folders if folder == "/x" else [])
        return {part.start for part in storage.split_listing(["/x"], "/x/0000/1.jpg", 64)}

    before = bounds(names)
    after = bounds(sorted([*names, *(f"/x/{number}.5/" for number in range(100, 110))]))
    assert len(before) == 64
    assert len(before & after) >= 60
