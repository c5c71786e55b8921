"""A sample is uniform, always the same, and says what its records are."""

import gzip
import json
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.image_samples import encode, picture
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record, Stage
from transforms.embed.sampling import READ_THROUGH, Reservoir, draw_images, look_at
from transforms.images.decode import ImageOptions
from transforms.inputs.plan import cut_shard
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListUnit, RecordRef, Shard, ShardSlice, ShardUnit
from transforms.storage.files import FileInfo

OPTIONS = ImageOptions(image_size=(8, 8))


@pytest.fixture
def reads(monkeypatch):
    """Every reading of a unit, instead of files: [unit, records read so far]."""
    found = []

    def read(unit, options):
        found.append([unit, 0])
        start = unit.start if isinstance(unit, ListUnit) else unit.slices[0].start
        place = len(found) - 1
        for index in range(unit.count):
            found[place][1] += 1
            uri = unit.refs[index].uri if isinstance(unit, ListUnit) else unit.slices[0].shard.file.uri
            yield Record(f"{uri}#{start + index}", uri, b"")

    monkeypatch.setattr("transforms.embed.sampling.read_records", read)
    return found


def shard_unit(name, count, start=0):
    shard = Shard(FileInfo(name, 1, "1"), InputFormat.TFRECORD)
    return ShardUnit((ShardSlice(shard, start, count),))


def list_unit(start, count):
    refs = tuple(RecordRef(f"k{index}", f"f{index}") for index in range(start, start + count))
    return ListUnit(InputFormat.FILES, refs, start)


def picked(units, size):
    reservoir = Reservoir(size)
    for unit in units:
        reservoir.add(unit)
    return [record.key for record in reservoir.records(ReadOptions())]


def test_a_sample_as_large_as_the_input_is_the_input(reads):
    units = [shard_unit("a", 7), list_unit(0, 5), shard_unit("a", 3, start=7), list_unit(5, 1)]
    for size in (16, 1000):
        keys = picked(units, size)
        assert sorted(key for key in keys if key.startswith("a")) == [f"a#{index}" for index in range(10)]
        assert sorted(key.split("#")[0] for key in keys if key.startswith("f")) == [f"f{index}" for index in range(6)]


def test_sample_has_its_size_no_repeats_and_is_reproducible(reads):
    units = [shard_unit(f"s{index}", 1 + 37 * index % 91) for index in range(60)]
    keys = picked(units, 100)
    assert len(set(keys)) == len(keys) == 100
    assert picked(units, 100) == keys


