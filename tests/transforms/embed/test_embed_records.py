import datetime
import decimal
from collections.abc import Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, GlobalWindows, IntervalWindow, SlidingWindows, TimestampedValue

from tests.support.extracting import extract
from tests.support.fakes import FakeModel
from tests.transforms.embed.test_embed_units import png
from transforms.core.errors import ImagebeamError
from transforms.core.types import Failure, Record, Stage
from transforms.embed.embed_records import EmbedRecords, as_record, failure_dict
from transforms.images.decode import ImageOptions
from transforms.models.config import EmbedderConfig
from transforms.models.staged import stage_model
from transforms.parts.schemas import FAILURES_SCHEMA
from transforms.runs.read_embeddings import ReadEmbeddings


def test_every_element_is_a_row_or_a_failure():
    elements: list[object] = [(f"k{index}", png((index, 2 * index, 7))) for index in range(20)]
    elements += [
        ("bad", b"no image"),
        {"key": "rich", "data": png((1, 2, 3)), "label": "cat", "camera": "x", "uri": "u"},
    ]
    with beam.Pipeline("FnApiRunner") as pipeline:
        transform = EmbedRecords(FakeModel(), batch_size=4, images=ImageOptions(image_size=(8, 8)))
        rows, failures = pipeline | beam.Create(elements) | transform
        expected = [(f"k{index}", None, [index, 2 * index, 7.0]) for index in range(20)] + [("rich", "cat", [1, 2, 3])]
        found = rows | beam.Map(lambda row: (row["key"], row["label"], row["embedding"]))
        assert_that(found, equal_to(expected), "rows")
        kinds = failures | beam.Map(lambda row: (row["key"], row["stage"], row["error_type"]))
        assert_that(kinds, equal_to([("bad", "decode", "not_an_image")]), "failures")
        extras = (
            rows | beam.Filter(lambda row: row["key"] == "rich") | beam.Map(lambda row: (row["camera"], row["uri"]))
        )
        assert_that(extras, equal_to([("x", "u")]), "extras")


def test_failures_have_the_columns_of_a_run():
    failure = Failure("k", "u", Stage.EMBED, "MemoryError", "no room", "0" * 64, retryable=True)
    assert pa.Table.from_pylist([failure_dict(failure)], FAILURES_SCHEMA).to_pylist() == [failure_dict(failure)]
    assert list(failure_dict(failure)) == FAILURES_SCHEMA.names


