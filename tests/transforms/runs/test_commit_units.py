import io
import tarfile
import threading
from dataclasses import replace

import apache_beam as beam
import numpy as np
import pytest

from tests.support.fakes import ChannelMeans, FakeModel
from tests.support.plain_runs import one_bundle
from tests.transforms.embed.test_embed_units import png
from transforms.core.formats import InputFormat
from transforms.embed.embed_units import EmbedOptions, EmbedUnits, _ReadAndEmbed
from transforms.images.decode import ImageOptions
from transforms.inputs.plan import cut_shard, plan
from transforms.parts import part_files
from transforms.parts.part_files import PartOptions
from transforms.readers import image_files
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListUnit, ShardUnit
from transforms.runs.commit_units import CommitUnits, _CommitUnit
from transforms.runs.manifest import UnitReport

WAIT = 60.0
"""Seconds that a test waits for what must come."""


def write_images(folder, colors):
    for number, color in enumerate(colors):
        (folder / f"{number:03d}.png").write_bytes(png(color))
    return folder


def units_of(folder, rows):
    found = plan([str(folder)], InputFormat.FILES, 1000)
    refs = [ref for unit in found if isinstance(unit, ListUnit) for ref in unit.refs]
    starts = range(0, len(refs), rows)
    return [ListUnit(InputFormat.FILES, tuple(refs[start : start + rows]), start) for start in starts]


def commit_unit(output, model=None, batch_size=4):
    work = _ReadAndEmbed(ReadOptions(), EmbedOptions(ImageOptions(image_size=(8, 8)), batch_size))
    return _CommitUnit(CommitUnits(FakeModel(model or ChannelMeans()), str(output), work, PartOptions()))


def run(commit, units):
    """The units' reports, of one bundle."""
    reports = list(one_bundle(commit, units))
    assert all(isinstance(report, UnitReport) for report in reports)
    return [report for report in reports if isinstance(report, UnitReport)]


def rows_by_unit(output):
    parts = [part_files.read_table(uri) for _, uri in part_files.list_parts(f"{output}/embeddings")]
    return {table["key"][0].as_py().rpartition("/")[2]: table for table in parts}


COLORS = [(number, 2 * number, 7) for number in range(20)]


def test_each_unit_is_reported_once_and_has_its_rows(tmp_path):
    units = units_of(write_images(tmp_path, COLORS), 6)
    reports = run(commit_unit(tmp_path / "out"), units)
    assert [report.commit.unit_id for report in reports] == [unit.id for unit in units]
    assert [report.images for report in reports] == [6, 6, 6, 2]
    vectors = [table["embedding"].to_pylist() for _, table in sorted(rows_by_unit(tmp_path / "out").items())]
    np.testing.assert_array_equal(np.concatenate(vectors), COLORS)
    again = run(commit_unit(tmp_path / "out"), units)
    assert all(report.skipped for report in again)
    assert len(again) == 4


class HeldModel(ChannelMeans):
    """Holds the first batch until something has happened."""

    def __init__(self, until):
        super().__init__()
        self.until = until

    def embed(self, images):
        if images[0, 0, 0, 0] == 0:
            assert self.until.wait(WAIT)
        return super().embed(images)


def test_the_next_unit_is_read_while_the_model_works_on_the_one_before(tmp_path, monkeypatch):
    units = units_of(write_images(tmp_path, COLORS[:8]), 4)
    seen = threading.Event()
    read_file = image_files.read_file

    def noticed(ref, limit):
        if ref.key.endswith("007.png"):
            seen.set()
        return read_file(ref, limit)

    monkeypatch.setattr("transforms.readers.read.read_file", noticed)
    monkeypatch.setattr("transforms.embed.embed_units.read_file", noticed)
    reports = run(commit_unit(tmp_path / "out", HeldModel(seen)), units)
    assert [report.images for report in reports] == [4, 4]


