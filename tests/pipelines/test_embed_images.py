"""`imagebeam.EmbedImages` in a pipeline of the user's own does what `imagebeam extract` does."""

from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows, TimestampedValue

import imagebeam
from pipelines.cli import run_job
from pipelines.runtime.embed_images import EmbedImages
from tests.support.extracting import COUNT, WRITERS, embeddings, extract, failures, files_of, manifest, photographs
from tests.support.fakes import FakeModel
from transforms.core.formats import InputFormat
from transforms.core.spec import Pooling
from transforms.embed.embed_units import EmbedOptions
from transforms.images.options import ImageOptions
from transforms.parts.part_files import PartOptions
from transforms.readers.options import ReadOptions
from transforms.runs import lease

SMALL = {
    "model": "VGG16",
    "weights": "random:0",
    "layer": ["block1_pool"],
    "image_size": (32, 32),
    "rows_per_unit": 5,
    "max_failure_rate": 0.5,
}


def embed(output, *patterns, **flags):
    with beam.Pipeline("FnApiRunner") as pipeline:
        manifests = pipeline | beam.Create([*map(str, patterns)]) | EmbedImages(str(output), **{**SMALL, **flags})
        assert_that(manifests, equal_to([f"{output}/manifest.json"]))


@pytest.mark.parametrize("form", ["files", pytest.param("parquet", marks=pytest.mark.slow)])
def test_writes_the_same_folder_as_extract(tmp_path, form):
    images = dict(list(photographs().items())[:14]) | {"broken.jpg": b"no image"}
    (tmp_path / "in").mkdir()
    source = WRITERS[form](tmp_path / "in", images, shards=2)
    embed(tmp_path / "ours", source)
    assert extract(source, tmp_path / "theirs", "--max_failure_rate", "0.5") == 0
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    ours, theirs = manifest(tmp_path / "ours"), manifest(tmp_path / "theirs")
    assert len(failures(tmp_path / "ours")) == 1
    for about in (ours, theirs):
        seconds = [part.pop("model_seconds") for part in about["parts"]]
        assert min(seconds) >= 0 < sum(seconds)  # A unit whose batches overlap with those before it takes none.
    for key in ("totals", "run", "fingerprint", "spec", "weights", "dimensions", "parts"):
        assert ours[key] == theirs[key]


def test_extract_and_embed_images_resume_each_other(source, output):
    patterns = [source / "b", source / "a"]
    assert extract(patterns, output, "--max_failure_rate", "0.5") == 0
    next(output.glob("embeddings/*")).unlink()
    embed(output, *reversed(patterns))
    assert manifest(output)["totals"]["units_skipped"] == 3
    assert extract(patterns, output, "--max_failure_rate", "0.5") == 0
    assert manifest(output)["totals"]["units_skipped"] == 4
    assert len(embeddings(output)) == COUNT


def test_output_of_another_launcher_is_refused(source, output):
    """When the pipeline is built, and when it starts."""
    with lease.hold(str(output)), pytest.raises(imagebeam.ImagebeamError, match="Another run is writing to"):
        embed(output, source)
    assert not list(output.rglob("*"))
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | beam.Create([str(source)]) | EmbedImages(str(output), **SMALL)
    with lease.hold(str(output)), pytest.raises(imagebeam.ImagebeamError, match="Another run is writing to"):
        pipeline.run()
    embed(output, source)
    assert len(embeddings(output)) == COUNT


def test_two_of_one_pipeline_need_two_outputs(source, output):
    pipeline = beam.Pipeline("FnApiRunner")
    patterns = pipeline | beam.Create([str(source)])
    _ = patterns | "One" >> EmbedImages(str(output), **SMALL)
    with pytest.raises(imagebeam.ImagebeamError, match="two EmbedImages of this pipeline"):
        _ = patterns | "Two" >> EmbedImages(f"{output}/", **SMALL)
    _ = patterns | "Three" >> EmbedImages(f"{output}-3", **SMALL)
    _ = beam.Pipeline("FnApiRunner") | beam.Create([str(source)]) | EmbedImages(str(output), **SMALL)


