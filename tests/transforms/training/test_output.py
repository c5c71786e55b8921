import os
import time

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
