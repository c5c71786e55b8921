"""The staged model: the same numbers as the embedder it was made of, and never another one unnoticed."""

import dataclasses
import errno
import json
import os
import tempfile

import numpy as np
import pytest

from transforms.core.digests import file_sha256
from transforms.core.errors import ImagebeamError
from transforms.core.spec import Calibration, Pooling, Precision
from transforms.embed.embed_records import EmbedRecords
from transforms.embed.ml_transform import KerasImageEmbeddings
from transforms.embed.model_handler import EmbeddingModelHandler
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, build_embedder, resolve
from transforms.models.staged import (
    MODEL_LINK,
    SPEC_FILE,
    LoadedModel,
    check_sha256,
    delete_superseded,
    read_staged,
    stage,
    stage_model,
)

CONFIG = EmbedderConfig(
    "VGG16", "random:0", layers=("block2_pool", "block1_pool"), pooling=Pooling.MAX, image_size=(32, 32)
)
WEIGHTS = {"source": "random:0", "file_sha256": None}


@pytest.fixture(scope="module")
def embedder():
    return resolve(CONFIG)


@pytest.fixture
def folder(tmp_path, embedder):
    stage(LoadedModel(embedder), str(tmp_path), WEIGHTS)
    return tmp_path


def read(folder):
    """The model that is staged there."""
    staged = read_staged(str(folder))
    assert staged is not None
    return staged


def test_staged_model_round_trips(folder, embedder):
    staged = read(folder)
    assert staged.spec == embedder.spec
    assert staged.dimensions == embedder.dimensions
    assert staged.weights == WEIGHTS
    assert staged.sha256 == file_sha256(folder / staged.file)
    assert staged.file == f"embedder-{staged.sha256[:12]}.keras"
    assert json.loads((folder / SPEC_FILE).read_text())["fingerprint"] == embedder.spec.fingerprint
    assert sorted(path.name for path in folder.iterdir()) == [staged.file, MODEL_LINK, SPEC_FILE]


def test_full_temporary_folder_is_named(tmp_path, embedder, monkeypatch):
    def save(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedder.model, "save", save)
    with pytest.raises(OSError, match=r"No space left on device, in the temporary folder \(TMPDIR\)") as caught:
        stage(LoadedModel(embedder), str(tmp_path), WEIGHTS)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(tempfile.gettempdir())


def test_the_loaded_embedder_gives_the_same_numbers(folder, embedder):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    staged = read(folder)
    expected, found = embedder.embed(images), staged.load().embed(images)
    assert found.keys() == expected.keys() == embedder.dimensions.keys()
    for column, matrix in found.items():
        np.testing.assert_allclose(matrix, expected[column], rtol=1e-6, atol=1e-6)


def test_an_empty_folder_holds_no_model(tmp_path):
    assert read_staged(str(tmp_path)) is None
    assert read_staged(str(tmp_path / "none")) is None


def test_a_model_file_without_its_description_was_never_finished(folder):
    (folder / SPEC_FILE).unlink()
    assert read_staged(str(folder)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": {"model": "VGG16"}}', '{"spec": 5}'])
def test_a_description_that_cannot_be_understood_is_named(folder, text):
    (folder / SPEC_FILE).write_text(text)
    with pytest.raises(ImagebeamError, match=rf"{SPEC_FILE}.*Delete the folder"):
        read_staged(str(folder))


def test_a_field_of_another_version_is_named(folder):
    about = json.loads((folder / SPEC_FILE).read_text())
    about["spec"]["colour_space"] = "P3"
    (folder / SPEC_FILE).write_text(json.dumps(about))
    with pytest.raises(ImagebeamError, match="colour_space"):
        read_staged(str(folder))


def test_changed_or_missing_model_file_is_not_loaded(folder):
    staged = read(folder)
    file = folder / staged.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ImagebeamError, match="is not the file that was staged: sha256"):
        staged.load()
    file.unlink()
    with pytest.raises(ImagebeamError, match=f"The staged model is missing: {file}"):
        staged.load()


def test_staging_another_model_keeps_this_one_loadable(folder, embedder):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    first = read(folder)
    other = resolve(dataclasses.replace(CONFIG, weights="random:1"))
    second = stage(LoadedModel(other), str(folder), WEIGHTS)
    assert read_staged(str(folder)) == second
    assert (folder / MODEL_LINK).resolve() == folder / second.file
    for staged, expected in ((first, embedder), (second, other)):
        for column, matrix in staged.load().embed(images).items():
            np.testing.assert_allclose(matrix, expected.embed(images)[column], rtol=1e-6, atol=1e-6)


def test_old_superseded_model_is_deleted(folder, embedder):
    first = read(folder)
    (folder / "notes.txt").write_text("mine")
    second = stage(LoadedModel(embedder), str(folder), WEIGHTS)
    delete_superseded(str(folder), second.files, older_than=3600)
    assert (folder / first.file).exists(), "it may still be used"
    for name in (first.file, "notes.txt"):
        os.utime(folder / name, (1e9, 1e9))
    delete_superseded(str(folder), second.files, older_than=3600)
    assert sorted(path.name for path in folder.iterdir()) == sorted([second.file, MODEL_LINK, "notes.txt", SPEC_FILE])


def test_model_staged_under_an_old_file_name_is_loaded(folder, embedder):
    staged = read(folder)
    (folder / staged.file).replace(folder / "embedder.keras")
    about = json.loads((folder / SPEC_FILE).read_text()) | {"model_file": "embedder.keras"}
    (folder / SPEC_FILE).write_text(json.dumps(about))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert read(folder).load().embed(images).keys() == embedder.dimensions.keys()


def test_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "a") == known
    check_sha256(tmp_path / "a", known, "a")


@pytest.mark.parametrize("calibration", [None, Calibration("0" * 64, "1" * 64)])
@pytest.mark.parametrize(
    "use",
    [
        resolve,
        build_embedder,
        EmbedRecords,
        EmbeddingModelHandler,
        lambda config: KerasImageEmbeddings(["image"], **vars(config)),
        lambda config: stage_model(config, "model"),
    ],
)
def test_a_config_alone_makes_no_int8_model(use, calibration, tmp_path, monkeypatch):
    """Or float32 vectors would have a spec that says int8."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(CONFIG, layers=("block1_pool",), precision="int8", calibration=calibration)
    with pytest.raises(ImagebeamError, match=r"Received: precision=int8.*imagebeam extract --precision int8"):
        use(config)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_the_int8_model_is_taken(tmp_path, embedder):
    config = dataclasses.replace(CONFIG, precision=Precision.INT8, calibration=Calibration("0" * 64, "1" * 64))
    embedder = Embedder(config.spec(embedder.spec.weights_sha256, embedder.spec.graph_sha256), embedder.model)
    staged = stage(LoadedModel(embedder), str(tmp_path), WEIGHTS)
    assert stage_model(config, str(tmp_path)) == staged
