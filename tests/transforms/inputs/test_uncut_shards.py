"""Compressed shards that are cut while they are read: the units and records of those cut before, inflated once."""

import bz2
import gc
import gzip
import lzma
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.support.fakes import ChannelMeans, FakeModel
from tests.support.plain_runs import _example, _framed, one_bundle
from tests.support.planned import shard_at, units_in
from tests.support.shard_files import images, write_tar
from tests.transforms.embed.test_embed_units import png
from transforms import storage
from transforms.core.formats import InputFormat
from transforms.embed.embed_units import EmbedOptions, _ReadAndEmbed
from transforms.images.decode import ImageOptions
from transforms.inputs import uncut_shards
from transforms.inputs.plan import cut_shard
from transforms.inputs.plan_units import _cut
from transforms.inputs.shard_index import CutMemory
from transforms.inputs.uncut_shards import UncutShards, cut_unless_compressed
from transforms.parts import part_files
from transforms.parts.part_files import PartOptions
from transforms.readers import compression, spool
from transforms.readers import read as read_module
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import Note, ShardGroup, WorkUnit
from transforms.runs.commit_units import CommitUnits, _CommitUnit
from transforms.runs.manifest import UnitReport
from transforms.storage.resuming import ResumingStream

OPTIONS = ReadOptions()
COUNT = 40
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zlib": zlib.compress,
}


def content_of(data, name, folder):
    if "tfrecord" in name:
        return b"".join(_framed(_example(one)) for one in data)
    path = folder / "plain"
    write_tar(path, [(f"{index:05d}.png", one) for index, one in enumerate(data)])
    return path.read_bytes()


def write(folder, name, data):
    """A shard, and how many bytes it inflates to."""
    content = content_of(data, name, folder)
    path = folder / name
    path.write_bytes(PACK[name.rpartition(".")[2]](content))
    return shard_at(path, InputFormat.TFRECORD if "tfrecord" in name else InputFormat.WEBDATASET), len(content)


NAMES = ["a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.tfrecord.gz", "a.tfrecord.zlib"]


@pytest.fixture(params=NAMES)
def shard(request, tmp_path):
    return write(tmp_path, request.param, images(COUNT))[0]


def uncut(shard, rows=7, memory=None):
    (found,) = cut_unless_compressed(shard, rows, OPTIONS, memory)
    assert isinstance(found, UncutShards)
    return found


@pytest.fixture
def opened(monkeypatch):
    """Shards that were opened by a reader, one entry each time."""
    found = []

    def counted(uri, version):
        found.append(uri)
        return ResumingStream(uri, version)

    monkeypatch.setattr(read_module, "ResumingStream", counted)
    return found


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_units_and_records_are_those_of_a_shard_that_was_cut_before(shard, rows, opened):
    before = list(cut_shard(shard, rows, OPTIONS))
    expected = [list(read_records(unit, OPTIONS)) for unit in before if not isinstance(unit, Note)]
    opened.clear()
    found = []
    for at, unit in enumerate(uncut(shard, rows).units()):
        assert unit == before[at]
        if not isinstance(unit, Note):
            found.append(list(read_records(unit, OPTIONS)))
    assert found == expected
    assert sum(map(len, found)) == COUNT
    assert opened == []


def test_units_can_be_read_later_and_in_any_order(shard):
    units = units_in(uncut(shard).units())
    expected = [list(read_records(unit, OPTIONS)) for unit in units_in(cut_shard(shard, 7, OPTIONS))]
    assert [list(read_records(unit, OPTIONS)) for unit in reversed(units)] == expected[::-1]


def test_the_disk_holds_what_the_units_at_work_need(shard, monkeypatch):
    segments = []

    class Small(spool.Spool):
        def __init__(self):
            super().__init__(4096)

        def append(self, data):
            super().append(data)
            segments.append(len(self._files))

    monkeypatch.setattr(uncut_shards, "Spool", Small)
    monkeypatch.setattr(compression, "_CHUNK", 1024)
    for unit in uncut(shard, 2).units():
        assert isinstance(unit, WorkUnit)
        list(read_records(unit, OPTIONS))
        del unit
    # Two units of two images of 5 kB at most, their headers, and a segment that is begun at either end.
    assert max(segments) <= 2 + 2 * 2 * 6000 // 4096


