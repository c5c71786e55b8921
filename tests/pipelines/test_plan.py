"""`imagebeam plan`: its numbers are those of a plain loop over the files, and of extract itself."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import extract
from pipelines.cli import run_job
from pipelines.common.flags import JobParser
from pipelines.plan import add_arguments, time_model
from pipelines.runtime import plan_text
from tests.support import extracting
from tests.support.extracting import SMALL_MODEL
from tests.support.fakes import ChannelMeans
from tests.support.image_samples import BAD, encode, picture
from transforms.embed.embed_units import EmbedOptions
from transforms.images.decode import ImageOptions
from transforms.models.engines import trial
from transforms.models.engines.openvino_model import is_installed

ALL = ("--sample", "100000")


@pytest.fixture
def mixed(tmp_path):
    """Two TFRecord shards, two tars, one of them cut short, and labelled folders with bad files and texts in them."""
    good = {f"{index:03d}.jpg": encode(picture(20 + index, 64), "JPEG") for index in range(12)}
    for name in ("tars", "tfrecords", "folders"):
        (tmp_path / name).mkdir()
    extracting.write_webdataset(tmp_path / "tars", good, shards=1)
    cut = (tmp_path / "tars" / "images-0.tar").read_bytes()
    (tmp_path / "tars" / "cut.tar").write_bytes(cut[: len(cut) // 2 + 300])
    extracting.write_tfrecord(tmp_path / "tfrecords", good, shards=2)
    bad = {name: maker() for name, (_, maker) in list(BAD.items())[:5]}
    extracting.write_files(tmp_path / "folders", {**good, **bad}, shards=2)
    for name in ("a.txt", "b.txt", "labels.csv"):
        (tmp_path / "folders" / name).write_text("uri,label\n")
    return [tmp_path / "tars" / "*.tar", tmp_path / "tfrecords", tmp_path / "folders"]


def plan(capsys, patterns, *flags):
    """What `imagebeam plan --format json` prints, parsed."""
    capsys.readouterr()
    arguments = ["--input", *map(str, patterns), *SMALL_MODEL, "--format", "json", *flags]
    assert run_job("plan", arguments) == 0
    return json.loads(capsys.readouterr().out)


def tree(folder):
    """Path -> (bytes, time of the last change), folders too."""
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
    }


def test_takes_the_flags_of_extract():
    theirs, ours = JobParser("extract"), JobParser("plan")
    extract.add_arguments(theirs)
    add_arguments(ours)
    assert set(ours.flags) - set(theirs.flags) == {"--sample", "--format"}
    assert set(theirs.flags) <= set(ours.flags)


def test_counts_are_those_of_a_loop_over_the_files(mixed, tmp_path, capsys):
    import tensorflow as tf

    found = plan(capsys, mixed)
    samples = set()
    with tarfile.open(tmp_path / "tars" / "images-0.tar") as tar:
        samples |= {name.split(".")[0] for name in tar.getnames()}
    tfrecords = sorted((tmp_path / "tfrecords").iterdir())
    kinds = ["GZIP" if path.read_bytes().startswith(b"\x1f\x8b") else "" for path in tfrecords]
    in_tfrecords = [
        sum(1 for _ in tf.data.TFRecordDataset(str(path), kind)) for path, kind in zip(tfrecords, kinds, strict=True)
    ]
    files = [path for path in (tmp_path / "folders").glob("*/*") if path.is_file()]
    assert found["formats"]["tfrecord"] == {
        "files": len(tfrecords),
        "units": sum(-(-count // 5) for count in in_tfrecords),
        "records": sum(in_tfrecords),
    }
    loose = found["formats"]["files"]
    assert (loose["files"], loose["records"]) == (len(files), len(files))
    assert -(-len(files) // 5) <= loose["units"] <= len(files) // 3 + 1  # each but the last is at least half full
    tars = found["formats"]["webdataset"]
    assert tars["files"] == 2
    assert len(samples) < tars["records"] < 2 * len(samples)
    assert list(found["unreadable"]) == [str(tmp_path / "tars" / "cut.tar")]
    assert found["left_out"] == {".txt": 2, ".csv": 1}
    assert found["units"] == sum(count["units"] for count in found["formats"].values())
    assert found["records"] == sum(count["records"] for count in found["formats"].values())
    assert found["dimensions"] == {"embedding": 64}


def test_predicts_what_extract_does(mixed, tmp_path, capsys):
    out = tmp_path / "out"
    found = plan(capsys, mixed, *ALL)
    extracting.extract(mixed, out, "--max_failure_rate", "1")
    manifest = extracting.manifest(out)
    totals = manifest["totals"]
    assert (found["records"], found["units"]) == (totals["records"], totals["units"])
    assert found["sample"]["records"] == totals["records"]
    assert found["sample"]["failures"] == totals["failures"]
    assert found["sample"]["failed"] == totals["failed"] > 0
    assert found["estimate"]["images"] == totals["embedded"]
    assert found["dimensions"] == manifest["dimensions"]
    assert 0.5 < found["estimate"]["output_bytes"] / totals["bytes"] < 2


def test_reports_what_an_earlier_attempt_did(mixed, tmp_path, capsys):
    out = tmp_path / "out"
    extracting.extract(mixed, out, "--max_failure_rate", "1")
    totals = extracting.manifest(out)["totals"]
    to_out = ("--output", str(out))
    before = tree(out)

    found = plan(capsys, mixed, *to_out)
    everything = {"units": totals["units"], "records": totals["records"], "failed": totals["failed"]}
    assert found["committed"] == {**everything, "tried_again": 0}
    assert found["output"] == str(out)
    assert (found["estimate"]["records"], found["estimate"]["seconds"]) == (0, 0)
    retried = plan(capsys, mixed, *to_out, "--retry_failed")
    assert retried["committed"]["tried_again"] == retried["estimate"]["records"] == totals["failed"]
    assert plan(capsys, mixed, *to_out, "--overwrite")["committed"]["units"] == 0
    assert tree(out) == before

    changed = next((tmp_path / "folders" / "class0").glob("*.jpg"))
    changed.write_bytes(encode(picture(77, 33), "JPEG"))
    parts = [out / part["path"] for part in extracting.manifest(out)["parts"] if part["failed"] == 0]
    next(part for part in parts if ".tar" in pq.read_table(part)["uri"][0].as_py()).unlink()  # not the changed image's
    found = plan(capsys, mixed, *to_out)
    assert found["committed"]["units"] == totals["units"] - 2
    assert found["estimate"]["records"] == totals["records"] - found["committed"]["records"]
    assert plan(capsys, mixed, *to_out, "--max_image_pixels", "1")["committed"]["units"] == 0
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "generation": "of an --overwrite that was stopped"}))
    assert plan(capsys, mixed, *to_out)["committed"]["units"] == 0


def test_counts_failures_that_a_run_tries_again(tmp_path, capsys):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(32, 16 * (1 + number)), "PNG"))
    images, output = [tmp_path / "*.png"], tmp_path / "out"
    extracting.extract(images, output, *("--max_image_pixels", "1600", "--max_failure_rate", "1"))
    to_out = ("--output", str(output), "--max_image_pixels")
    found = plan(capsys, images, *to_out, "3000")
    assert found["committed"] == {"units": 2, "records": 6, "failed": 3, "tried_again": 3}
    assert found["estimate"]["records"] == 3
    assert plan(capsys, images, *to_out, "1600")["estimate"]["records"] == 0


@pytest.mark.parametrize("given", [False, True])
def test_writes_nothing(mixed, tmp_path, capsys, monkeypatch, given):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = tree(tmp_path)
    plan(capsys, mixed, *(("--output", str(tmp_path / "out")) if given else ()))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--rows_per_unit", "6"], "rows_per_unit: 5 != 6"),
        (["--pooling", "max"], "pooling: avg != max"),
        (["--weights", "random:1"], "weights_sha256"),
    ],
)
def test_refuses_what_extract_would_refuse(tmp_path, capsys, flags, what):
    source = extracting.small_images(tmp_path / "in", 3)
    assert extracting.extract(source, tmp_path / "out") == 0
    capsys.readouterr()
    arguments = ["--input", str(source), "--output", str(tmp_path / "out"), *SMALL_MODEL, *flags]
    assert run_job("plan", arguments) == 2
    captured = capsys.readouterr()
    assert what in captured.err.splitlines()[-1]
    assert captured.out == ""


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--input", "nowhere/*.tar"], "nowhere/*.tar"),
        (["--input", "{images}", "--sample", "0"], "--sample"),
        (["--input", "{images}", "--layer", "block9_pool"], "block9_pool"),
        (["--input", "{images}", "--output", "{images}/a/0000.jpg"], "0000.jpg"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, capsys, flags, what):
    images = extracting.small_images(tmp_path / "in", 2)
    assert run_job("plan", [*SMALL_MODEL, *(flag.format(images=images) for flag in flags)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("imagebeam: error:")
    assert what in error


def test_foreign_file_among_the_parts_is_named(tmp_path, capsys):
    source = extracting.small_images(tmp_path / "in", 3)
    assert extracting.extract(source, tmp_path / "out") == 0
    part = next((tmp_path / "out" / "embeddings").iterdir())
    part.write_bytes(b"PAR1")
    assert run_job("plan", ["--input", str(source), "--output", str(tmp_path / "out"), *SMALL_MODEL]) == 2
    assert str(part) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed")
@pytest.mark.parametrize("pays", [False, True])
def test_tries_the_engines_where_extract_does(mixed, tmp_path, capsys, monkeypatch, pays):
    """Its estimate of the time would be that of another engine otherwise."""
    if pays:
        monkeypatch.setattr(trial, "PAYS_FROM_IMAGES", 1)
        monkeypatch.setattr(trial, "PAYS_FROM_SECONDS", 0.0)
    flags = ["--input", *map(str, mixed), *SMALL_MODEL]
    capsys.readouterr()
    assert run_job("plan", flags) == 0
    planned = capsys.readouterr().err
    assert run_job("extract", [*flags, "--output", str(tmp_path / "out"), "--max_failure_rate", "1"]) == 3  # a cut tar
    extracted = capsys.readouterr().err
    assert [text.count("images a second on this machine") for text in (planned, extracted)] == [pays, pays]


def test_text_says_the_same_as_json(mixed, tmp_path, capsys):
    found = plan(capsys, mixed, *ALL)
    assert run_job("plan", ["--input", *map(str, mixed), *SMALL_MODEL, *ALL]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, counts in found["formats"].items():
        assert [name, *map(str, counts.values())] in lines
    text = "\n".join(" ".join(line) for line in lines)
    assert "left out of folders: .txt 2, .csv 1" in text
    for kind, count in found["sample"]["failures"].items():
        assert f"{kind.replace('/', ': ')}: {count}" in text
    assert f"Sample of {found['records']} records" in text
    for bar in found["sample"]["longer_side"]:
        assert f"{bar['from']}-{bar['to']} {bar['images']}" in text
    assert "embedding of 64" in text
    assert "more than --max_failure_rate 0.01" in text


def test_input_without_a_readable_image(tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    found = plan(capsys, [tmp_path])
    assert found["estimate"] is None
    assert found["sample"]["failure_rate"] == 1.0
    assert run_job("plan", ["--input", str(tmp_path), *SMALL_MODEL]) == 0
    assert "No estimate" in capsys.readouterr().out


def test_native_image_sizes(tmp_path, capsys):
    for index, size in enumerate([(40, 33), (33, 40), (40, 33), (31, 40)]):
        (tmp_path / f"{index}.png").write_bytes(encode(picture(*size), "PNG"))
    found = plan(capsys, [tmp_path], "--image_size", "native")
    assert found["estimate"]["images"] == 3
    assert found["sample"]["failures"] == {"decode/too_small": 1}


class TestTiming:
    def test_uses_the_batch_size_of_the_run(self):
        embedder = ChannelMeans()
        images = [np.zeros((8, 8, 3), np.uint8)] * 3
        options = EmbedOptions(ImageOptions(image_size=(8, 8)), batch_size=32)
        seconds, rate = time_model(embedder, images, options)
        assert embedder.batches == [(32, 8, 8, 3)] * 3
        assert seconds > 0
        assert rate > 0

    def test_times_each_shape_by_itself(self):
        embedder = ChannelMeans()
        images = [np.zeros((size, 8, 3), np.uint8) for size in (4, 8, 4)]
        time_model(embedder, images, EmbedOptions(ImageOptions(image_size=None), batch_size=32))
        assert sorted(embedder.batches) == [(1, 8, 8, 3)] * 3 + [(2, 4, 8, 3)] * 3


def test_histogram_counts_every_image():
    sizes = [(1, 1), (3, 2), (200, 300), (256, 1), (4000, 3000)]
    bins = plan_text.size_histogram(sizes)
    assert sum(count for _, _, count in bins) == len(sizes)
    assert [high + 1 for _, high, _ in bins[:-1]] == [low for low, _, _ in bins[1:]]
    for low, high, count in bins:
        assert count == sum(low <= max(size) <= high for size in sizes)
    assert plan_text.size_histogram([]) == []
