"""Decoders in a process of their own: what they cost when they crash, and what is said where they are missing."""

import importlib.util
import sys

import numpy as np
import pytest

from tests.support.high_range import exr, hdr, light, rgbe
from transforms.images import isolated
from transforms.images.decode import IMAGE_EXTENSIONS, ImageError, ImageOptions, decode_image
from transforms.images.isolated import DecoderProcessError

NATIVE = ImageOptions(image_size=None)
SMALL = {
    "dicom": bytes(128) + b"DICM",
    "exr": exr({"Y": np.zeros((4, 4), np.float32)}),
    "hdr": hdr(rgbe(light(4, 4)), "-Y 4 +X 4"),
}


@pytest.fixture
def pool(monkeypatch):
    """Processes of the test's own."""
    own = isolated._Pool()
    monkeypatch.setattr(isolated, "_POOL", own)
    yield own
    own.close()


class TestMissing:
    @pytest.mark.parametrize("kind", SMALL)
    @pytest.mark.parametrize("package", isolated.PACKAGES)
    def test_the_failure_names_the_extra(self, monkeypatch, kind, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImageError, match=r"pip install 'imagebeam\[tfio\]'") as caught:
            decode_image(SMALL[kind], NATIVE)
        assert caught.value.error_type == f"unsupported_{kind}"

    @pytest.mark.skipif(importlib.util.find_spec("tensorflow_io") is not None, reason="tensorflow-io works here")
    def test_so_does_the_one_of_versions_that_do_not_go_together(self, monkeypatch, pool):
        monkeypatch.setattr(isolated, "PACKAGES", ())
        with pytest.raises(ImageError, match=r"does not work here.*imagebeam\[tfio\]") as caught:
            decode_image(SMALL["hdr"], NATIVE)
        assert caught.value.error_type == "unsupported_hdr"

    def test_folders_hold_such_files(self):
        assert {".dcm", ".dicom", ".exr", ".hdr"} <= IMAGE_EXTENSIONS

    def test_a_process_that_does_not_start_is_the_machine_s_fault(self, monkeypatch, pool):
        monkeypatch.setattr(isolated, "PACKAGES", ())
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DecoderProcessError):
            decode_image(SMALL["hdr"], NATIVE)
