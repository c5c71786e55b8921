"""Units that lie deep in a row group or a compressed shard: read in one go, with the records that each has alone."""

import dataclasses
import gzip
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.plain_runs import _example, _framed
from tests.support.planned import shard_at
from tests.support.shard_files import images, write_tar
from transforms import storage
from transforms.core.formats import InputFormat
from transforms.inputs.plan import chain_units, cut_shard
from transforms.readers import read as read_module
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.units import Note, ShardUnit, UnitChain

OPTIONS = ReadOptions()
COUNT = 100


def write(path, data):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), path, row_group_size=70)
        return InputFormat.PARQUET
    if "tfrecord" in path.name:
        content = b"".join(_framed(_example(one)) for one in data)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return InputFormat.TFRECORD
    write_tar(path, [(f"{index:05d}.jpg", one) for index, one in enumerate(data)])
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return InputFormat.WEBDATASET


@pytest.fixture(params=["a.parquet", "a.tar.gz", "a.tfrecord.gz"])
def shard(request, tmp_path):
    path = tmp_path / request.param
    input_format = write(path, images(COUNT))
    return shard_at(path, input_format)


def units_of(shard, rows=5):
    return [unit for unit in cut_shard(shard, rows, OPTIONS) if not isinstance(unit, Note)]


def flat(items):
    return [unit for item in items for unit in (item.units if isinstance(item, UnitChain) else [item])]


@pytest.fixture
def opened(monkeypatch):
    """(first index, index behind the last) of what readers gave, one entry each time a shard was opened."""
    found = []

    class Counted(read_module._Reading):
        def __init__(self, part, options):
            super().__init__(part, options)
            found.append([part.entry, part.start])
            self.records = self._counted(self.records, found[-1])

        def _counted(self, records, entry):
            for record in records:
                entry[1] += 1
                yield record

    monkeypatch.setattr(read_module, "_Reading", Counted)
    return found


def test_a_chain_gives_the_records_of_its_units(shard):
    units = units_of(shard)
    chained = flat(chain_units(iter(units)))
    assert [(unit.id, unit.version, unit.count) for unit in chained] == [
        (unit.id, unit.version, unit.count) for unit in units
    ]
    for alone, unit in zip(units, chained, strict=True):
        assert list(read_records(unit, OPTIONS)) == list(read_records(alone, OPTIONS))


def test_a_shard_is_read_no_more_than_four_times_over(shard, opened):
    items = list(chain_units(iter(units_of(shard, 1))))
    assert any(isinstance(item, UnitChain) for item in items)
    for unit in flat(items):
        assert len(list(read_records(unit, OPTIONS))) == 1
    assert sum(end - entry for entry, end in opened) <= 4 * COUNT
    assert len(opened) < COUNT / 3


def test_units_of_a_chain_can_be_read_alone_and_in_any_order(shard):
    units = units_of(shard)
    expected = {unit.id: list(read_records(unit, OPTIONS)) for unit in units}
    chained = flat(chain_units(iter(units)))
    random.Random(0).shuffle(chained)
    for unit in chained[::2] + chained:
        assert list(read_records(unit, OPTIONS)) == expected[unit.id]


def test_chain_and_single_units_break_off_at_the_same_record(shard, tmp_path):
    """The shard is cut short after it was planned."""
    units = units_of(shard)
    path = tmp_path / storage.basename(shard.file.uri)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    replaced = shard_at(path, shard.format)
    alone = [ShardUnit((dataclasses.replace(unit.slices[0], shard=replaced),)) for unit in units]
    found = [list(read_records(unit, OPTIONS)) for unit in flat(chain_units(iter(alone)))]
    assert found == [list(read_records(unit, OPTIONS)) for unit in alone]


@pytest.mark.parametrize("name", ["a.tar", "a.tfrecord"])
def test_units_that_can_be_reached_directly_are_not_chained(tmp_path, name):
    input_format = write(tmp_path / name, images(20))
    shard = shard_at(tmp_path / name, input_format)
    items = list(chain_units(iter(units_of(shard, 2))))
    assert len(items) == 10
    assert not any(isinstance(item, UnitChain) for item in items)
