"""The public package: complete, documented and cheap to import."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import imagebeam
from pipelines.common.flags import JobParser
from pipelines.options import extraction
from pipelines.options.engine import EngineOptions
from tests.support.fakes import FakeModel
from transforms.core.spec import ResizeMode
from transforms.embed.embed_units import EmbedOptions
from transforms.images.decode import ImageOptions
from transforms.parts.part_files import PartOptions
from transforms.readers.options import ReadOptions


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


def embed_units(**fields):
    return api.EmbedUnits(**{"model": FakeModel(), "output": "o", **fields})


def eight(**fields):
    return EmbedOptions(ImageOptions(image_size=(8, 8)), **fields)


WRONG: dict[str, Any] = {
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
    "KerasImageEmbeddings, no column": (
        lambda: api.KerasImageEmbeddings([], model="VGG16", weights="random:0"),
        "columns",
        [],
        "images",
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
    "EmbedderConfig, layers": (lambda: api.EmbedderConfig(layers={"fc1"}), "layers", {"fc1"}, "list"),
    "ImageOptions, filter": (lambda: api.ImageOptions(interpolation=5), "interpolation", 5, ""),
    "ImageOptions, dicom_frame": (lambda: api.ImageOptions(dicom_frame="last"), "dicom_frame", "last", "middle"),
    "PlanUnits, input_format": (lambda: api.PlanUnits("csv"), "input_format", "csv", "tfrecord"),
    "PlanUnits, rows_per_unit": (lambda: api.PlanUnits(rows_per_unit="5"), "rows_per_unit", "5", "whole number"),
    "PlanUnits, no rows": (lambda: api.PlanUnits(rows_per_unit=0), "rows_per_unit", 0, "at least 1"),
    "PlanUnits, read": (lambda: api.PlanUnits(read={}), "read", {}, "a ReadOptions"),
    "PlanUnits, cuts": (lambda: api.PlanUnits(cuts=Path("o")), "cuts", Path("o"), "a str or None"),
    "ReadOptions, keep_columns": (lambda: make(ReadOptions, keep_columns="a"), "keep_columns", "a", "list"),
    "EmbedUnits, model": (lambda: embed_units(model="o/model"), "model", "o/model", "stage_model"),
    "EmbedUnits, output": (lambda: embed_units(output=Path("o")), "output", Path("o"), "a str"),
    "EmbedUnits, no output": (lambda: embed_units(output=""), "output", "", "a folder"),
    "EmbedUnits, read": (lambda: embed_units(read=5), "read", 5, "a ReadOptions"),
    "EmbedUnits, embed": (lambda: embed_units(embed=ImageOptions()), "embed", ImageOptions(), "an EmbedOptions"),
    "EmbedUnits, part": (lambda: embed_units(embed=eight(), part=5), "part", 5, "a PartOptions"),
    "EmbedUnits, retry_failed": (lambda: embed_units(retry_failed=1), "retry_failed", 1, "True or False"),
    "EmbedOptions, images": (lambda: make(EmbedOptions, images=(8, 8)), "images", (8, 8), "an ImageOptions"),
    "EmbedOptions, batch_size": (lambda: eight(batch_size="4"), "batch_size", "4", "whole number"),
    "PartOptions, type": (lambda: make(PartOptions, embedding_type="array"), "embedding_type", "array", "list"),
}


def make(kind: Any, **fields: Any) -> Any:
    return kind(**fields)


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


NUMPY_SIZE = {"rows": np.array([32, 32]), "tuple": (np.int64(32), np.int32(32)), "list": [32, 32]}


@pytest.mark.parametrize("size", NUMPY_SIZE.values(), ids=NUMPY_SIZE)
def test_numbers_of_numpy_are_numbers(size):
    usual = config()
    given = api.EmbedderConfig("VGG16", "random:0", ["block1_pool"], image_size=size, dicom_frame=np.int64(1))
    assert given == usual
    assert given.spec("").fingerprint == usual.spec("").fingerprint
    options = api.ImageOptions(size, max_image_pixels=np.int64(10**6))
    assert options == api.ImageOptions((32, 32), max_image_pixels=10**6)
    assert eight(batch_size=np.int64(4)) == eight(batch_size=4)
    assert api.PlanUnits(rows_per_unit=np.int64(4)) == api.PlanUnits(rows_per_unit=4)


def test_images_are_decoded_as_the_spec_of_the_model_says():
    other = ImageOptions(image_size=(8, 8), resize_mode=ResizeMode.PAD)
    for transform in (
        lambda: embed_units(embed=EmbedOptions(other)),
        lambda: api.EmbedRecords(FakeModel(), images=other),
        lambda: api.EmbedRecords(config(), images=ImageOptions((32, 32), accept_truncated=True, dicom_frame=2)),
    ):
        with pytest.raises(imagebeam.ImagebeamError, match=r"spec says.*(stretch != |pad != |dicom_frame)"):
            transform()
    embed_units(embed=EmbedOptions(ImageOptions((8, 8), accept_truncated=True, max_image_pixels=99)))
    api.EmbedRecords(config(), images=ImageOptions((32, 32), accept_truncated=True))


CAMERA = (("camera", pa.string()),)


@pytest.mark.parametrize(("read", "part"), [(CAMERA, ()), ((), CAMERA), (CAMERA, (("camera", pa.int64()),))])
def test_a_part_has_the_columns_that_are_read(read, part):
    """They were null throughout, or missing."""
    with pytest.raises(imagebeam.ImagebeamError, match="camera"):
        embed_units(embed=eight(), read=ReadOptions(keep_columns=read), part=PartOptions(keep_columns=part))
    same = embed_units(embed=eight(), read=ReadOptions(keep_columns=read), part=PartOptions(keep_columns=read))
    assert same._part == embed_units(embed=eight(), read=ReadOptions(keep_columns=read))._part


def test_size_limit_is_given_once():
    with pytest.raises(imagebeam.ImagebeamError, match="max_image_pixels=5"):
        api.EmbedRecords(FakeModel(), images=ImageOptions((8, 8)), max_image_pixels=5)


@pytest.mark.parametrize(
    "settings",
    [
        {"resize_mode": "stretch_aliased", "interpolation": "bicubic"},
        {"resize_mode": "stretch_aliased", "scale_jpegs": True},
        {"image_size": None, "scale_jpegs": True},
    ],
)
def test_settings_of_images_that_contradict_each_other_are_refused(settings):
    with pytest.raises(imagebeam.ImagebeamError, match=r"Received: .*="):
        api.ImageOptions(**settings)
