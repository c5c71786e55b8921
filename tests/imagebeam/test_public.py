"""The public package: complete, documented and cheap to import."""

import inspect
import subprocess
import sys
from pathlib import Path

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


def test_max_image_pixels_has_one_default():
    flags = extraction.ModelOptions()
    assert imagebeam.ImageOptions().max_image_pixels == flags.max_image_pixels
    taken = inspect.signature(imagebeam.EmbedRecords).parameters["max_image_pixels"].default
    assert taken == flags.max_image_pixels
