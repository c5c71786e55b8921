"""The public package: complete, documented and cheap to import."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import imagebeam
from pipelines.common.flags import JobParser
from pipelines.options import extraction
from pipelines.options.engine import EngineOptions


@pytest.mark.parametrize("name", dir(imagebeam))
def test_every_public_name_is_documented(name):
    thing = getattr(imagebeam, name)
    assert len(inspect.getdoc(thing) or "") > 40
    assert name in (imagebeam.__doc__ or "")


def test_type_checkers_see_the_same_names():
    block = Path(imagebeam.__file__).read_text().split("if TYPE_CHECKING:")[1].split("_MODULES")[0]
    assert sorted(line.split()[-1] for line in block.splitlines() if " as " in line) == dir(imagebeam)
    assert Path(imagebeam.__file__).with_name("py.typed").exists()


def test_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="EmbedImage'"):
        _ = imagebeam.EmbedImage


def test_import_loads_no_framework():
    code = "import sys, imagebeam; print([m for m in ('apache_beam', 'keras', 'numpy', 'pyarrow') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_is_a_page():
    text = subprocess.check_output([sys.executable, "-c", "import imagebeam; help(imagebeam)"], text=True)
    assert "patterns | imagebeam.EmbedImages(" in text
    assert "Stability" in text
    assert len(text.splitlines()) < 80


def test_embed_images_takes_the_flags_of_extract():
    parser = JobParser("extract", beam=True)
    for add in (extraction.add_input_arguments, extraction.add_model_arguments, extraction.add_output_arguments):
        add(parser)
    EngineOptions.add_arguments(parser, "engine")
    flags = {name.removeprefix("--") for name in parser.flags} - {"help", "config", "debug", "log_format", "quiet"}
    assert set(inspect.signature(imagebeam.EmbedImages).parameters) == flags - {"input", "overwrite"}


api: Any = imagebeam  # What type checkers refuse is called here.


def config(**fields):
    return api.EmbedderConfig("VGG16", "random:0", layers=("block1_pool",), image_size=(32, 32), **fields)


WRONG = {
    # What is called; the argument, the value, and what it takes.
    "EmbedImages, None": (lambda: api.EmbedImages(None), "output", None, "str"),
    "EmbedImages, number": (lambda: api.EmbedImages(5), "output", 5, "str"),
    "EmbedImages, path": (lambda: api.EmbedImages(Path("o")), "output", Path("o"), "str"),
    "EmbedImages, batch_size": (lambda: api.EmbedImages("o", batch_size=[5]), "batch_size", (5,), "number"),
    "build_embedder, number": (lambda: api.build_embedder(5), "config", 5, "EmbedderConfig"),
    "build_embedder, name": (lambda: api.build_embedder("VGG16"), "config", "VGG16", "EmbedderConfig"),
    "stage_model, None": (lambda: api.stage_model(None, "o"), "config", None, "EmbedderConfig"),
    "stage_model, folder": (lambda: api.stage_model(config(), 5), "folder", 5, "str"),
    "ReadEmbeddings, number": (lambda: api.ReadEmbeddings(5), "output", 5, "str"),
    "ReadEmbeddings, one column": (lambda: api.ReadEmbeddings("o", "key"), "columns", "key", "list"),
    "ReadEmbeddings, numbers": (lambda: api.ReadEmbeddings("o", [5]), "columns", [5], "list"),
    "EmbeddingModelHandler, None": (
        lambda: api.EmbeddingModelHandler(None),
        "model",
        None,
        "EmbedderConfig",
    ),
    "EmbedRecords, number": (lambda: api.EmbedRecords(5), "model", 5, "EmbedderConfig"),
    "EmbedRecords, images": (lambda: api.EmbedRecords(config(), images=5), "images", 5, "ImageOptions"),
    "KerasImageEmbeddings, one column": (
        lambda: api.KerasImageEmbeddings("image", model="VGG16", weights="random:0"),
        "columns",
        "image",
        "list",
    ),
    "KerasImageEmbeddings, staged": (
        lambda: api.KerasImageEmbeddings(["image"], staged=5),
        "staged",
        5,
        "str",
    ),
    "EmbedderConfig, model": (lambda: api.EmbedderConfig(5), "model", 5, "str"),
    "EmbedderConfig, image_size": (lambda: api.EmbedderConfig(image_size="x"), "image_size", "x", "height"),
    "EmbedderConfig, dicom_frame": (lambda: api.EmbedderConfig(dicom_frame=True), "dicom_frame", True, "number"),
    "EmbedderConfig, dicom_frame as text": (
        lambda: api.EmbedderConfig(dicom_frame="1"),
        "dicom_frame",
        "1",
        "number",
    ),
    "ImageOptions, filter": (lambda: api.ImageOptions(interpolation=5), "interpolation", 5, ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_another_type_is_refused_with_its_name(case):
    call, name, value, takes = WRONG[case]
    with pytest.raises(imagebeam.ImagebeamError) as caught:
        call()
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert takes in message


def test_max_image_pixels_has_one_default():
    flags = extraction.ModelOptions()
    assert imagebeam.ImageOptions().max_image_pixels == flags.max_image_pixels
    taken = inspect.signature(imagebeam.EmbedRecords).parameters["max_image_pixels"].default
    assert taken == flags.max_image_pixels
