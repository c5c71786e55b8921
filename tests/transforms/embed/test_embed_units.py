import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.support.fakes import ChannelMeans
from transforms.core.types import Failure, Record, Stage
from transforms.embed.embed_units import EmbedOptions, embed_records
from transforms.images.decode import ImageOptions
from transforms.parts import part_files


def png(color, size=(8, 8)):
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


def records(count):
    return [
        Record(f"k{index}", "u", png((index % 256, 2 * index % 256, 7)), label=str(index % 3)) for index in range(count)
    ]


def embed(items, batch_size=4, image_size=(8, 8), embedder=None, **settings):
    options = EmbedOptions(ImageOptions(image_size=image_size), batch_size=batch_size, **settings)
    return embed_records(items, embedder or ChannelMeans(), options)


def test_every_record_becomes_its_row_in_order():
    result = embed(records(30))
    assert [row.key for row in result.rows] == [f"k{index}" for index in range(30)]
    for index, row in enumerate(result.rows):
        np.testing.assert_array_equal(row.vectors["embedding"], [index, 2 * index, 7])
        assert row.label == str(index % 3)
        assert (row.width, row.height) == (8, 8)
    assert result.failures == []


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_the_batch_size_changes_nothing(batch_size):
    expected = embed(records(40), batch_size=4)
    result = embed(records(40), batch_size=batch_size)
    assert [row.key for row in result.rows] == [row.key for row in expected.rows]
    for row, other in zip(result.rows, expected.rows, strict=True):
        np.testing.assert_array_equal(row.vectors["embedding"], other.vectors["embedding"])


def test_bad_records_fail_alone_and_in_order():
    items = records(10)
    items[2] = Record("k2", "u", b"")
    items[5] = Failure("k5", "u", Stage.READ, "corrupt", "bad CRC")
    items[9] = Record("k9", "u", png((1, 2, 3))[:40])
    result = embed(items)
    assert [(failure.key, failure.stage, failure.error_type) for failure in result.failures] == [
        ("k2", Stage.DECODE, "empty"),
        ("k5", Stage.READ, "corrupt"),
        ("k9", Stage.DECODE, result.failures[2].error_type),
    ]
    assert [row.key for row in result.rows] == [f"k{index}" for index in (0, 1, 3, 4, 6, 7, 8)]
    assert result.failures[0].sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_images_of_their_own_sizes_are_batched_by_exact_shape():
    sizes = [(10, 20), (30, 10), (10, 20), (12, 20), (30, 10)] * 3
    items = [Record(f"k{index}", "u", png((index, 0, 0), size)) for index, size in enumerate(sizes)]
    embedder = ChannelMeans()
    result = embed(items, batch_size=3, image_size=None, embedder=embedder)
    assert [row.vectors["embedding"][0] for row in result.rows] == list(range(15))
    assert {shape[1:3] for shape in embedder.batches} == {(20, 10), (10, 30), (20, 12)}
    assert max(shape[0] for shape in embedder.batches) == 3


def test_fixed_size_fills_batches_whatever_the_sizes_of_images():
    embedder = ChannelMeans()
    embed(records(8), batch_size=4, image_size=(400, 300), embedder=embedder, pixel_budget=1000)
    assert [shape[0] for shape in embedder.batches] == [4, 4]


class Poisoned(ChannelMeans):
    """Chokes on any batch with an image whose red is 13."""

    def embed(self, images):
        if (images[:, 0, 0, 0] == 13).any():
            raise RuntimeError("bad luck")
        return super().embed(images)


def test_image_that_breaks_the_model_fails_alone():
    result = embed(records(32), batch_size=16, embedder=Poisoned())
    (failure,) = result.failures
    assert (failure.key, failure.stage, failure.error_type) == ("k13", Stage.EMBED, "RuntimeError")
    assert len(result.rows) == 31


def test_two_adjacent_images_that_break_the_model_fail_alone():
    items = records(16)
    items[12] = items[13] = Record("twin", "u", png((13, 0, 0)))
    result = embed(items, batch_size=16, embedder=Poisoned())
    assert [failure.key for failure in result.failures] == ["twin", "twin"]
    assert len(result.rows) == 14


class Broken(ChannelMeans):
    def embed(self, images):
        raise RuntimeError("the device is gone")


def test_batch_that_fails_whole_stops_the_unit():
    with pytest.raises(RuntimeError, match="the device is gone"):
        embed(records(8), embedder=Broken())


def test_lost_device_stops_the_unit():
    """The last image of a unit, batches of one, and images of their own sizes are batches of one image."""
    for settings in ({"batch_size": 1}, {"batch_size": 4}, {"image_size": None}):
        with pytest.raises(RuntimeError, match="the device is gone"):
            embed(records(1), embedder=Broken(), **settings)


class Leaving(ChannelMeans):
    """Works for a while."""

    def embed(self, images):
        if len(self.batches) >= 3:
            raise RuntimeError("the device is gone")
        return super().embed(images)


def test_device_lost_while_halving_fails_no_image():
    with pytest.raises(RuntimeError, match="the device is gone"):
        embed(records(16), batch_size=2, embedder=Leaving())


def test_content_and_digest_of_non_images_are_not_disclosed():
    result = embed([Record("k", "u", b"root:x:0:0:root:/root:/bin/bash")])
    (failure,) = result.failures
    assert (failure.error_type, failure.sha256) == ("not_an_image", None)
    assert "root" not in failure.message


class Overflowing(ChannelMeans):
    def embed(self, images):
        vectors = super().embed(images)["embedding"]
        vectors[vectors[:, 0] == 5] = np.inf
        return {"embedding": vectors}


def test_non_finite_vectors_are_failures():
    result = embed(records(8), embedder=Overflowing())
    assert [(failure.key, failure.error_type) for failure in result.failures] == [("k5", "not_finite")]
    assert len(result.rows) == 7


def test_model_calls_are_counted():
    told = []
    options = EmbedOptions(ImageOptions(image_size=(8, 8)), batch_size=4)
    embed_records(records(10), ChannelMeans(), options, lambda images, seconds: told.append((images, seconds)))
    assert [images for images, _ in told] == [4, 4, 2]
    assert all(seconds >= 0 for _, seconds in told)


def test_reading_is_bounded_by_the_batches_ahead():
    drawn = 0

    def endless():
        nonlocal drawn
        for record in itertools.cycle(records(10)):
            drawn += 1
            yield record

    class Stops(ChannelMeans):
        def embed(self, images):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(endless(), batch_size=4, embedder=Stops())
    assert drawn <= 3 * 4 + 2 * 4 + 1  # two batches with the model and the next, and two of the decoder


def test_rows_become_a_table():
    result = embed(records(3))
    table = part_files.rows_to_table(result.rows, {"embedding": 3}, part_files.PartOptions())
    assert table["key"].to_pylist() == ["k0", "k1", "k2"]
