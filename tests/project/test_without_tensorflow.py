"""The jobs without TensorFlow: JAX is installed, from requirements-jax.lock, and nobody says which to take."""

import json

import keras
import numpy as np
import pytest

from tests.support import environments
from tests.support.environments import ROOT, pins
from tests.support.extracting import embeddings, manifest
from tests.support.production import folder_of_classes, totals

pytestmark = [pytest.mark.slow, pytest.mark.install, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def jax(production, requires, tmp_path_factory):
    """The production environment with JAX in TensorFlow's place."""
    own = [line for line in requires["imagebeam"] if not line.startswith("tensorflow")]
    wanted = environments.closure(["imagebeam[all]"], {**requires, "imagebeam": own})
    environment = production.copy(tmp_path_factory.mktemp("without-tensorflow") / "jax")
    environment.pip("uninstall", "--quiet", "--yes", *sorted(pins("requirements.lock").keys() - wanted))
    environment.pip(*environments.INSTALL, "--require-hashes", "-r", ROOT / "requirements-jax.lock")
    return environment


@pytest.fixture(scope="module")
def weights(jax):
    """A file of VGG16's random weights."""
    path = jax.home / "vgg16.weights.h5"
    keras.utils.set_random_seed(0)
    keras.applications.VGG16(include_top=False, weights=None).save_weights(path)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return ("--model", "VGG16", "--weights", weights, "--image_size", "32x32")


@pytest.fixture(scope="module")
def run(jax, model):
    """An extract's output, with labels."""
    images = folder_of_classes(jax.home / "classes")
    jax.imagebeam("extract", "--input", images, "--output", "run", *model)
    return jax.home / "run"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


ANSWER = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np
for model, inputs, outputs in zip(*[iter(sys.argv[1:])] * 3):
    np.save(outputs, keras.saving.load_model(model).predict_on_batch(np.load(inputs)))
"""
"""Plain Keras, without this package."""


def test_there_is_no_tensorflow(jax):
    assert "No module named 'tensorflow'" in jax.python(
        "-c", "try: import tensorflow\nexcept ImportError as error: print(error)"
    )


def test_extract_gives_the_vectors_of_tensorflow(jax, production, run, model):
    production.imagebeam("extract", "--input", run.parent / "classes", "--output", "with-tensorflow", *model)
    found, expected = embeddings(run), embeddings(production.home / "with-tensorflow")
    assert found.keys() == expected.keys()
    assert len(found) == 20
    for key, vector in found.items():
        assert np.linalg.norm(vector - expected[key]) <= 1e-5 * np.linalg.norm(expected[key])
    manifests = [manifest(folder) for folder in (run, production.home / "with-tensorflow")]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    versions = manifests[0]["versions"]
    assert versions["keras-backend"] == "jax"
    assert versions["jax"] == pins("requirements-jax.lock")["jax"]
    assert "tensorflow" not in versions


def test_train_solves_the_head_exactly(jax, run):
    jax.imagebeam("train", "--embeddings", run, "--output", "solved", "--skip_image_classifier")
    assert metrics(jax.home / "solved")["training"]["solver"] == "exact"


def test_train_by_epochs_is_reproducible_and_classify_reads_it(jax, run):
    flags = ("--epochs", "2", "--hidden_units", "8", "--dropout", "0.2")
    jax.imagebeam("train", "--embeddings", run, "--output", "fitted", *flags)
    jax.imagebeam("train", "--embeddings", run, "--output", "again", "--skip_image_classifier", *flags)
    first, second = (metrics(jax.home / name)["training"] for name in ("fitted", "again"))
    assert first["history"] == second["history"]
    jax.imagebeam("classify", "--input", "classes", "--classifier", "fitted", "--output", "labels")
    assert totals(jax.home / "labels")["records"] == 20


def test_plain_keras_opens_what_was_trained_on_tensorflow(jax, production, run, tmp_path):
    production.imagebeam("train", "--embeddings", run, "--output", "trained")
    generator = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {
        "classifier.keras": np.stack(list(embeddings(run).values())),
        "image_classifier.keras": generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
    }
    arguments, expected = [], {}
    for name, values in inputs.items():
        np.save(tmp_path / f"{name}.npy", values)
        model = production.home / "trained" / name
        arguments += [model, tmp_path / f"{name}.npy", tmp_path / f"{name}.jax.npy"]
        expected[name] = keras.saving.load_model(model).predict_on_batch(values)  # on TensorFlow
    jax.python("-c", ANSWER, *arguments)
    for name, probabilities in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.jax.npy"), probabilities, atol=1e-5)
        assert len(np.unique(np.round(probabilities, 4))) > 4, "models that say the same of all would agree too"


def test_finetune(jax, run, model):
    flags = ("--epochs", "2", "--layer", "block1_pool", "--augment", "flip,rotation", "--unfreeze_per_epoch", "1")
    jax.imagebeam("finetune", "--input", "classes", "--output", "tuned", *model, *flags)
    assert metrics(jax.home / "tuned")["training"]["phases"]["tuning"]["epochs"] == 2
    assert (jax.home / "tuned" / "backbone.weights.h5").exists()
