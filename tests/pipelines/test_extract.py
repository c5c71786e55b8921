"""`imagebeam extract` from end to end, its output read by DuckDB and compared with plain Keras."""

import functools
import hashlib
import io
import os
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import pytest

from tests.support import extracting, real_weights
from tests.support.extracting import SMALL_SIZE, embeddings, extract, failures, manifest, small_images
from tests.support.image_samples import BAD, GOOD, encode, picture, png
from transforms.images.decode import ImageOptions, decode_image


@functools.cache
def images():
    """File name -> bytes of 60 and more images of all kinds and sizes."""
    found = extracting.photographs()
    assert len(found) >= 60
    return found


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def pixels(data, size):
    return decode_image(data, ImageOptions(image_size=size)).pixels


def plain_vgg16(size, layer, pool, onnx=None):
    """Keras' own model and preprocessing, one image a call: bytes' pixels -> vector."""
    import keras

    keras.utils.set_random_seed(0)
    backbone = keras.applications.VGG16(include_top=False, weights=None, input_shape=(*size, 3))
    if onnx is not None:
        _load_onnx(backbone, onnx)
    model = keras.Model(backbone.input, pool(backbone.get_layer(layer).output))

    def embed(image):
        inputs = keras.applications.vgg16.preprocess_input(image[None].astype("float32"))
        return np.asarray(model(inputs))[0]

    return embed


def _load_onnx(backbone, path):
    """In the order of the graph's convolutions, where the product goes by the names of the initializers."""
    import onnx

    graph = onnx.load(str(path)).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    convolutions = [node.input for node in graph.node if node.op_type == "Conv"]
    layers = [layer for layer in backbone.layers if layer.weights]
    for layer, (_, kernel, bias) in zip(layers, convolutions, strict=True):
        layer.set_weights([arrays[kernel].transpose(2, 3, 1, 0), arrays[bias]])


@functools.cache
def expected_small():
    """sha256 -> vector, of every image."""
    import keras

    embed = plain_vgg16(SMALL_SIZE, "block1_pool", keras.layers.GlobalAveragePooling2D())
    return {sha256(data): embed(pixels(data, SMALL_SIZE)) for data in images().values()}


def assert_vectors(found, expected):
    assert found.keys() == expected.keys()
    for name, vector in found.items():
        np.testing.assert_allclose(vector, expected[name], rtol=1e-5, atol=1e-5 * np.abs(expected[name]).max())


@pytest.mark.parametrize(
    ("input_format", "shards"),
    [("files", 3), ("tfrecord", 1), ("tfrecord", 4), ("webdataset", 4), ("parquet", 4), ("manifest", 2)],
)
def test_every_input_format_gives_the_vectors_of_plain_keras(tmp_path, input_format, shards):
    source = tmp_path / "in"
    source.mkdir()
    pattern = extracting.WRITERS[input_format](source, images(), shards)
    assert extract(pattern, tmp_path / "out") == 0
    assert_vectors(embeddings(tmp_path / "out", by="sha256"), expected_small())
    totals = manifest(tmp_path / "out")["totals"]
    assert (totals["records"], totals["embedded"], totals["failed"]) == (len(images()), len(images()), 0)
    labels = dict(duckdb.execute(f"select sha256, label from '{tmp_path}/out/embeddings/*.parquet'").fetchall())
    if input_format == "files":
        assert set(labels.values()) == {f"class{index}" for index in range(shards)}
    else:
        assert labels == {sha256(data): name for name, data in images().items()}