def test_files_that_were_missing_are_worked_once_they_are_there(tmp_path):
    """The version of a unit does not tell, where a manifest names objects, or where a file is back as it was."""
    folder = tmp_path / "in"
    folder.mkdir()
    (unit,) = units_of(write_images(folder, COLORS[:6]), 6)
    unit = ListUnit(unit.source, tuple(replace(ref, version=None, size=None) for ref in unit.refs))
    away = tmp_path / "away"
    away.mkdir()
    (folder / "001.png").write_bytes(b"no image")
    for name in ("002.png", "004.png"):
        (folder / name).rename(away / name)
    (report,) = run(commit_unit(tmp_path / "out"), [unit])
    assert report.commit.failures == {"read/missing": 2, "decode/not_an_image": 1}
    assert [one.skipped for one in run(commit_unit(tmp_path / "out"), [unit])] == [True]
    (away / "004.png").rename(folder / "004.png")
    (report,) = run(commit_unit(tmp_path / "out"), [unit])
    assert (report.skipped, report.images) == (False, 1)
    assert report.commit.failures == {"read/missing": 1, "decode/not_an_image": 1}
    (table,) = rows_by_unit(tmp_path / "out").values()
    np.testing.assert_array_equal(table["embedding"].to_pylist(), [COLORS[index] for index in (0, 3, 4, 5)])


def test_a_shard_that_was_missing_is_worked_once_it_is_there(tmp_path):
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for number, color in enumerate(COLORS[:4]):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png(color))
            tar.addfile(member, io.BytesIO(png(color)))
    items = plan([str(shard)], InputFormat.WEBDATASET, 1000)
    units = [unit for item in items for unit in cut_shard(item, 1000, ReadOptions()) if isinstance(unit, ShardUnit)]
    shard.rename(tmp_path / "away")
    (tmp_path / "other").touch()
    assert [one.commit.failures for one in run(commit_unit(tmp_path / "out"), units)] == [{"read/missing": 4}]
    assert [one.skipped for one in run(commit_unit(tmp_path / "out"), units)] == [True]
    (tmp_path / "away").rename(shard)
    assert [one.commit.embedded for one in run(commit_unit(tmp_path / "out"), units)] == [4]


def test_images_that_two_units_have_are_embedded_once(tmp_path):
    write_images(tmp_path, [*COLORS[:10], *COLORS[:10], (200, 0, 0)])
    model = ChannelMeans()
    reports = run(commit_unit(tmp_path / "out", model), units_of(tmp_path, 7))
    assert sum(shape[0] for shape in model.batches) == 11
    assert sum(report.equal for report in reports) == 10
    vectors = [table["embedding"].to_pylist() for _, table in sorted(rows_by_unit(tmp_path / "out").items())]
    np.testing.assert_array_equal(np.concatenate(vectors), [*COLORS[:10], *COLORS[:10], (200, 0, 0)])


def test_a_unit_is_committed_though_the_next_cannot_begin(tmp_path, monkeypatch):
    units = units_of(write_images(tmp_path, COLORS[:8]), 4)
    footer = part_files.read_part_footer

    def refused(uri):
        if units[1].id in uri:
            raise PermissionError("403")
        return footer(uri)

    monkeypatch.setattr("transforms.parts.part_files.read_part_footer", refused)
    with pytest.raises(PermissionError):
        run(commit_unit(tmp_path / "out"), units)
    assert list(rows_by_unit(tmp_path / "out")) == ["000.png"]


class Broken(ChannelMeans):
    def embed(self, images):
        if (images[:, 0, 0, 0] == 5).any():
            raise RuntimeError("the device is gone")
        if (images == 0).all():
            raise RuntimeError("the device is gone")
        return super().embed(images)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_nothing_stays_at_work_when_a_unit_fails(tmp_path, broken):
    colors = [*COLORS[:5], *COLORS[6:13]]
    colors[4 * broken + 1] = (5, 5, 5)
    units = units_of(write_images(tmp_path, colors), 4)
    commit = commit_unit(tmp_path / "out", Broken())
    before = set(threading.enumerate())
    failing = [unit for unit in units if unit is not units[broken]]
    with pytest.raises(RuntimeError, match="device"):
        run(commit, units)
    assert len(rows_by_unit(tmp_path / "out")) == broken
    assert not any(thread.name == "read-ahead" for thread in set(threading.enumerate()) - before)
    # The next bundle is whole: nothing of the broken one is in it.
    assert {report.commit.unit_id for report in run(commit, failing)} == {unit.id for unit in failing}


def test_nothing_stays_at_work_when_what_takes_the_reports_fails(tmp_path):
    write_images(tmp_path, [(number % 256, number // 256, 7) for number in range(300)])
    units = units_of(tmp_path, 60)
    model = FakeModel(ChannelMeans())
    embed = EmbedUnits(
        model, str(tmp_path / "out"), ReadOptions(), EmbedOptions(ImageOptions(image_size=(8, 8)), 4), PartOptions()
    )
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create(units) | embed | beam.Map(lambda report: 1 // 0)
    assert not any(thread.name == "read-ahead" for thread in set(threading.enumerate()) - before)