def test_patterns_without_end_are_refused(output):
    ticks = beam.Pipeline("FnApiRunner") | "Ticks" >> PeriodicImpulse()
    with pytest.raises(imagebeam.ImagebeamError, match=r"that come to an end.* Received: an unbounded .*'Ticks"):
        _ = ticks | EmbedImages(str(output), **SMALL)
    assert not output.exists()


def test_train_reads_the_folder(source, output, tmp_path):
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(source.rglob("*.jpg")))
    (source / "list.csv").write_text(f"uri,label\n{rows}")
    embed(output, source / "list.csv")
    flags = ("--embeddings", str(output), "--output", str(tmp_path / "trained"), "--epochs", "1")
    assert run_job("train", [*flags, "--skip_image_classifier", "--validation_split", "0.2"]) == 0


def test_kept_columns_need_their_types(tmp_path):
    with pytest.raises(imagebeam.ImagebeamError, match="camera"):
        EmbedImages(str(tmp_path / "out"), keep_columns=["camera"])
    with pytest.raises(imagebeam.ImagebeamError, match=r"\{NAME: TYPE, \.\.\.\}.*camera"):
        EmbedImages(str(tmp_path / "out"), keep_columns=[("camera", "string")])
    picture = next(iter(photographs().values()))
    pq.write_table(pa.table({"image": [picture] * 3, "camera": ["a", "b", "c"]}), tmp_path / "in.parquet")
    embed(tmp_path / "out", tmp_path / "in.parquet", keep_columns={"camera": "string"}, embedding_dtype="float16")
    (part,) = (tmp_path / "out" / "embeddings").glob("*.parquet")
    table = pq.read_table(part)
    assert table["camera"].to_pylist() == ["a", "b", "c"]
    assert str(table.schema.field("embedding").type.value_type) == "halffloat"


def test_values_reach_the_options():
    transform = EmbedImages(
        "/out", pooling="max", layers=("block1_pool",), image_size=None, input_format="tfrecord", batch_size=7
    )
    assert transform.model_options.pooling is Pooling.MAX
    assert transform.model_options.layers == ("block1_pool",)
    assert transform.model_options.config().size is None
    assert transform.model_options.batch_size == 7
    assert transform.input_options.input_format is InputFormat.TFRECORD


def test_numbers_of_numpy_are_those_of_the_flags(source, output):
    numbers = {"rows_per_unit": np.int64(5), "image_size": np.array([32, 32]), "batch_size": np.int32(4)}
    embed(output, source, **numbers, max_failure_rate=np.float32(0.5))
    before = files_of(output)
    assert extract(source, output, "--max_failure_rate", "0.5") == 0
    assert files_of(output) == before


@pytest.mark.parametrize("elements", [["{}/a"], [()], [("{}/a", 5)]])
def test_plan_units_takes_tuples_of_patterns(source, elements):
    given = [one.format(source) if isinstance(one, str) else one for one in elements]
    with pytest.raises(Exception, match="PlanUnits takes tuples"), beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(given) | imagebeam.PlanUnits()


