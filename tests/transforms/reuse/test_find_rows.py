"""Which rows a unit finds, while the parts that hold them are written over."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from tests.support.fakes import ChannelMeans
from transforms.core.formats import InputFormat
from transforms.core.spec import EmbedderSpec
from transforms.core.types import Row
from transforms.parts import part_files
from transforms.parts.part_files import PartOptions
from transforms.readers.units import ListUnit, RecordRef
from transforms.reuse.find_rows import RowFinder
from transforms.reuse.known_rows import Conditions, Terms

CONDITIONS = Conditions(10**6, accept_truncated=False)
MODEL = ChannelMeans()


def digest(image):
    return hashlib.sha256(image.encode()).hexdigest()


def vector(image, length=3):
    return np.array([ord(image), *range(length - 1)], np.float32)


def unit(*keys):
    return ListUnit(InputFormat.FILES, tuple(RecordRef(key, key, "v1") for key in keys))


class Run:
    """A run's folder, and what finds rows in it."""

    def __init__(self, output, model=MODEL, generation=""):
        self.output, self.model, self.generation = str(output), model, generation
        terms = Terms(model.spec.fingerprint, generation, CONDITIONS, model.dimensions, pa.float32())
        self.finder = RowFinder(self.output, terms, lambda _: [])

    def commit(self, where, images):
        """Write the part of a unit, as `CommitUnits` does it, with one row of each image."""
        (length,) = self.model.dimensions.values()
        rows = [
            Row(ref.key, ref.uri, None, 1, 1, digest(image), {"embedding": vector(image, length)})
            for ref, image in zip(where.refs, images, strict=True)
        ]
        table = part_files.rows_to_table(rows, self.model.dimensions, PartOptions())
        self.finder.keep_replaced(where, table)
        part_files.write_unit(
            *(self.output, where, table, [], self.model.spec),
            generation=self.generation,
            conditions=CONDITIONS.to_dict(),
        )


@pytest.mark.parametrize("before", [["xy"], ["xw", "wy"]])
def test_rows_are_found_though_their_part_is_written_over_meanwhile(tmp_path, before):
    """The unit before is written only after this one was begun."""
    first, second = unit("1", "2"), unit("3", "4")
    for images in before:
        Run(tmp_path).commit(first, images)
    run = Run(tmp_path)
    found = run.finder.of(second)
    run.commit(first, "pq")
    for image in f"{''.join(before)}pq":
        row = found.by_digest(digest(image))
        assert row is not None
        np.testing.assert_array_equal(row.vectors["embedding"], vector(image))
    assert found.by_digest(digest("z")) is None


OTHERS = {
    "another spec": ChannelMeans(EmbedderSpec("Another", "1" * 64, image_size=(8, 8))),
    "another length": ChannelMeans(EmbedderSpec("Another", "1" * 64, image_size=(8, 8)), {"embedding": 5}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_replaced_rows_of_a_run_that_was_overwritten_are_not_taken(tmp_path, other):
    """They stay where a run was killed, and another model's --overwrite begins."""
    first, second = unit("1", "2"), unit("3", "4")
    before = Run(tmp_path, OTHERS[other])
    before.commit(first, "xy")
    before.commit(first, "yz")
    after = Run(tmp_path, generation="1")
    after.commit(first, "ab")
    after.commit(first, "bc")
    found = Run(tmp_path, generation="1").finder.of(second)
    assert [image for image in "abcxyz" if found.by_digest(digest(image)) is not None] == ["a", "b", "c"]
