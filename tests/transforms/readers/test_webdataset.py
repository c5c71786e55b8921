"""Tars of every shape: each image is a row, a failure, or is counted, and tarfile itself says how many there are."""

import io
import tarfile

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.planned import shard_at
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat, LabelFrom
from transforms.core.types import Record
from transforms.images.decode import IMAGE_EXTENSIONS
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import Note, WorkUnit

OPTIONS = ReadOptions()


def tar_of(members, mode="w"):
    """Bytes of a tar; a member is (name, bytes), or (name, ("hard" or "symbolic", target))."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type = tarfile.LNKTYPE if data[0] == "hard" else tarfile.SYMTYPE
                info.linkname = data[1]
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(path, rows_per_unit=5, options=OPTIONS):
    """(items, notes by kind, what was not read) of one tar."""
    items, notes = [], {}
    for found in cut_shard(shard_at(path, InputFormat.WEBDATASET), rows_per_unit, options):
        if isinstance(found, Note):
            notes[found.kind] = found.count
        elif isinstance(found, WorkUnit):
            read_now = list(read_records(found, options))
            assert len(read_now) == found.count
            items += read_now
    assert len({item.key for item in items}) == len(items)
    return items, notes, [item.unread for item in items if not isinstance(item, Record) and item.unread]


def outcome(items):
    return [item.data if isinstance(item, Record) else item.error_type for item in items]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(f"photo.{n:04d}.png", b"%d" % n) for n in range(20)], [b"%d" % n for n in range(20)]),
        ([(f"IMG 2.{n} (Clean).png", b"%d" % n) for n in range(20)], [b"%d" % n for n in range(20)]),
        ([("a.png", b"1")] * 20, [b"1"] + ["repeated_key"] * 19),
        ([("a.png", b"1"), ("b.png", b"2"), ("b.png", b"3"), ("c.png", b"4")], [b"1", b"2", "repeated_key", b"4"]),
        ([("a.png", b"1"), ("b.png", ("hard", "a.png")), ("c.png", ("symbolic", "a.png"))], [b"1", "link", "link"]),
        ([("v.1.jpg", b"1"), ("v.1.cls", b"7"), ("v.2.jpg", b"2"), ("v.2.cls", b"8")], [b"1", b"2"]),
        ([("v.1.cls", b"7"), ("v.1.jpg", b"1"), ("v.2.cls", b"8"), ("v.2.jpg", b"2")], [b"1", b"2"]),
        ([("a.left.png", b"1"), ("a.right.png", b"2")], [b"1", b"2"]),
    ],
)
def test_names_lose_no_image(tmp_path, members, expected, mode):
    (tmp_path / "x").write_bytes(tar_of(members, mode))
    for rows_per_unit in (1, 3, 100):
        items, _, unread = read(tmp_path / "x", rows_per_unit)
        assert outcome(items) == expected
        assert not unread
    if "cls" in str(members):
        assert [item.label for item in items] == ["7", "8"]


def test_members_called_image_and_label_are_read(tmp_path):
    """As a column of the other formats is: there is no --image_column that would name them."""
    members = [
        ("a.image", b"1"),
        ("a.label", b"3"),
        ("b.label", b"4"),
        ("b.image", b"2"),
        ("c.image", b"5"),
        ("c.jpg", b"6"),
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    inspect_input([str(tmp_path / "x.tar")], None, OPTIONS)
    items, _, _ = read(tmp_path / "x.tar")
    assert outcome(items) == [b"1", b"2", b"6"]
    assert [item.label for item in items] == ["3", "4", None]


def test_views_whose_label_comes_last_are_a_failure_far_into_a_shard(tmp_path):
    """Where nothing was seen of them before the run: the label is of both, and neither may go without it in silence."""
    members = [("s.png", b"1"), ("t.left.png", b"2"), ("t.right.png", b"3"), ("t.txt", b"cat"), ("u.png", b"4")]
    (tmp_path / "x").write_bytes(tar_of(members))
    for rows_per_unit in (1, 2, 3, 100):
        items, _, unread = read(tmp_path / "x", rows_per_unit)
        assert outcome(items) == [b"1", b"2", "several_images", b"4"]
        assert "left.png, right.png" in items[2].message
        assert not unread


@pytest.mark.parametrize("label_from", LabelFrom)
@pytest.mark.parametrize(
    ("text", "fails"),
    [
        (b'[{"bbox": [1, 2]}]', {LabelFrom.COLUMN}),
        (b"{oops", {LabelFrom.COLUMN, LabelFrom.AUTO}),
        (b'{"label": 7}', set()),
    ],
)
def test_json_costs_an_image_only_where_it_is_asked_for(tmp_path, label_from, text, fails):
    (tmp_path / "x").write_bytes(tar_of([("dir/a.png", b"1"), ("dir/a.json", text)]))
    items, _, _ = read(tmp_path / "x", 10, ReadOptions(label_from=label_from))
    assert outcome(items) == ["bad_value" if label_from in fails else b"1"]
    kept = ReadOptions(label_from=label_from, keep_columns=(("boxes", pa.string()),))
    items, _, _ = read(tmp_path / "x", 10, kept)
    assert outcome(items) == [b"1" if text.startswith(b'{"') else "bad_value"]


def test_members_outside_samples_are_counted(tmp_path):
    members = [
        ("README", b"x"),
        ("a.jpg", b"1"),
        ("a.mask.png", b"2"),
        ("./._a.jpg", b"AppleDouble"),
        ("link.txt", ("symbolic", "a.txt")),
        ("photo", b"3"),
    ]
    (tmp_path / "x").write_bytes(tar_of(members))
    items, notes, _ = read(tmp_path / "x")
    assert outcome(items) == [b"1"]
    assert notes == {
        "members of tars without an extension": 2,
        "further images of samples": 1,
        "hidden members of tars": 1,
        "links and special files in tars": 1,
    }


def test_concatenated_archives_are_read_to_the_end(tmp_path):
    one, other = tar_of([("a.jpg", b"1")]), tar_of([("b.jpg", b"2")])
    (tmp_path / "x").write_bytes(one + other)
    items, _, unread = read(tmp_path / "x")
    assert (outcome(items), unread) == ([b"1", b"2"], [])
    (tmp_path / "x").write_bytes(one + b"something else" * 100)
    items, _, (unread,) = read(tmp_path / "x")
    assert outcome(items) == [b"1", "corrupt"]
    assert 0 < unread.bytes <= len(one) + 1400


def test_a_missing_end_mark_is_a_problem(tmp_path):
    data = tar_of([("a.jpg", b"1"), ("b.jpg", b"2")])
    (tmp_path / "x").write_bytes(data[:2048])
    items, _, (unread,) = read(tmp_path / "x")
    assert outcome(items) == [b"1", b"2", "truncated"]
    assert (unread.uri, unread.bytes) == (str(tmp_path / "x"), 0)


def test_empty_archive_is_no_failure_and_empty_file_is(tmp_path):
    (tmp_path / "x").write_bytes(tar_of([]))
    assert read(tmp_path / "x") == ([], {"shards without records": 1}, [])
    (tmp_path / "x").write_bytes(b"")
    items, _, (unread,) = read(tmp_path / "x")
    assert outcome(items) == ["truncated"]
    assert unread.bytes == 0


def test_a_member_that_is_too_large_is_one_failure(tmp_path):
    members = [("a.jpg", b"1"), ("b.jpg", bytes(5_000)), ("c.jpg", b"3")]
    for mode in ("w", "w:gz"):
        (tmp_path / "x").write_bytes(tar_of(members, mode))
        items, _, _ = read(tmp_path / "x", options=ReadOptions(max_record_bytes=1_000))
        assert outcome(items) == [b"1", "too_large", b"3"]


names = st.sampled_from(["a", "b", "c", "b.1", "b.2", "dir/a", "", ".hidden", "\udce9"])
extensions = st.sampled_from(["jpg", "png", "left.png", "cls", "json", "doc", "JPG", "txt"])
contents = st.one_of(
    st.binary(max_size=40), st.tuples(st.sampled_from(["hard", "symbolic"]), st.sampled_from(["a.jpg", "x"]))
)
plain = st.sampled_from(["README", "photo"])
members = st.lists(st.tuples(st.one_of(plain, st.builds("{}.{}".format, names, extensions)), contents), max_size=25)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=members, compressed=st.booleans(), rows_per_unit=st.integers(1, 6))
def test_every_image_of_any_tar_is_accounted_for(tmp_path, members, compressed, rows_per_unit):
    data = tar_of(members, "w:gz" if compressed else "w")
    (tmp_path / "x").write_bytes(data)
    items, notes, unread = read(tmp_path / "x", rows_per_unit)
    assert not unread
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        present = [member.name.rpartition("/")[2] for member in tar]
    shown = [name for name in present if name.partition(".")[0] and "." in name]
    are_images = [f".{name.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS for name in shown]
    without = sum(not isinstance(item, Record) and item.error_type == "no_image" for item in items)
    assert len(items) - without + notes.get("further images of samples", 0) >= sum(are_images)
    left_out = sum(count for kind, count in notes.items() if "further" not in kind and "records" not in kind)
    assert left_out == len(present) - len(shown) + sum(
        member.islnk() or member.issym() for member in _links(data) if not _is_image(member.name)
    )
    again, _, _ = read(tmp_path / "x", 1_000)
    assert again == items, "what is read does not depend on where units end"


def _links(data):
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        found = [member for member in tar if member.islnk() or member.issym()]
    return [member for member in found if member.name.rpartition("/")[2].partition(".")[0] and "." in member.name]


def _is_image(name):
    return f".{name.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_annotations_may_come_before_the_images(tmp_path, mode):
    """As in tars of VOC: Annotations/*.xml, JPEGImages/*.jpg."""
    annotations = [(f"xml/{index:03d}.xml", b"<a/>") for index in range(50)]
    (tmp_path / "x.tar").write_bytes(tar_of([*annotations, ("jpg/000.jpg", b"1"), ("jpg/001.jpg", b"2")], mode))
    assert inspect_input([f"{tmp_path}/x.tar"], None, OPTIONS) == OPTIONS
    (tmp_path / "x.tar").write_bytes(tar_of(annotations, mode))
    with pytest.raises(ImagebeamError, match=r"columns are xml \(string\). None of the first .* samples has the image"):
        inspect_input([f"{tmp_path}/x.tar"], None, OPTIONS)


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["a.jpg", "a.mask.png"], "jpg, mask.png"),
        (["a.cls", "a.png", "a.jpg"], "png, jpg"),
        (["a.jpg", "b.jpg", "b.seg.png"], "jpg, seg.png"),
        (["a.jpg", "b.png"], None),
        (["a.left.png", "a.right.png"], None),  # Two samples: nothing is passed over.
        (["a.left.png", "a.right.png", "a.txt"], "left.png, right.png"),
        (["a.txt", "a.left.png", "a.right.png"], "left.png, right.png"),
        (["b.png", "a.left.png", "a.mid.png", "a.right.png", "a.cls"], "mid.png, right.png"),
        (["a.rgb.png", "a.txt", "b.rgb.png", "b.txt"], None),
        (["v.1.png", "v.1.cls", "v.2.png", "v.2.cls"], None),
        (["a.jpg", "a.json"], None),
    ],
)
def test_several_images_in_a_sample_need_image_column(tmp_path, names, images):
    (tmp_path / "x.tar").write_bytes(tar_of([(name, b"{}") for name in names]))
    uri = str(tmp_path / "x.tar")
    if images is None:
        inspect_input([uri], None, ReadOptions())
        return
    with pytest.raises(ImagebeamError, match=f"images: {images}. Pass --image_column {images.split(', ')[0]} or "):
        inspect_input([uri], None, ReadOptions())
    for image in images.split(", "):
        inspect_input([uri], None, ReadOptions(image_column=image))
