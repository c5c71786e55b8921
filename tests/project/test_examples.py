"""Each example runs as its users would run it, and does what it says."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.extracting import embeddings, extract, files_of, small_images

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


@pytest.mark.slow
def test_embed_units_resumes(tmp_path, source):
    (source / "b" / "broken.jpg").write_bytes(b"")
    (source / "b" / "notes.txt").touch()
    assert run("embed_units.py", tmp_path / "out", source) == ["5 embedded, 1 failed, done before: False"]
    assert {len(vector) for vector in embeddings(tmp_path / "out").values()} == {576}
    assert run("embed_units.py", tmp_path / "out", source) == ["5 embedded, 1 failed, done before: True"]
    assert len(embeddings(tmp_path / "out")) == 5


MODEL = ("--model", "MobileNetV3Small", "--weights", "random:0", "--image_size", "96x96")


@pytest.fixture
def extracted(tmp_path, source):
    """What `imagebeam extract` writes of the same images."""
    assert extract(source, tmp_path / "extracted", model=MODEL) == 0
    return tmp_path / "extracted"


@pytest.mark.slow
def test_embed_images_writes_what_extract_writes_row_by_row(tmp_path, source, extracted):
    assert run("embed_images.py", tmp_path / "out", source)[0] == f"{tmp_path}/out/manifest.json"
    assert files_of(tmp_path / "out") == files_of(extracted)
    pipeline = [line for line in (EXAMPLES / "embed_images.py").read_text().splitlines()[1:] if line.strip()]
    assert len(pipeline) <= 10


@pytest.mark.slow
def test_embed_images_in_beam_yaml(tmp_path, source, extracted):
    variables = json.dumps({"pattern": str(source), "output": str(tmp_path / "out")})
    flags = [f"--yaml_pipeline_file={EXAMPLES / 'embed_images.yaml'}", f"--jinja_variables={variables}"]
    outcome = subprocess.run(
        [sys.executable, "-m", "apache_beam.yaml.main", *flags, "--runner=FnApiRunner"],
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert files_of(tmp_path / "out") == files_of(extracted)
    (provider,) = yaml.safe_load((EXAMPLES / "embed_images.yaml").read_text())["providers"]
    (shipped,) = yaml.safe_load((EXAMPLES.parent / "imagebeam" / "providers.yaml").read_text())
    assert provider["transforms"].items() <= shipped["transforms"].items()


@pytest.mark.slow
def test_vectors_to_sqlite_stores_what_extract_stores(tmp_path, source, extracted):
    (source / "b" / "broken.jpg").write_bytes(b"no image")
    printed = run("vectors_to_sqlite.py", tmp_path / "db", source / "*" / "*.jpg")
    assert printed == [f"failed: {source}/b/broken.jpg: not_an_image"]
    stored = dict(sqlite3.connect(tmp_path / "db").execute("select key, embedding from images").fetchall())
    expected = embeddings(extracted)
    assert stored.keys() == expected.keys()
    for key, vector in stored.items():
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_run_inference_gives_a_vector_for_every_file(tmp_path, source):
    expected = [f"{path}: 576 floats" for path in sorted(source.rglob("*.jpg"))]
    assert run("run_inference.py", tmp_path / "model", source / "*" / "*.jpg") == expected


@pytest.mark.slow
def test_ml_transform_gives_a_vector_for_every_row(tmp_path, source):
    expected = [f"{path}: 576 floats" for path in sorted(source.rglob("*.jpg"))]
    assert run("ml_transform.py", tmp_path / "artifacts", source / "*" / "*.jpg") == expected


@pytest.mark.slow
def test_keras_model_trains_a_head_on_the_embedder():
    assert run("keras_model.py") == ["probabilities: (8, 5)"]


def test_every_example_is_listed_and_tested():
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name}`" in listed
        assert f'run("{path.name}"' in tests
