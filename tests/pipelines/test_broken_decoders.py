"""Runs over images whose decoders crash, hang or take all memory: each costs its own record."""

import numpy as np
import pytest
import tifffile

from tests.support.broken_decoders import broken
from tests.support.extracting import failures
from tests.support.plain_runs import Layout, assert_whole, extract, failed_of, plain
from transforms.images.decode import DECODERS, Decoder
from transforms.images.isolated import decoder_pool
from transforms.images.isolated.decoder_pool import Family
from transforms.images.isolated.isolated_decoder import Isolated
from transforms.images.sniff import Format

LIMITS = ("--max_image_pixels", "10000")


@pytest.fixture(autouse=True)
def may_break(monkeypatch):
    """TIFF is decoded by `tests.support.broken_decoders`, in little time and in processes of the test's own."""
    monkeypatch.setitem(DECODERS, Format.TIFF, Decoder(Isolated("tests.support.broken_decoders:decode"), ()))
    monkeypatch.setattr(decoder_pool, "SECONDS", 2.0)
    monkeypatch.setattr(decoder_pool, "_POOLS", {family: decoder_pool._Pool(family) for family in Family})


def write(folder, ways):
    """Seven sound TIFFs, and one for each way to break among them."""
    folder.mkdir()
    means = {}
    for index in range(7):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 33, 3), dtype=np.uint8)
        path = folder / f"{index}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb")
        means[str(path)] = pixels.mean(axis=(0, 1))
    for index, way in enumerate(ways):
        path = folder / f"{index}-{way}.tif"
        path.write_bytes(broken(way))
        means[str(path)] = None
    return Layout([folder], means, [])


@pytest.mark.parametrize("way", ["abort", "crash", "exit", "sleep", "loop", "grow"])
def test_broken_decoder_costs_one_record(tmp_path, monkeypatch, way):
    monkeypatch.setattr(decoder_pool, "WAIT", 3.0 if way == "sleep" else 15.0)
    layout = write(tmp_path / "in", [way])
    with plain():
        assert extract(layout.patterns, tmp_path / "out", *LIMITS) == 0
    assert_whole(tmp_path / "out", layout)
    ((stage, error_type),) = failures(tmp_path / "out").values()
    assert (stage, error_type) == ("decode", "too_many_pixels" if way == "grow" else "undecodable")


def test_many_broken_decoders_cost_one_record_each(tmp_path):
    layout = write(tmp_path / "in", ["abort", "crash", "exit"] * 6 + ["loop", "grow"])
    with plain():
        assert extract(layout.patterns, tmp_path / "out", *LIMITS) == 0
    assert_whole(tmp_path / "out", layout)


def test_killed_decoder_stops_the_run_without_a_failure_row(tmp_path):
    layout = write(tmp_path / "in", ["killed"])
    with plain():
        assert extract(layout.patterns, tmp_path / "out", *LIMITS) == 1
    assert not failed_of(tmp_path / "out")
