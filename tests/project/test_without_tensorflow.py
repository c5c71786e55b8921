"""The jobs without TensorFlow: JAX or PyTorch is installed, from its lock, and nobody says which to take."""

import json
import shutil

import keras
import numpy as np
import pytest

from tests.support import environments
from tests.support.environments import ROOT, pins
from tests.support.extracting import embeddings, manifest
from tests.support.production import folder_of_classes, totals

pytestmark = [pytest.mark.slow, pytest.mark.install, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module", params=["jax", "torch"])
def backend(request):
    """What Keras computes with."""
    return request.param


@pytest.fixture(scope="module")
def bare(backend, production, requires, tmp_path_factory):
    """The production environment with another backend in TensorFlow's place."""
    own = [line for line in requires["imagebeam"] if not line.startswith("tensorflow")]
    wanted = environments.closure(["imagebeam[all]"], {**requires, "imagebeam": own})
    environment = production.copy(tmp_path_factory.mktemp("without-tensorflow") / backend)
    environment.pip("uninstall", "--quiet", "--yes", *sorted(pins("requirements.lock").keys() - wanted))
    environment.pip(*environments.INSTALL, "--require-hashes", "-r", ROOT / f"requirements-{backend}.lock")
    yield environment
    shutil.rmtree(environment.folder)  # PyTorch takes 5 GB.


@pytest.fixture(scope="module")
def weights(bare):
    """A file of VGG16's random weights."""
    path = bare.home / "vgg16.weights.h5"
    keras.utils.set_random_seed(0)
    keras.applications.VGG16(include_top=False, weights=None).save_weights(path)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return ("--model", "VGG16", "--weights", weights, "--image_size", "32x32")


@pytest.fixture(scope="module")
def run(bare, model):
    """An extract's output, with labels."""
    images = folder_of_classes(bare.home / "classes")
    bare.imagebeam("extract", "--input", images, "--output", "run", *model)
    return bare.home / "run"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


ANSWER = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import keras, numpy as np
for model, inputs, outputs in zip(*[iter(sys.argv[2:])] * 3):
    np.save(outputs, keras.saving.load_model(model).predict_on_batch(np.load(inputs)))
"""
"""Plain Keras, without this package."""


def test_there_is_no_tensorflow(bare):
    assert "No module named 'tensorflow'" in bare.python(
        "-c", "try: import tensorflow\nexcept ImportError as error: print(error)"
    )


def test_extract_gives_the_vectors_of_tensorflow(backend, production, run, model):
    production.imagebeam("extract", "--input", run.parent / "classes", "--output", f"with-tensorflow-{backend}", *model)
    found, expected = embeddings(run), embeddings(production.home / f"with-tensorflow-{backend}")
    assert found.keys() == expected.keys()
    assert len(found) == 20
    for key, vector in found.items():
        assert np.linalg.norm(vector - expected[key]) <= 1e-5 * np.linalg.norm(expected[key])
    manifests = [manifest(folder) for folder in (run, production.home / f"with-tensorflow-{backend}")]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    versions = manifests[0]["versions"]
    assert versions["keras-backend"] == backend
    assert versions[backend] == pins(f"requirements-{backend}.lock")[backend]
    assert "tensorflow" not in versions


def test_train_solves_the_head_exactly(bare, run):
    bare.imagebeam("train", "--embeddings", run, "--output", "solved", "--skip_image_classifier")
    assert metrics(bare.home / "solved")["training"]["solver"] == "exact"


def test_train_by_epochs_is_reproducible_and_classify_reads_it(bare, run):
    flags = ("--epochs", "2", "--hidden_units", "8", "--dropout", "0.2")
    bare.imagebeam("train", "--embeddings", run, "--output", "fitted", *flags)
    bare.imagebeam("train", "--embeddings", run, "--output", "again", "--skip_image_classifier", *flags)
    first, second = (metrics(bare.home / name)["training"] for name in ("fitted", "again"))
    assert first["history"] == second["history"]
    bare.imagebeam("classify", "--input", "classes", "--classifier", "fitted", "--output", "labels")
    assert totals(bare.home / "labels")["records"] == 20


def test_plain_keras_opens_what_was_trained_on_tensorflow(backend, bare, production, run, tmp_path):
    production.imagebeam("train", "--embeddings", run, "--output", f"trained-{backend}")
    generator = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {
        "classifier.keras": np.stack(list(embeddings(run).values())),
        "image_classifier.keras": generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
    }
    arguments, expected = [], {}
    for name, values in inputs.items():
        np.save(tmp_path / f"{name}.npy", values)
        model = production.home / f"trained-{backend}" / name
        arguments += [model, tmp_path / f"{name}.npy", tmp_path / f"{name}.answer.npy"]
        expected[name] = keras.saving.load_model(model).predict_on_batch(values)  # on TensorFlow
    bare.python("-c", ANSWER, backend, *arguments)
    for name, probabilities in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.answer.npy"), probabilities, atol=1e-5)
        assert len(np.unique(np.round(probabilities, 4))) > 4, "models that say the same of all would agree too"


def test_finetune(bare, run, model):
    flags = ("--epochs", "2", "--layer", "block1_pool", "--augment", "flip,rotation", "--unfreeze_per_epoch", "1")
    bare.imagebeam("finetune", "--input", "classes", "--output", "tuned", *model, *flags)
    assert metrics(bare.home / "tuned")["training"]["phases"]["tuning"]["epochs"] == 2
    assert (bare.home / "tuned" / "backbone.weights.h5").exists()
