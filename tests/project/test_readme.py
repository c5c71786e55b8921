"""The documents' examples, run: every ```bash block under a line `<!-- runnable -->`, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^<!-- runnable -->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNABLE = {path.name: blocks for path in DOCUMENTS if (blocks := BLOCK.findall(path.read_text(encoding="utf-8")))}


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", RUNNABLE)
def test_examples_run(name, tmp_path):
    from tests.support.real_weights import vgg16_onnx

    vgg16_onnx()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in RUNNABLE[name]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{name}:\n{block}\n{done.stdout}"


def test_readme_has_examples_that_run():
    assert "README.md" in RUNNABLE


def test_every_runnable_marker_precedes_a_block():
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n<!-- runnable -->\n") == len(RUNNABLE.get(path.name, ())), path.name
