"""Images that finetune holds: their labels and kept columns come from where extract's would."""

import errno
import tempfile

import numpy as np
import pyarrow as pa
import pytest

from tests.support.image_samples import encode, picture
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import LabelFrom
from transforms.core.spec import EmbedderSpec
from transforms.images.decode import ImageOptions
from transforms.readers.options import ReadOptions
from transforms.storage import retry
from transforms.training_data.image_cache import ImageSet, image_batches, read_images
from transforms.training_data.vector_sources import EpochOrder


@pytest.mark.parametrize(
    ("options", "labels", "splits"),
    [
        (ReadOptions(), ["cat", "cat"], None),
        (ReadOptions(label_from=LabelFrom.LAST_FOLDER), ["split=test", "split=train"], None),
        (ReadOptions(keep_columns=(("split", pa.string()),)), ["cat", "cat"], ["test", "train"]),
    ],
)
def test_folders_give_labels_and_columns(tmp_path, options, labels, splits):
    for split in ("test", "train"):
        path = tmp_path / "in" / "cat" / f"split={split}" / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(picture(), "PNG"))
    with tempfile.TemporaryFile() as file:
        images = read_images(
            [str(tmp_path / "in")],
            None,
            options,
            ImageOptions(image_size=(8, 8)),
            EmbedderSpec("VGG16", "0" * 64),
            file,
            batch_size=4,
        )
        rows = images.table.sort_by("key")
    assert rows["label"].to_pylist() == labels
    if splits:
        assert rows["split"].to_pylist() == splits


def read_folder(folder):
    options = ImageOptions(image_size=(8, 8))
    with tempfile.TemporaryFile() as file:
        spec = EmbedderSpec("VGG16", "0" * 64)
        return read_images([str(folder)], None, ReadOptions(), options, spec, file, batch_size=4)


def test_unreadable_file_stops_and_non_image_does_not(tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encode(picture(), "PNG") if name != "b.png" else b"a secret")
    images = read_folder(tmp_path)
    assert [(failure.error_type, failure.sha256) for failure in images.failures] == [("not_an_image", None)]
    original = storage.read_bytes

    def refuse(uri, version=None):
        if uri.endswith("c.png"):
            raise OSError(errno.EIO, "Input/output error", uri)
        return original(uri, version)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    monkeypatch.setattr(retry, "WAITS", ())
    with pytest.raises(ImagebeamError, match=r"c\.png.*Input/output error"):
        read_folder(tmp_path)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_batches_have_the_pixels_of_their_rows_in_the_order_of_the_epoch(monkeypatch, backend):
    if backend == "tensorflow":
        pytest.importorskip("tensorflow")
    monkeypatch.setattr("keras.backend.backend", lambda: backend)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)
    images = ImageSet(pixels, pa.table({}), (), EmbedderSpec("VGG16", "0" * 64), ())
    rows, classes, order = np.arange(3, 48), np.arange(50, dtype=np.int32) % 3, EpochOrder(1)
    dataset = image_batches(images, rows, lambda rows: classes[rows], 16, order)
    for epoch in (0, 1):
        order.begin_epoch(epoch)
        wanted = order.generator().permutation(rows)
        found = [[np.array(array) for array in batch] for batch in dataset]
        assert [len(batch) for batch, _ in found] == [16, 16, 13]
        assert found[0][0].dtype == np.uint8
        assert np.array_equal(np.concatenate([batch for batch, _ in found]), pixels[wanted])
        assert np.array_equal(np.concatenate([targets for _, targets in found]), classes[wanted])
