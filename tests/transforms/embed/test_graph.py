"""No image crosses a stage boundary: shown on the fused graph, and on the bytes that a run hands between stages."""

import io

import apache_beam as beam
import numpy as np
import PIL.Image
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, execution
from apache_beam.runners.worker import bundle_processor

from tests.support.extracting import WRITERS, extract, manifest

IMAGES, SIDE = 12, 160


@pytest.fixture
def crossed(monkeypatch):
    """What goes from stage to stage, each element as its coder writes it; filled while a job runs."""
    seen = []
    for buffer in (execution.ListBuffer, execution.GroupingBuffer):
        append = buffer.append

        def record(self, data, append=append):
            seen.append(bytes(data))
            return append(self, data)

        monkeypatch.setattr(buffer, "append", record)
    return seen


@pytest.fixture(scope="module")
def noise():
    """Images whose bytes and pixels no coder can make small: uncompressed, each pixel random."""
    images = {}
    for index in range(IMAGES):
        data = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(data, "BMP")
        images[f"{index}.bmp"] = data.getvalue()
    return images


@pytest.mark.parametrize("input_format", list(WRITERS))
def test_run_passes_less_than_one_image_between_stages(tmp_path, noise, crossed, input_format):
    source = tmp_path / "in"
    source.mkdir()
    pattern = WRITERS[input_format](source, noise, 2)
    assert extract(pattern, tmp_path / "out", "--rows_per_unit", "3") == 0
    assert manifest(tmp_path / "out")["totals"]["embedded"] == IMAGES
    assert len(crossed) > IMAGES / 3  # units at least, and the reports of them
    assert sum(map(len, crossed)) < SIDE * SIDE * 3


def test_measurement_detects_images_that_cross_stages(noise, crossed):
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create(list(noise))
            | "Read" >> beam.Map(lambda name: noise[name])
            | beam.Reshuffle()
            | "Measure" >> beam.Map(len)
        )
    assert sum(map(len, crossed)) > IMAGES * SIDE * SIDE * 3


@pytest.fixture
def graphs(monkeypatch):
    """The serialised graph of every job that runs."""
    found = []
    run = beam.Pipeline.run

    def capture(self, *args, **kwargs):
        found.append(self.to_runner_api(default_environment=beam.transforms.environments.EmbeddedPythonEnvironment()))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(beam.Pipeline, "run", capture)
    return found


def test_graph_does_not_grow_with_the_input(tmp_path, noise, graphs):
    """Runners limit its size; units are planned by the job itself."""
    (image, *_) = noise.values()
    for name, count in (("a", 2), ("b", 60)):
        WRITERS["files"](tmp_path / name, {f"{number:02}.bmp": image for number in range(count)})
        assert extract(tmp_path / name, tmp_path / f"out-{name}", "--rows_per_unit", "1") == 0
        assert manifest(tmp_path / f"out-{name}")["totals"]["units"] == count
    small, large = (len(graph.SerializeToString()) for graph in graphs)
    assert abs(large - small) < 100
    assert large < 200_000


@pytest.fixture
def stages(tmp_path, noise, graphs):
    """The stages that Beam fuses the job of `imagebeam extract` into."""
    WRITERS["files"](tmp_path / "in", noise)
    assert extract(tmp_path / "in", tmp_path / "out") == 0
    (graph,) = graphs
    _, fused = FnApiRunner().create_stages(graph)
    return fused


def test_one_transform_reads_decodes_embeds_and_writes_a_unit(stages):
    (stage,) = [stage for stage in stages if any("Commit unit" in one.unique_name for one in stage.transforms)]
    work = [one for one in stage.transforms if "Embed units" in one.unique_name]
    (commit,) = [one for one in work if one.spec.urn == "beam:transform:pardo:v1" and "Commit unit" in one.unique_name]
    assert len(commit.inputs) == len(commit.outputs) == 1  # units in, reports out; no side input, no second output
    others = {one.unique_name.rpartition("/Reshuffle")[0] or one.unique_name for one in work if one is not commit}
    assert all("Spread units" in name for name in others), others


def test_only_shards_units_and_reports_cross_stages(stages):
    """Shards and units do where they are spread, reports on their way into a file; nothing else does."""
    crossing = {
        producer.unique_name
        for stage in stages
        for sink in stage.transforms
        if sink.spec.urn == bundle_processor.DATA_OUTPUT_URN
        for producer in stage.transforms
        if set(sink.inputs.values()) & set(producer.outputs.values())
    }
    places = ("Plan units/Spread shards/", "Embed units/CommitUnits/Spread units/", "Finish/Write reports/")
    found = {place for place in places for name in crossing if name.startswith(place)}
    assert found == set(places)
    assert [name for name in crossing if not name.startswith(places)] == []
