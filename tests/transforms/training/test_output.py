import os
import time

import pytest

from transforms.core.errors import ImagebeamError
from transforms.storage.local import TEMPORARY_PREFIX
from transforms.training.output import ClassifierFolder


def test_claim_removes_what_killed_runs_left_half_written(tmp_path):
    old, young = (tmp_path / f"{TEMPORARY_PREFIX}{name}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    ClassifierFolder(str(tmp_path), overwrite=False).claim({})
    assert not old.exists()
    assert young.exists(), "somebody may be writing it"


@pytest.mark.parametrize("below", ["", "/out"])
def test_a_file_is_no_output(below, tmp_path):
    (tmp_path / "x.py").write_text("x = 1")
    with pytest.raises(ImagebeamError, match=r"x\.py is a file"):
        ClassifierFolder(f"{tmp_path}/x.py{below}", overwrite=True)