@pytest.mark.parametrize(
    ("windows", "starts"),
    [
        (GlobalWindows(), lambda second: [None]),
        (FixedWindows(10), lambda second: [second // 10 * 10]),
        (SlidingWindows(10, 5), lambda second: [second // 5 * 5 - 5, second // 5 * 5]),
    ],
)
def test_windows_and_timestamps_are_kept(windows, starts):
    """Also of equal images and keys, with failures among them."""
    seconds = range(0, 40, 3)
    elements = [("key", b"no image" if second % 4 == 3 else png((second % 2, 0, 0))) for second in seconds]
    bad, sound = (
        [(second, start) for second in seconds if (second % 4 == 3) == is_bad for start in starts(second)]
        for is_bad in (True, False)
    )

    def when(_, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        return timestamp.micros // 10**6, int(window.start) if isinstance(window, IntervalWindow) else None

    with beam.Pipeline("FnApiRunner") as pipeline:
        transform = EmbedRecords(FakeModel(), batch_size=4, images=ImageOptions(image_size=(8, 8)))
        rows, failures = (
            pipeline
            | beam.Create(list(zip(seconds, elements, strict=True)))
            | beam.MapTuple(lambda second, element: TimestampedValue(element, second))
            | beam.WindowInto(windows)
            | transform
        )
        assert_that(
            rows | "When rows" >> beam.Map(when) | "All rows" >> beam.WindowInto(GlobalWindows()),
            equal_to(sound),
            "rows",
        )
        assert_that(
            failures | "When failures" >> beam.Map(when) | "All failures" >> beam.WindowInto(GlobalWindows()),
            equal_to(bad),
            "failures",
        )


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", None, True])
def test_impossible_batch_sizes_are_refused(size):
    with pytest.raises(ImagebeamError, match=r"batch_size is .*at least 1.*Received"):
        EmbedRecords(FakeModel(), batch_size=size, images=ImageOptions(image_size=(8, 8)))


@pytest.mark.parametrize(
    "name", ["width", "height", "sha256", "embedding", "embedding_block1_pool", "Label", "URI", "SHA256"]
)
def test_further_columns_take_no_name_of_the_output(name):
    with pytest.raises(ImagebeamError, match=f"{name!r}"):
        as_record({"key": "d", "data": b"", name: "mine"})
    with pytest.raises(ImagebeamError, match=f"{name!r}"):
        as_record(Record("d", "u", b"", None, {name: "mine"}))


def test_own_model_embeds_records(tmp_path):
    import keras

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3)(image))
    model.save(tmp_path / "own.keras")
    config = EmbedderConfig(str(tmp_path / "own.keras"))
    staged = stage_model(config, str(tmp_path / "model"))
    plain = model(np.full((1, 8, 8, 3), (9, 8, 7), "float32")).numpy().mean(axis=(1, 2))[0]
    for given in (config, staged):
        with beam.Pipeline("FnApiRunner") as pipeline:
            rows, _ = pipeline | beam.Create([("key", png((9, 8, 7)))]) | EmbedRecords(given)
            assert_that(
                rows | beam.Map(lambda row: row["embedding"]),
                lambda found: np.testing.assert_allclose(found, [plain], rtol=1e-5, atol=1e-5),
            )


@pytest.mark.parametrize("element", ["key", ("key", "text"), {"key": "k"}, {"key": 5, "data": b""}, None])
def test_other_elements_are_refused(element):
    with pytest.raises(TypeError, match="EmbedRecords takes"):
        as_record(element)


def test_read_embeddings_gives_the_written_rows(source, output):
    assert extract(source, output, "--embedding_dtype", "float16") == 0
    (source / "extra.parquet").touch()

    def check(rows):
        assert len(rows) == len({row["key"] for row in rows}) == 12
        assert all(isinstance(row["embedding"][0], float) and len(row["embedding"]) == 64 for row in rows)
        assert np.isfinite([row["embedding"] for row in rows]).all()

    with beam.Pipeline("FnApiRunner") as pipeline:
        assert_that(pipeline | ReadEmbeddings(str(output)), check)
    with beam.Pipeline("FnApiRunner") as pipeline:
        keys = pipeline | ReadEmbeddings(str(output), columns=["key"])
        assert_that(keys, lambda rows: all(list(row) == ["key"] for row in rows) or pytest.fail("more columns"))
    with beam.Pipeline("FnApiRunner") as pipeline:
        rows = pipeline | ReadEmbeddings(str(output), as_rows=True)
        label, embedding = (dict(rows.element_type._fields)[name] for name in ("label", "embedding"))
        assert (label, embedding) == (str | None, Sequence[float])
        widths = rows | beam.Select("key", "width") | beam.Map(lambda row: (row.key, row.width))
        assert_that(widths, lambda found: len(found) == 12 or pytest.fail(str(found)))
    (output / "manifest.json").unlink()
    with pytest.raises(Exception, match="no finished run"), beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | ReadEmbeddings(str(output))


def test_rows_with_a_schema_hold_what_the_dicts_hold(tmp_path):
    kept = {
        "taken": pa.array([None, datetime.datetime(2020, 1, 1)], pa.timestamp("us")),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "tags": [["x", None], None],
        "about": [{"a": 1}, None],
        "big": pa.array([2**63 + 1, None], pa.uint64()),
        "flag": [True, None],
    }
    table = pa.table({"image": [png((1, 2, 3)), png((3, 2, 1))], **kept, "a b": [1.5, None]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert extract(tmp_path / "in.parquet", tmp_path / "out", "--keep_columns", ",".join([*kept, "a b"])) == 0
    columns = ["key", *kept, "embedding"]
    (part,) = (tmp_path / "out" / "embeddings").iterdir()
    expected = pq.read_table(part).select(columns).to_pylist()

    def check(found):
        assert sorted(found, key=lambda row: str(row["key"])) == expected

    with beam.Pipeline("FnApiRunner") as pipeline:
        rows = pipeline | ReadEmbeddings(str(tmp_path / "out"), columns, as_rows=True) | beam.Reshuffle()
        assert_that(rows | beam.Map(lambda row: {name: getattr(row, name) for name in columns}), check)
    with pytest.raises(ImagebeamError, match="'a b'"), beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | ReadEmbeddings(str(tmp_path / "out"), as_rows=True)
