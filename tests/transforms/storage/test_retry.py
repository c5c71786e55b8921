"""What the machine refuses is tried again and marked; what a file holds is final."""

import errno
import io
import os

import pytest

from tests.support.planned import all_of, shard_at, units_in
from tests.support.shard_files import example, images, samples, write_parquet, write_tar, write_tfrecord
from transforms import storage
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record
from transforms.inputs.plan import cut_shard
from transforms.readers.image_files import read_file
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import ListUnit, RecordRef, ShardUnit
from transforms.storage import ReplacedError, retry
from transforms.storage.retry import MachineError, is_machine_fault, is_retryable, persist

OPTIONS = ReadOptions()
COUNT = 20


@pytest.fixture
def away(monkeypatch):
    """Call with a number: so many further reads of files fail as a lost disk's do."""
    left = 0
    opened, read = storage.open_read, storage.read_bytes

    def set_left(count):
        nonlocal left
        left = count

    def fail():
        nonlocal left
        if left > 0:
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), "x")

    class Flaky(io.BufferedReader):
        def read(self, size=-1, /):
            fail()
            return super().read(size)

    def open_read(uri, version=None):
        fail()
        opened(uri, version).close()
        return Flaky(open(uri, "rb", buffering=0))

    def read_bytes(uri, version=None):
        fail()
        return read(uri, version)

    monkeypatch.setattr(storage, "open_read", open_read)
    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    return set_left


@pytest.mark.parametrize(
    ("error", "machine", "retryable"),
    [
        (PermissionError(errno.EACCES, "no"), True, True),
        (OSError("gs://b/x: 503"), True, True),
        (OSError(errno.EIO, "disk"), True, True),
        (OSError(errno.ENOSPC, "full"), True, True),
        (TimeoutError(), True, True),
        (ConnectionResetError(), True, True),
        (MemoryError(), True, True),
        (ReplacedError("x"), False, True),
        (FileNotFoundError("gs://b/x does not exist"), False, False),
        (IsADirectoryError(errno.EISDIR, "x"), False, False),
        (OSError(errno.EINVAL, "not a regular file"), False, False),
        (ValueError("embedded null byte"), False, False),
    ],
)
def test_errors_are_blamed_on_machine_or_content(error, machine, retryable):
    assert (is_machine_fault(error), is_retryable(error)) == (machine, retryable)


def test_a_file_is_absent_only_where_its_folder_holds_others(tmp_path):
    (tmp_path / "mount").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "1.jpg").touch()
    (tmp_path / "full" / "link.jpg").symlink_to("../gone/2.jpg")
    (tmp_path / "full" / "other.jpg").symlink_to("2.jpg")
    expected = {
        "full/2.jpg": False,  # Deleted.
        "full/other.jpg": False,
        "mount/1.jpg": True,  # A mount that is away leaves an empty folder.
        "gone/1.jpg": True,
        "full/link.jpg": True,
    }
    for name, retryable in expected.items():
        (found,) = all_of(Failure, [read_file(RecordRef("k", f"{tmp_path}/{name}"))])
        assert (found.error_type, found.retryable) == ("missing", retryable), name


def test_read_that_fails_twice_is_retried(tmp_path, away):
    (tmp_path / "x").write_bytes(b"x")
    away(2)
    (record,) = all_of(Record, [read_file(RecordRef("k", f"{tmp_path}/x"))])
    assert record.data == b"x"


def test_short_outage_is_retryable_and_a_long_one_stops_the_job(tmp_path, away, monkeypatch):
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(retry, "STOP_AFTER", 4)
    refs = tuple(RecordRef(str(number), f"{tmp_path}/x") for number in range(6))
    away(9)  # Three records of three attempts.
    items = [read_file(ref) for ref in refs]
    assert [isinstance(item, Failure) and item.retryable for item in items] == [True] * 3 + [False] * 3
    away(1_000)
    with pytest.raises(MachineError, match="Input/output error"):
        list(read_records(ListUnit(InputFormat.MANIFEST, refs), OPTIONS))


def test_hopeless_retries_are_given_up(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(retry, "WAITS", (1.0, 2.0))
    monkeypatch.setattr("transforms.storage.retry.time.sleep", slept.append)
    monkeypatch.setattr(retry, "STOP_AFTER", 1_000)

    def denied():
        raise PermissionError("no")

    for _ in range(100):
        with pytest.raises(PermissionError):
            persist(denied)
    assert sum(slept) <= retry.BUDGET_SECONDS


def write(tmp_path, kind):
    if kind == "tfrecord":
        return write_tfrecord(tmp_path / "x", [example(image=data) for data in images(COUNT)])
    if kind == "webdataset":
        return write_tar(tmp_path / "x", samples(COUNT))
    return write_parquet(tmp_path / "x", {"image": images(COUNT)}, 7)


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset", "parquet"])
@pytest.mark.parametrize("after", [0, 1, 3, 9])
def test_reading_resumes_where_it_broke_off(tmp_path, away, kind, after):
    path = write(tmp_path, kind)
    shard = shard_at(path, kind)
    units = units_in(cut_shard(shard, 7, OPTIONS))
    whole = [item for unit in units for item in read_records(unit, OPTIONS)]
    away(2)
    assert list(cut_shard(shard, 7, OPTIONS)) == units
    found = []
    for unit in units:
        records = read_records(unit, OPTIONS)
        for number, item in enumerate(records):
            found.append(item)
            if number == after:
                away(2)
    assert found == whole


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset", "parquet"])
def test_an_outage_makes_the_rest_of_a_unit_retryable(tmp_path, away, kind):
    path = write(tmp_path, kind)
    shard = shard_at(path, kind)
    unit, *_ = all_of(ShardUnit, cut_shard(shard, 7, OPTIONS))
    away(10_000)
    items = all_of(Failure, read_records(unit, OPTIONS))
    assert len(items) == unit.count
    assert all(item.retryable for item in items)
    (unread,) = [item.unread for item in items if item.unread]
    assert (unread.uri, unread.records) == (path, unit.count)
    (planned,) = all_of(ShardUnit, cut_shard(shard, 7, OPTIONS))
    assert planned.slices[0].retryable
    assert planned.slices[0].unread is not None
    assert planned.slices[0].unread.bytes == os.stat(path).st_size
