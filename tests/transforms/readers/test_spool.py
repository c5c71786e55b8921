import errno
import gc
import io
import random
import shutil
import tempfile
from types import SimpleNamespace

import pytest

from transforms.readers.spool import SEGMENT as SEGMENT_OF_A_RUN
from transforms.readers.spool import Spool

SEGMENT = 100


def written(spool, size, seed=0):
    """Append so much, in pieces of many lengths; what was appended."""
    source = random.Random(seed)
    data = source.randbytes(size)
    rest = memoryview(data)
    while rest:
        length = source.randrange(1, 250)
        spool.append(rest[:length])
        rest = rest[length:]
    return data


@pytest.mark.parametrize("offset", [0, 1, 99, 100, 101, 950])
def test_a_range_gives_what_follows_its_offset(offset):
    spool = Spool(SEGMENT)
    data = written(spool, 1000)
    stream = spool.range(offset).open()
    stream.seek(offset)
    assert stream.read(7) == data[offset : offset + 7]
    assert stream.tell() == offset + 7
    assert stream.read() == data[offset + 7 :]
    spool.finish()


def test_what_is_appended_later_can_be_read_too():
    spool = Spool(SEGMENT)
    first = written(spool, 150)
    stream = spool.range(0).open()
    assert stream.read(1000) == first
    second = written(spool, 333, seed=1)
    assert stream.read(1000) == second
    spool.finish()


def test_contents_of_several_shards_do_not_run_into_each_other():
    spool = Spool(SEGMENT)
    contents, streams = [], []
    for number, size in enumerate((150, 0, 333, 70)):
        spool.begin()
        contents.append(written(spool, size, seed=number))
        streams.append(spool.range(size // 2).open())
    for content, stream in zip(contents, streams, strict=True):
        stream.seek(len(content) // 2)
        assert stream.read(1000) == content[len(content) // 2 :]
        assert stream.read(1) == b""
    assert len(spool._files) == 6
    del stream, streams
    gc.collect()
    spool.begin()
    assert sorted(spool._files) == [5], "what is appended next lies there"
    spool.finish()
    assert not spool._files


def test_files_go_as_soon_as_no_range_needs_them():
    spool = Spool(SEGMENT)
    written(spool, 1000)
    first, second = spool.range(0), spool.range(450)
    assert len(spool._files) == 10
    del first
    gc.collect()
    assert sorted(spool._files) == [4, 5, 6, 7, 8, 9]
    third = spool.range(800)
    assert sorted(spool._files) == [4, 5, 6, 7, 8, 9]
    del second
    gc.collect()
    assert sorted(spool._files) == [8, 9]
    spool.finish()
    stream = third.open()
    stream.seek(800)
    del third
    gc.collect()
    assert len(stream.read()) == 200
    stream.close()
    del stream
    gc.collect()
    assert not spool._files


def full_disk(monkeypatch, spool):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())


def no_file(monkeypatch, spool):
    def refuse(**_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def no_room(monkeypatch, spool):
    monkeypatch.setattr(spool, "_most_files", 2)


@pytest.mark.parametrize("fill", [full_disk, no_file, no_room])
def test_a_full_spool_keeps_what_it_has(monkeypatch, fill):
    spool = Spool(SEGMENT)
    data = written(spool, 2 * SEGMENT)
    stream = spool.range(0).open()
    fill(monkeypatch, spool)
    for data_that_does_not_fit in (b"x", b"y"):
        spool.append(memoryview(data_that_does_not_fit))
    assert spool.is_full
    assert stream.read() == data
    spool.finish()


@pytest.mark.parametrize(("free", "most"), [(1 << 30, 256 << 20), (1 << 50, 32 << 30), (0, 2 * SEGMENT_OF_A_RUN)])
def test_a_spool_leaves_most_of_the_disk_to_others(monkeypatch, free, most):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert Spool()._most_files * SEGMENT_OF_A_RUN == most
