import errno
import gc
import random
import tempfile

import pytest

from transforms.readers.spool import Spool
from transforms.storage.retry import MachineError

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


def test_a_full_disk_is_the_machines_fault(monkeypatch):
    class Full:
        def seek(self, place):
            return place

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(MachineError, match=rf"{tempfile.gettempdir()}.*No space left.*TMPDIR"):
        Spool().append(memoryview(b"x"))
