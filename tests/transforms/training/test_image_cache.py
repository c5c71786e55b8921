"""Images that finetune holds: their labels and kept columns come from where extract's would."""

import tempfile

import pyarrow as pa
import pytest

from tests.support.image_samples import encode, picture
from transforms.core.formats import LabelFrom
from transforms.core.spec import EmbedderSpec
from transforms.images.decode import ImageOptions
from transforms.inputs.types import ReadOptions
from transforms.training.image_cache import read_images


@pytest.mark.parametrize(
    ("options", "labels", "splits"),
    [
        (ReadOptions(), ["cat", "cat"], None),
        (ReadOptions(label_from=LabelFrom.LAST_FOLDER), ["split=test", "split=train"], None),
        (ReadOptions(keep_columns=(("split", pa.string()),)), ["cat", "cat"], ["test", "train"]),
    ],
)
def test_folders_tell_labels_and_columns_as_asked(tmp_path, options, labels, splits):
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