@pytest.mark.parametrize(("batch_size", "rows_per_unit"), [(1, 2048), (7, 5), (7, 2048), (32, 5)])
def test_batch_and_unit_sizes_change_no_row(tmp_path, batch_size, rows_per_unit):
    extracting.write_tfrecord(tmp_path, images(), 2)
    flags = ("--batch_size", str(batch_size), "--rows_per_unit", str(rows_per_unit))
    assert extract(tmp_path / "*.gz", tmp_path / "out", *flags) == 0
    assert_vectors(embeddings(tmp_path / "out", by="sha256"), expected_small())
    units = -(-len(images()) // 2 // rows_per_unit) * 2
    assert abs(len(manifest(tmp_path / "out")["parts"]) - units) <= 1


def test_shared_listing_changes_no_row(source, output, tmp_path, monkeypatch):
    assert extract(source, output) == 0
    monkeypatch.setattr("transforms.inputs.plan.LISTED_ALONE", 5)
    assert extract(source, tmp_path / "shared") == 0
    alone, shared = embeddings(output), embeddings(tmp_path / "shared")
    assert alone.keys() == shared.keys()
    for key, vector in alone.items():
        np.testing.assert_allclose(shared[key], vector, rtol=1e-5, atol=1e-5 * np.abs(vector).max())


def test_input_and_output_whose_names_are_not_utf_8(tmp_path):
    """As of a disk that a machine with another encoding wrote; Beam's coder of text takes no such path."""
    images, output = (Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/in\xe9", b"/caf\xe9"))
    small_images(images, 3)
    assert extract(images, output) == 0
    read = output.rename(tmp_path / "out")  # DuckDB takes no such path
    assert len(embeddings(read)) == sum(part["rows"] for part in manifest(read)["parts"]) == 3


def test_non_unicode_names_and_labels_end_as_rows_or_failures(tmp_path, output):
    """Nothing can store half a character; a unit that tried would fail in every run."""
    image = encode(picture(40, 40), "JPEG")
    (tmp_path / "in").mkdir()
    with tarfile.open(
        tmp_path / "in" / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:  # as old archives are written
        for name, data in (
            ("caf\u00e9.jpg", image),
            ("dog.jpg", image),
            ("dog.json", b'{"label": "\\ud83d"}'),
            ("emu.jpg", image),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert extract(tmp_path / "in", output, "--max_failure_rate", "1") == 0
    shard = tmp_path / "in" / "a.tar"
    assert set(embeddings(output)) == {f"{shard}#caf\\xe9", f"{shard}#emu"}
    assert failures(output) == {f"{shard}#dog": ("read", "bad_value")}


@pytest.mark.slow
def test_native_sizes_give_the_vectors_of_plain_keras(tmp_path):
    import keras

    crops = {name: data for name, data in images().items() if name.startswith("crop")}
    source = extracting.write_files(tmp_path / "in", crops)
    assert extract(source, tmp_path / "out", "--image_size", "native", "--batch_size", "4") == 0
    embed = plain_vgg16((None, None), "block1_pool", keras.layers.GlobalAveragePooling2D())
    expected = {sha256(data): embed(pixels(data, None)) for data in crops.values()}
    assert_vectors(embeddings(tmp_path / "out", by="sha256"), expected)


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.parametrize(("pooling", "size"), [("avg", (96, 128)), ("max", (224, 224))])
def test_real_vgg16_equals_keras_applications(tmp_path, pooling, size):
    import keras

    onnx = real_weights.vgg16_onnx()
    source = extracting.write_files(tmp_path / "in", images())
    layers = ("block4_pool", "block5_pool")
    model = ("--weights", str(onnx), "--image_size", f"{size[0]}x{size[1]}", "--pooling", pooling)
    code = extract(source, tmp_path / "out", *(f"--layer={layer}" for layer in layers), model=model)
    assert code == 0
    keys = {str(source / "class0" / name): data for name, data in images().items()}
    pool = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}[pooling]
    for layer in layers:
        embed = plain_vgg16(size, layer, pool(), onnx)
        found = embeddings(tmp_path / "out", f"embedding_{layer}")
        assert found.keys() == keys.keys()
        for key, vector in found.items():
            image = pixels(keys[key], size)
            if key.endswith((".jpg", ".png")) and "/crop" in key:
                loaded = keras.utils.load_img(key, target_size=size, interpolation="bilinear")
                np.testing.assert_array_equal(image, np.asarray(loaded))
            expected = embed(image)
            cosine = np.dot(vector, expected) / np.linalg.norm(vector) / np.linalg.norm(expected)
            assert cosine >= 0.999999
            assert np.abs(vector - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good files, and bad ones of every kind."""
    folder = tmp_path_factory.mktemp("mixed")
    for name, maker in (GOOD | {name: maker for name, (_, maker) in BAD.items()}).items():
        (folder / name).write_bytes(maker())
    (folder / "over_size.png").write_bytes(encode(picture(101, 100), "PNG"))
    return folder


MIXED = ("--max_image_pixels", "10000")


def test_every_input_ends_as_exactly_one_row(mixed, tmp_path, capsys):
    assert extract(mixed, tmp_path / "out", *MIXED, "--max_failure_rate", "0.5") == 0
    found, failed = embeddings(tmp_path / "out"), failures(tmp_path / "out")
    assert found.keys() == {str(mixed / name) for name in GOOD}
    expected = {str(mixed / name): ("decode", kind) for name, (kind, _) in BAD.items()}
    assert failed == expected | {str(mixed / "over_size.png"): ("decode", "too_many_pixels")}
    totals = manifest(tmp_path / "out")["totals"]
    assert (totals["records"], totals["embedded"], totals["failed"]) == (42, 31, 11)
    assert totals["failures"]["decode/too_many_pixels"] == 2
    summary = capsys.readouterr().err
    assert "31 embeddings and 11 failures from 42 records" in summary
    assert "labels: no row has one" in summary
    assert "PROBLEM" not in summary


def test_more_failures_than_allowed_is_exit_code_3(mixed, tmp_path, capsys):
    assert extract(mixed, tmp_path / "out", *MIXED, "--max_failure_rate", "0.25") == 3
    assert "11 of 42 records failed (26.19%), more than --max_failure_rate 0.25" in capsys.readouterr().err
    assert len(embeddings(tmp_path / "out")) == 31
    assert extract(mixed, tmp_path / "out", *MIXED, "--max_failure_rate", "0.27") == 0


def test_no_embedding_is_exit_code_3(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    assert extract(tmp_path / "in", tmp_path / "out", "--max_failure_rate", "1") == 3
    assert "no embeddings" in capsys.readouterr().err
    assert list(failures(tmp_path / "out").values()) == [("decode", "empty")]


@pytest.mark.parametrize("input_format", ["tfrecord", "webdataset", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "junk"])
def test_damaged_shard_costs_no_rows_of_the_good_one(tmp_path, input_format, damage):
    some = dict(list(images().items())[:20])
    extracting.WRITERS[input_format](tmp_path, some, 2)
    good, bad = sorted(path for path in tmp_path.iterdir())
    data = bad.read_bytes()
    bad.write_bytes({"cut": data[: len(data) * 2 // 3], "empty": b"", "junk": b"no shard at all" * 9}[damage])
    code = extract(tmp_path / "images*", tmp_path / "out", "--max_failure_rate", "1")
    is_whole = (damage, input_format) == ("empty", "tfrecord")  # an empty file is a TFRecord of no records
    assert code == (0 if is_whole else 3)
    assert [unread["uri"] for unread in manifest(tmp_path / "out")["unread"]] == ([] if is_whole else [str(bad)])
    found, failed = embeddings(tmp_path / "out"), failures(tmp_path / "out")
    assert sum(key.startswith(f"{good}#") for key in found) == 10
    assert all(key.startswith(f"{bad}#") for key in failed)
    assert failed or is_whole
    assert not set(found) & set(failed)
    totals = manifest(tmp_path / "out")["totals"]
    assert totals["records"] == len(found) + len(failed)


def test_two_runs_write_the_same_parts(tmp_path):
    source = extracting.small_images(tmp_path / "in", 12)
    assert extract(source, tmp_path / "one") == extract(source, tmp_path / "two") == 0
    assert extracting.files_of(tmp_path / "one") == extracting.files_of(tmp_path / "two")
    assert len(extracting.files_of(tmp_path / "one")) == manifest(tmp_path / "one")["totals"]["units"] > 2
    left = {path.name for path in (tmp_path / "one").iterdir()}
    assert left == {"embeddings", "model", "manifest.json", "run.json"}


def test_kept_columns_lists_and_float16_reach_the_output(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"uri": "a.png", "label": 3, "camera": "left", "weight": 1.5}\n')
    (tmp_path / "a.png").write_bytes(png(40, 40, 8, 2, bytes([200, 100, 50]) * 1600))
    flags = ("--keep_columns", "camera,weight:float64", "--embedding_type", "list", "--embedding_dtype", "float16")
    assert extract(tmp_path / "in.jsonl", tmp_path / "out", *flags) == 0
    row = duckdb.execute(f"select * from '{tmp_path}/out/embeddings/*.parquet'").fetchdf().iloc[0]
    assert (row["label"], row["camera"], row["weight"], row["width"]) == ("3", "left", 1.5, 40)
    assert row["embedding"].dtype == np.float16 or row["embedding"].dtype == np.float32
    assert len(row["embedding"]) == 64