def test_plan_units_and_embed_units_need_no_more_than_a_model_and_a_folder(source, tmp_path):
    (source / "notes.txt").touch()
    config = imagebeam.EmbedderConfig("VGG16", "random:0", layers=("block1_pool",), image_size=(32, 32))
    model = imagebeam.stage_model(config, str(tmp_path / "model"))
    with beam.Pipeline("FnApiRunner") as pipeline:
        done = pipeline | beam.Create([(str(source),)]) | imagebeam.PlanUnits()
        done = done | imagebeam.EmbedUnits(model, f"file://{tmp_path}/out/")
        records = done | beam.Filter(lambda report: hasattr(report, "commit")) | beam.Map(lambda report: report.records)
        assert_that(records, equal_to([COUNT]))
    assert extract(source, tmp_path / "theirs", "--rows_per_unit", "2048") == 0
    assert embeddings(tmp_path / "out").keys() == embeddings(tmp_path / "theirs").keys()
    for key, vector in embeddings(tmp_path / "theirs").items():
        np.testing.assert_array_equal(embeddings(tmp_path / "out")[key], vector)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"layer": {"block1_pool"}}, "layer is a list, each item a str.*{'block1_pool'}"),
        ({"pooling": "mean"}, "avg, max, flatten"),
        ({"image_sise": (32, 32)}, "image_size"),
        ({"model": "VGG61"}, "VGG16"),
        ({"image_size": (8, 8)}, "32x32"),
        ({"rows_per_unit": 0}, "rows_per_unit"),
        ({"weights": "imagenett"}, "imagenett"),
        ({"input": "x"}, "elements of the input"),
        ({"overwrite": True}, "delete the folder"),
        ({"layer": 5}, "layer is a list, each item a str.*5"),
        ({"layer": [5]}, "layer is a list, each item a str.*5"),
        ({"model": 5}, "model is a str.*5"),
        ({"weights": Path("x.h5")}, "weights is a str.*x.h5"),
        ({"image_size": 5}, "image_size is .*5"),
        ({"batch_size": 2.5}, "batch_size is a whole number.*2.5"),
        ({"batch_size": [1]}, "batch_size is a whole number"),
        ({"max_failure_rate": [1]}, "max_failure_rate is a number"),
        ({"reuse": 5}, "reuse is a list"),
        ({"prune": "yes"}, "prune is True or False.*yes"),
        ({"input_format": 5}, "input_format is one of tfrecord"),
        ({"image_column": 5}, "image_column is a str"),
        ({"engine": True}, "engine is one of auto"),
    ],
)
def test_bad_keyword_is_refused_when_constructed(flags, named):
    with pytest.raises(imagebeam.ImagebeamError, match=named):
        EmbedImages("/out", **flags)


def test_windows_of_the_patterns_are_one_run(source, output):
    with beam.Pipeline("FnApiRunner") as pipeline:
        manifests = (
            pipeline
            | beam.Create([(0, str(source / "a")), (25, str(source / "b"))])
            | beam.MapTuple(lambda second, pattern: TimestampedValue(pattern, second))
            | beam.WindowInto(FixedWindows(10))
            | EmbedImages(str(output), **SMALL)
        )
        assert_that(manifests, equal_to([f"{output}/manifest.json"]))
    assert len(embeddings(output)) == COUNT


def test_windowed_units_are_committed(source, output):
    read = ReadOptions()
    image_options = ImageOptions(image_size=(8, 8))
    with beam.Pipeline("FnApiRunner") as pipeline:
        reports = (
            pipeline
            | beam.Create([(0, (str(source / "a"),)), (25, (str(source / "b"),))])
            | beam.MapTuple(lambda second, patterns: TimestampedValue(patterns, second))
            | beam.WindowInto(FixedWindows(10))
            | imagebeam.PlanUnits(None, 5, read)
            | imagebeam.EmbedUnits(FakeModel(), str(output), read, EmbedOptions(image_options), PartOptions())
            | beam.Map(lambda report: report.records)
        )
        assert_that(reports, lambda records: sum(records) == COUNT or pytest.fail(str(records)))


def test_output_of_another_spec_is_refused_when_applied(source, output):
    embed(output, source)
    before = files_of(output)
    with pytest.raises(imagebeam.ImagebeamError, match="layers"):
        embed(output, source, layer="block2_pool")
    assert files_of(output) == before


@pytest.mark.parametrize("flags", [{"rows_per_unit": 4}, {"label_column": "kind"}])
def test_output_of_another_run_fails_the_pipeline(source, output, flags):
    embed(output, source)
    before = files_of(output)
    with pytest.raises(Exception, match=next(iter(flags))):
        embed(output, source, **flags)
    assert files_of(output) == before


def test_output_where_the_input_is_read_fails_the_pipeline(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(Exception, match="lies where the input is read"):
        embed(tmp_path / "link" / "out", source)


def test_no_matches_or_no_patterns_fail_the_pipeline(tmp_path, output):
    with pytest.raises(Exception, match="nothing-here"):
        embed(output, tmp_path / "nothing-here")
    with pytest.raises(Exception, match="no patterns"):
        embed(output)
    assert not list(output.glob("embeddings/*"))


def test_too_many_failures_fail_the_pipeline(source, output):
    (source / "a" / "broken.jpg").write_bytes(b"")
    with pytest.raises(Exception, match="max_failure_rate"):
        embed(output, source, max_failure_rate=0.0)
    embed(output, source)
    assert manifest(output)["totals"]["failed"] == 1