@pytest.mark.parametrize("name", ["a.tar", "a.tfrecord", "a.parquet", "broken.tar.gz", "missing.tar.gz"])
def test_other_shards_are_cut_in_planning(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8c" + bytes(100))
    shard = shard_at(path, InputFormat.PARQUET if "parquet" in name else InputFormat.WEBDATASET)
    if "missing" in name:
        path.unlink()
    assert list(cut_unless_compressed(shard, 7, OPTIONS)) == list(cut_shard(shard, 7, OPTIONS))


@pytest.mark.parametrize("damage", ["cut short", "a byte changed"])
def test_a_damaged_shard_gives_what_it_gives_when_it_is_cut_before(shard, damage, tmp_path):
    path = tmp_path / shard.file.uri.rpartition("/")[2]
    data = bytearray(path.read_bytes())
    if damage == "cut short":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    damaged = shard_at(path, shard.format)
    before = list(cut_shard(damaged, 7, OPTIONS))
    found = list(uncut(damaged).units())
    assert found == before
    for one, other in zip(units_in(found), units_in(before), strict=True):
        assert list(read_records(one, OPTIONS)) == list(read_records(other, OPTIONS))


def test_cuts_are_remembered(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(CutMemory, "is_worthwhile", lambda *_: True)
    memory = CutMemory(str(tmp_path / "cuts"), 7)
    before = list(cut_shard(shard, 7, OPTIONS))
    assert list(uncut(shard, memory=memory).units()) == before
    monkeypatch.setattr(storage, "open_read", None)  # Cuts are recalled without a look at the shard.
    assert list(cut_unless_compressed(shard, 7, OPTIONS, memory)) == before
    assert list(cut_shard(shard, 7, OPTIONS, memory)) == before


COLORS = [(number, 2 * number, 7) for number in range(COUNT)]


@pytest.fixture(params=NAMES)
def colors(request, tmp_path):
    return write(tmp_path, request.param, [png(color) for color in COLORS])


@pytest.fixture
def inflated(monkeypatch):
    """Bytes that were inflated, one entry each time."""
    found = []
    real = compression._Inflater.readinto

    def counted(self, buffer):
        found.append(real(self, buffer))
        return found[-1]

    monkeypatch.setattr(compression._Inflater, "readinto", counted)
    return found


def work(output, shard, rows=7, memory=None):
    """Reports and notes of one bundle, planned as a run plans it."""
    doing = _ReadAndEmbed(ReadOptions(), EmbedOptions(ImageOptions(image_size=(8, 8)), 4))
    commit = _CommitUnit(CommitUnits(FakeModel(ChannelMeans()), str(output), doing, PartOptions()))
    return list(one_bundle(commit, _cut(shard, rows, OPTIONS, memory, True, True)))


def rows_in(output):
    tables = [part_files.read_table(uri) for _, uri in part_files.list_parts(f"{output}/embeddings")]
    return {row["key"]: row["embedding"] for table in tables for row in table.to_pylist()}


def vectors_in(output):
    rows = rows_in(output)
    return [rows[key] for key in sorted(rows, key=lambda key: int(key.rpartition("#")[2].removesuffix(".png")))]


def test_a_shard_is_inflated_once_from_its_plan_to_its_parts(colors, inflated, tmp_path):
    shard, size = colors
    reports = work(tmp_path / "out", shard)
    assert [report.images for report in reports] == [7, 7, 7, 7, 7, 5]
    assert sum(inflated) == size
    np.testing.assert_array_equal(vectors_in(tmp_path / "out"), COLORS)


def test_units_that_are_committed_are_not_worked_again(colors, tmp_path):
    shard, _ = colors
    work(tmp_path / "out", shard)
    parts = [uri for _, uri in part_files.list_parts(f"{tmp_path}/out/embeddings")]
    for number in (0, 3, 5):
        (tmp_path / parts[number]).unlink()
    reports = work(tmp_path / "out", shard)
    assert sum(report.skipped for report in reports if isinstance(report, UnitReport)) == 3
    np.testing.assert_array_equal(vectors_in(tmp_path / "out"), COLORS)


@pytest.mark.parametrize("most", [0, 1, 20_000, 40_000])
def test_a_full_disk_costs_time_and_no_record(colors, most, inflated, opened, tmp_path, monkeypatch):
    class Bounded(spool.Spool):
        def __init__(self):
            super().__init__(512, most)

    monkeypatch.setattr(compression, "_CHUNK", 256)
    monkeypatch.setattr(uncut_shards, "Spool", Bounded)
    shard, size = colors
    reports = work(tmp_path / "out", shard, 1)
    assert [report.images for report in reports] == [1] * COUNT
    np.testing.assert_array_equal(vectors_in(tmp_path / "out"), COLORS)
    assert sum(inflated) <= 5 * size
    assert len(opened) < COUNT / 2


def test_no_file_stays_open(colors, tmp_path, monkeypatch):
    spools = []

    class Known(spool.Spool):
        def __init__(self):
            super().__init__(512)
            spools.append(self)

    monkeypatch.setattr(uncut_shards, "Spool", Known)
    shard, _ = colors
    work(tmp_path / "out", shard)
    work(tmp_path / "out", shard)
    gc.collect()
    assert len(spools) == 2
    assert not any(one._files for one in spools)


@pytest.fixture(params=["tar", "tfrecord"])
def group(request, tmp_path):
    """Small shards of 1 to 9 images, all compressed but one, one of them cut short and one without a record."""
    shards = []
    for number, count in enumerate((3, 9, 1, 0, 5, 4, 8, 2)):
        name = f"{number}.{request.param}.gz"
        shard, _ = write(tmp_path, name, [png((number, index, 7)) for index in range(count)])
        path = tmp_path / name
        if number == 4:
            path.write_bytes(gzip.decompress(path.read_bytes()))
        if number == 5:
            path.write_bytes(path.read_bytes()[:-40])
        shards.append(shard_at(path, shard.format))
    return ShardGroup(tuple(shards))


@pytest.mark.parametrize("rows", [1, 4, 7, 1000])
def test_a_group_of_small_shards_gives_what_it_gives_when_it_is_cut_before(group, rows, opened):
    before = list(cut_shard(group, rows, OPTIONS))
    expected = [list(read_records(unit, OPTIONS)) for unit in before if isinstance(unit, WorkUnit)]
    opened.clear()
    found = list(uncut(group, rows).units())
    assert found == before
    assert [list(read_records(unit, OPTIONS)) for unit in found if isinstance(unit, WorkUnit)] == expected
    assert {uri.rpartition("/")[2][0] for uri in opened} <= {"4"}, "the plain one is read from where it lies"


def test_a_group_is_inflated_once_from_its_plan_to_its_parts(group, inflated, tmp_path):
    size = sum(len(gzip.decompress(path.read_bytes())) for path in tmp_path.glob("*.gz") if path.name[0] not in "45")
    work(tmp_path / "out", group, 6)
    assert size <= sum(inflated) <= size + len(gzip_content(tmp_path, "5"))
    rows = [tuple(vector) for vector in rows_in(tmp_path / "out").values()]
    whole = [(number, index, 7) for number, count in enumerate((3, 9, 1, 0, 5, 0, 8, 2)) for index in range(count)]
    assert sorted(row for row in rows if row[0] != 5) == whole


def gzip_content(folder, name):
    """What a stream that is cut short inflates to."""
    (path,) = folder.glob(f"{name}.*.gz")
    return zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(path.read_bytes())


@pytest.mark.parametrize("most", [0, 2000, 4000])
def test_a_group_for_which_the_disk_has_no_room_loses_nothing(group, most, tmp_path, monkeypatch):
    class Bounded(spool.Spool):
        def __init__(self):
            super().__init__(512, most)

    work(tmp_path / "roomy", group, 6)
    monkeypatch.setattr(uncut_shards, "Spool", Bounded)
    work(tmp_path / "out", group, 6)
    expected = rows_in(tmp_path / "roomy")
    assert len(expected) >= 28
    assert rows_in(tmp_path / "out") == expected


def test_of_a_group_one_shard_is_looked_at(group, monkeypatch):
    looks = []
    real = storage.open_read

    def counted(uri, version=None):
        looks.append(uri)
        return real(uri, version)

    monkeypatch.setattr(storage, "open_read", counted)
    uncut(group)
    assert len(looks) == 1


def test_of_a_plain_shard_the_memory_is_asked_once(tmp_path, monkeypatch):
    """It is a request where it lies in a bucket."""
    monkeypatch.setattr(CutMemory, "is_worthwhile", lambda *_: True)
    asked = []
    recall = CutMemory.recall

    def counted(self, shard):
        asked.append(shard)
        return recall(self, shard)

    monkeypatch.setattr(CutMemory, "recall", counted)
    write_tar(tmp_path / "a.tar", [(f"{index}.png", one) for index, one in enumerate(images(COUNT))])
    shard = shard_at(tmp_path / "a.tar", InputFormat.WEBDATASET)
    units = list(cut_unless_compressed(shard, 7, OPTIONS, CutMemory(str(tmp_path / "cuts"), 7)))
    assert units == list(cut_shard(shard, 7, OPTIONS))
    assert len(asked) == 1
