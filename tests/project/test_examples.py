"""Each example runs as its users would run it, and does what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.extracting import embeddings, small_images

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    """What the example prints; its lines in order of the alphabet."""
    outcome = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert outcome.returncode == 0, outcome.stderr
    return sorted(outcome.stdout.splitlines())


@pytest.fixture
def source(tmp_path):
    return small_images(tmp_path / "in", 5)


def test_embed_units_goes_on_where_it_was(tmp_path, source):
    (source / "b" / "broken.jpg").write_bytes(b"")
    assert run("embed_units.py", tmp_path / "out", source) == ["5 embedded, 1 failed, done before: False"]
    assert {len(vector) for vector in embeddings(tmp_path / "out").values()} == {576}
    assert run("embed_units.py", tmp_path / "out", source) == ["5 embedded, 1 failed, done before: True"]
    assert len(embeddings(tmp_path / "out")) == 5


def test_run_inference_gives_a_vector_for_every_file(source):
    expected = [f"{path}: 576 floats" for path in sorted(source.rglob("*.jpg"))]
    assert run("run_inference.py", source / "*" / "*.jpg") == expected


def test_keras_model_trains_a_head_on_the_embedder():
    assert run("keras_model.py") == ["probabilities: (8, 5)"]


def test_every_example_is_listed_and_tested():
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name}`" in listed
        assert f'run("{path.name}"' in tests
