"""What becomes of the parts that no unit of the input stands for."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes import ChannelMeans
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Row, Stage
from transforms.parts import part_files
from transforms.parts.part_files import PartOptions
from transforms.readers.units import ListUnit, RecordRef
from transforms.runs.manifest import UnitReport
from transforms.runs.settle import settle

MODEL = ChannelMeans()


def commit(output, names, failed=(), generation=""):
    """Commit a unit of a file list; names are keys and uris."""
    unit = ListUnit(InputFormat.FILES, tuple(RecordRef(name, name, "v1") for name in names))
    rows = [
        Row(name, name, None, 1, 1, "0" * 64, {"embedding": np.zeros(3, np.float32)})
        for name in names
        if name not in failed
    ]
    failures = [Failure(name, name, Stage.DECODE, "truncated", "cut") for name in failed]
    table = part_files.rows_to_table(rows, MODEL.dimensions, PartOptions())
    return part_files.write_unit(str(output), unit, table, failures, MODEL.spec, generation=generation)


def report(output, names, failed=(), generation=""):
    return UnitReport(len(names), commit(output, names, failed, generation), skipped=False)


def rows(output):
    return sorted(key for path in output.glob("embeddings/*") for key in pq.read_table(path)["key"].to_pylist())


@pytest.mark.parametrize("prune", [False, True])
def test_rows_of_missing_inputs_stay_until_pruned(tmp_path, prune):
    commit(tmp_path, ["a", "b"])
    commit(tmp_path, ["x", "y"], failed=["y"])
    now = [report(tmp_path, ["a", "c"])]
    settled = settle(now, str(tmp_path), prune=prune)
    assert rows(tmp_path) == (["a", "c"] if prune else ["a", "b", "c", "x"])
    assert (settled.pruned, len(settled.kept)) == ((2, 0) if prune else (0, 2))
    assert set(settled.examples) <= {"b", "x"}
    assert len(list(tmp_path.glob("failures/*"))) == (0 if prune else 1)
    again = settle(now, str(tmp_path), prune=prune)
    assert (again.superseded, again.pruned) == (0, 0)
    assert rows(tmp_path) == (["a", "c"] if prune else ["a", "b", "c", "x"])


def test_reduced_part_has_another_version(tmp_path):
    old = commit(tmp_path, ["a", "b"])
    settle([report(tmp_path, ["a"])], str(tmp_path))
    left = part_files.read_commit(part_files.embeddings_uri(str(tmp_path), old.unit_id))
    assert left is not None
    assert left.embedded == 1
    assert left.version != old.version


def test_input_that_fails_later_keeps_no_old_row(tmp_path):
    commit(tmp_path, ["a", "b"])
    settled = settle([report(tmp_path, ["a", "b", "c"], failed=["b"])], str(tmp_path))
    assert settled.superseded == 1
    assert rows(tmp_path) == ["a", "c"]


def test_an_older_generation_is_replaced_as_a_whole(tmp_path):
    commit(tmp_path, ["a", "b"])
    commit(tmp_path, ["x"])
    settled = settle([report(tmp_path, ["a"], generation="2")], str(tmp_path), generation="2")
    assert (settled.superseded, settled.kept) == (2, ())
    assert rows(tmp_path) == ["a"]


def copy_part(output, unit_id, name="00000000000000ff"):
    """Copy a part, as `cp` does, to the name of another unit."""
    target = output / "embeddings" / part_files.part_name(name)
    target.write_bytes((output / "embeddings" / part_files.part_name(unit_id)).read_bytes())
    return target


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("prune", [False, True])
def test_copy_of_a_part_is_removed_and_the_part_stays(tmp_path, present, prune):
    """Whether the part is of this run's input, or of inputs that are not found any more."""
    other = commit(tmp_path, ["a", "b"])
    copies = [copy_part(tmp_path, other.unit_id, name) for name in ("0" * 16, "f" * 16)]
    reports = [report(tmp_path, ["c"])] + [report(tmp_path, ["a", "b"])] * present
    settled = settle(reports, str(tmp_path), prune=prune)
    assert not any(copy.exists() for copy in copies)
    assert rows(tmp_path) == (["c"] if prune and not present else ["a", "b", "c"])
    assert (settled.superseded, settled.pruned) == (2, int(prune and not present))


def test_renamed_part_is_refused_and_stays(tmp_path):
    """Nothing else holds its rows."""
    other = commit(tmp_path, ["a", "b"])
    copy = copy_part(tmp_path, other.unit_id)
    (tmp_path / "embeddings" / part_files.part_name(other.unit_id)).unlink()
    with pytest.raises(part_files.DamagedPartError, match=part_files.part_name(other.unit_id)):
        settle([report(tmp_path, ["c"])], str(tmp_path))
    assert copy.exists()


def test_parts_whose_names_were_swapped_are_refused_and_stay(tmp_path):
    one, other = (tmp_path / "embeddings" / part_files.part_name(commit(tmp_path, [key]).unit_id) for key in "ab")
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(part_files.DamagedPartError):
        settle([report(tmp_path, ["c"])], str(tmp_path))
    assert rows(tmp_path) == ["a", "b", "c"]


NAMES = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=10)


def cut(names, size):
    return [sorted(names)[start : start + size] for start in range(0, len(names), size)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.integers(1, 4)), min_size=1, max_size=4))
def test_after_any_changes_every_input_ever_seen_has_one_row(tmp_path_factory, runs):
    """Each run sees other files, cut in another way: no row is lost, and none comes twice."""
    output = tmp_path_factory.mktemp("run")
    ever = set()
    for names, size in runs:
        reports = [report(output, unit) for unit in cut(names, size)]
        settle(reports, str(output))
        ever.update(names)
        assert rows(output) == sorted(ever)
    settle(reports, str(output), prune=True)
    assert rows(output) == sorted(names)