def test_every_record_is_as_likely_as_any_other(reads):
    # 40 samples of 50 of 1,000 files, told apart by how many files stand before them.
    counts: Counter[int] = Counter()
    for before in range(0, 4000, 100):
        units = [list_unit(0, before)] if before else []
        reservoir = Reservoir(50)
        for unit in [*units, list_unit(before, 1000)]:
            reservoir.add(unit)
        keys = [int(record.uri[1:]) for record in reservoir.records(ReadOptions())]
        counts.update((index - before) // 100 for index in keys if index >= before)
    assert set(counts) == set(range(10))
    expected = counts.total() / 10
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 27.9  # 9 degrees of freedom: a uniform sample exceeds it once in a thousand times


def test_shards_are_not_read_through_for_a_few_records(reads):
    picked([shard_unit(f"s{index}", 2048) for index in range(300)], 100)
    assert len(reads) > 60
    assert sum(count for _, count in reads) <= READ_THROUGH * 100


def test_any_record_of_a_unit_may_be_picked(reads):
    places = [int(key.split("#")[1]) for key in picked([shard_unit("a", 2000)], 100)]
    assert min(places) < 200
    assert max(places) > 1800


def test_an_empty_input_gives_an_empty_sample(reads):
    assert picked([], 10) == []


def test_sample_describes_the_records():
    records: list[Record | Failure] = [
        Record("a", "a", encode(picture(24, 32), "JPEG")),
        Record("b", "b", encode(picture(50, 16), "PNG")),
        Record("c", "c", b""),
        Failure("d", "d", Stage.READ, "missing", "gone"),
        Record("e", "e", encode(picture(9, 9), "PNG")),
    ]
    sample = look_at(records, OPTIONS, images=2, pixels=10_000)
    assert sample.records == 5
    assert sample.sizes == [(32, 24), (16, 50), (9, 9)]
    assert sample.formats == {"JPEG": 1, "PNG": 2}
    assert sample.failures == {"decode/empty": 1, "read/missing": 1}
    assert sample.failure_rate == 0.4
    assert [image.shape for image in sample.images] == [(8, 8, 3)] * 2
    assert 0 < sample.decode_seconds < 10


@pytest.mark.parametrize(("pixels", "kept"), [(0, 1), (64, 1), (3 * 64, 3)])
def test_sample_keeps_one_image_more_than_the_pixel_limit(pixels, kept):
    records = [Record(str(index), "", encode(picture(), "PNG")) for index in range(5)]
    assert len(look_at(records, OPTIONS, images=32, pixels=pixels).images) == kept


def test_sample_without_a_readable_image():
    sample = look_at([Record("a", "a", b"no image")], OPTIONS, images=1, pixels=64)
    assert (sample.records, sample.sizes, sample.images, sample.failure_rate) == (1, [], [], 1.0)


def estimate(tmp_path, pattern, input_format=None, size=8):
    drawn = draw_images([str(tmp_path / pattern)], input_format, ReadOptions(), OPTIONS, size)
    assert len(drawn.images) == min(size, drawn.records)
    return drawn.records


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "csv.gz"])
@pytest.mark.parametrize("keyed", [False, True])
def test_images_of_manifests_are_counted(tmp_path, ending, keyed):
    names = write_images(tmp_path, 120)
    for which, part in (("a", names[:50]), ("b", names[50:])):
        write_list(tmp_path / f"{which}.{ending}", {"uri": part, **({"key": part} if keyed else {})})
    assert estimate(tmp_path, f"*.{ending}", InputFormat.MANIFEST) == 120


def test_images_that_a_parquet_column_names_are_counted(tmp_path):
    names = write_images(tmp_path, 120)
    for index in range(0, 120, 3):  # More shards than are drawn from.
        rows = [{"bytes": None, "path": name} for name in names[index : index + 3]]
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{index}.parquet")
    assert estimate(tmp_path, "*.parquet") == 120


@pytest.mark.parametrize("count", [1, 7, 700])
def test_images_of_a_folder_are_counted(tmp_path, count):
    write_images(tmp_path, count)
    assert estimate(tmp_path, "*.png") == count


@pytest.mark.parametrize("shards", [1, 40])
def test_images_of_shards_are_estimated_by_their_bytes(tmp_path, shards):
    names = write_images(tmp_path, 120)
    for shard in range(shards):
        with tarfile.open(tmp_path / f"{shard:02}.tar", "w") as tar:
            for name in names[shard::shards]:
                tar.add(tmp_path / name, name)
    assert 120 <= estimate(tmp_path, "*.tar") <= 3 * 120  # A tar's headers are as large as these images.


def test_images_that_are_not_there_are_not_counted(tmp_path):
    names = write_images(tmp_path, 8)
    write_list(tmp_path / "list.csv", {"uri": [*names, *(f"gone{index}.png" for index in range(8))]})
    assert estimate(tmp_path, "list.csv", size=16) == 8


def test_a_long_manifest_is_not_read_to_its_end(tmp_path, monkeypatch):
    names = write_images(tmp_path, 1)
    write_list(tmp_path / "list.csv", {"uri": names * 100_000})
    cut = Counter[str]()

    def counted(*arguments):
        for unit in cut_shard(*arguments):
            cut[type(unit).__name__] += 1
            yield unit

    monkeypatch.setattr("transforms.embed.sampling.cut_shard", counted)
    assert estimate(tmp_path, "list.csv") == 64 * 512
    assert cut["ListUnit"] <= 64 + 16  # those of the manifest, and those that are drawn from


def write_images(folder, count):
    """Files of about 1,100 bytes; their names."""
    names = [f"{index}.png" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).write_bytes(encode(picture(8, 8), "PNG") + bytes(1000 + index % 7))
    return names


def write_list(path, columns):
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if ".csv" in path.name:
        lines = [",".join(columns), *(",".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
