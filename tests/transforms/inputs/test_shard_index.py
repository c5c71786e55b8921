"""Large shards are walked once, not in every run."""

import json
from pathlib import Path

import pytest

from tests.support.extracting import embeddings, extract, files_of
from tests.support.image_samples import encode, picture
from tests.support.planned import shard_at
from tests.support.shard_files import example, write_tar, write_tfrecord
from transforms.core.formats import InputFormat
from transforms.embed import sampling
from transforms.inputs import shard_index
from transforms.inputs.plan import cut_shard
from transforms.inputs.shard_index import CutMemory
from transforms.readers import tfrecord, webdataset
from transforms.readers.options import ReadOptions

COUNT = 12


@pytest.fixture(autouse=True)
def small_shards_too(monkeypatch):
    monkeypatch.setattr(shard_index, "LEAST_BYTES", 100)


@pytest.fixture
def walked(monkeypatch):
    """The shards that are walked for a run's units, one entry each time; drawing a few images is no such walk."""
    found = []
    for module in (tfrecord, webdataset):

        def cut(stream, rows_per_unit, options, left_out, original=module.cut):
            if rows_per_unit != sampling._DRAWN_UNIT:
                found.append(rows_per_unit)
            return original(stream, rows_per_unit, options, left_out)

        monkeypatch.setattr(module, "cut", cut)
    return found


@pytest.fixture
def memory(tmp_path):
    return CutMemory(str(tmp_path / "out" / "plan"), 5)


@pytest.fixture(params=["a.tfrecord", "a.tfrecord.gz", "a.tar"])
def path(request, tmp_path):
    path = tmp_path / "in" / request.param
    path.parent.mkdir()
    write(path, COUNT)
    return path


def write(path, count):
    """Real images in a shard of the kind that its name tells."""
    images = [encode(picture(20 + index % 7, 30, seed=index), "JPEG") for index in range(count)]
    if path.suffix == ".tar":
        write_tar(path, [(f"{index:05d}.jpg", data) for index, data in enumerate(images)])
    else:
        write_tfrecord(path, [example(image=data) for data in images], "GZIP" if path.suffix == ".gz" else "")


def cut(path, memory):
    kind = InputFormat.WEBDATASET if path.suffix == ".tar" else InputFormat.TFRECORD
    return list(cut_shard(shard_at(path, kind), memory.rows_per_unit, ReadOptions(), memory))


def test_a_shard_is_walked_once(path, memory, walked):
    first = cut(path, memory)
    assert [unit.count for unit in first] == [5, 5, 2]
    assert cut(path, memory) == first
    assert [unit.id for unit in cut(path, memory)] == [unit.id for unit in first]
    assert len(walked) == 1


def test_other_version_or_unit_size_is_walked_again(path, memory, walked):
    cut(path, memory)
    write(path, COUNT + 4)
    assert sum(unit.count for unit in cut(path, memory)) == COUNT + 4
    assert len(list(Path(memory.folder).iterdir())) == 1
    assert [unit.count for unit in cut(path, CutMemory(memory.folder, 16))] == [16]
    assert len(walked) == 3
    cut(path, memory)
    assert len(walked) == 3


def test_unreadable_index_is_remade(path, memory, walked):
    expected = cut(path, memory)
    (file,) = Path(memory.folder).iterdir()
    content = json.loads(file.read_text())
    for broken in ("", "{", "[]", "{}", json.dumps({**content, "cuts": [[1]]}), json.dumps({**content, "cuts": 3})):
        file.write_text(broken)
        assert cut(path, memory) == expected
    assert len(walked) == 7
    assert json.loads(file.read_text()) == content


def test_a_damaged_shard_is_looked_at_every_time(path, memory, walked):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):
        assert cut(path, memory)[-1].slices[0].unread is not None
    assert len(walked) == 2
    assert not Path(memory.folder).exists()


def test_a_shard_that_is_not_cut_to_its_end_is_not_remembered(path, memory):
    kind = InputFormat.WEBDATASET if path.suffix == ".tar" else InputFormat.TFRECORD
    next(cut_shard(shard_at(path, kind), 5, ReadOptions(), memory))
    assert not Path(memory.folder).exists()


def test_tar_with_a_repeated_sample_is_walked_once(tmp_path, memory, walked):
    path = tmp_path / "x.tar"
    write_tar(path, [(name, b"x") for name in ("a.jpg", "b.jpg", "a.jpg", "c.jpg")])
    first = cut(path, memory)
    (unit,) = first
    assert [index for index, _ in unit.slices[0].errors] == [2]
    assert cut(path, memory) == first
    assert len(walked) == 1


def test_small_shard_gets_no_index_file(path, memory, monkeypatch):
    monkeypatch.setattr(shard_index, "LEAST_BYTES", path.stat().st_size + 1)
    cut(path, memory)
    assert not Path(memory.folder).exists()


@pytest.mark.slow
def test_resumed_run_walks_no_shard_again(path, tmp_path, walked):
    output = tmp_path / "out"
    assert extract(path.parent, output) == 0
    before = files_of(output)
    assert len(walked) == 1
    next(output.glob("embeddings/*")).unlink()
    assert extract(path.parent, output) == 0
    assert files_of(output) == before
    assert len(walked) == 1
    write(path, COUNT + 3)
    assert extract(path.parent, output) == 0
    assert len(embeddings(output)) == COUNT + 3
    assert len(walked) == 2
    assert extract(path.parent, output, "--overwrite") == 0
    assert len(walked) == 3
