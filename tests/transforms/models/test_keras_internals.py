"""Keras' private names, and the global settings that must not change a number."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.keras_import import pinned_keras
from transforms.models.keras_internals import fresh_layer_names, published_efficientnet_md5, seeded

CONFIG = EmbedderConfig("MobileNet", "random:1", image_size=(32, 32))


def pixels():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def test_private_names_exist():
    from keras.src.backend.common import global_state
    from keras.src.random import seed_generator

    assert callable(global_state.get_global_attribute)
    assert callable(global_state.set_global_attribute)
    assert hasattr(seed_generator, "python_random")
    for number in range(8):
        assert all(len(md5) == 32 for md5 in published_efficientnet_md5(f"EfficientNetB{number}"))


def test_private_names_behave_as_expected():
    with fresh_layer_names():
        assert keras.layers.Activation("relu").name == "activation"
    values = []
    for _ in range(2):
        with seeded(5):
            layer = keras.layers.Dense(3)
            layer.build((None, 4))
        values.append(layer.get_weights()[0])
    np.testing.assert_array_equal(*values)


@pytest.fixture
def other_settings():
    """Global settings that a user's own code could have made earlier in the process."""
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(1e-2)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_max_epochs(1)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    keras.config.set_max_epochs(None)


@pytest.fixture(scope="module")
def right():
    embedder = resolve(CONFIG)
    return embedder.spec, embedder.embed(pixels())["embedding"]


def test_global_settings_change_nothing_and_are_restored(right, other_settings):
    embedder = resolve(CONFIG)
    assert embedder.spec == right[0]
    np.testing.assert_array_equal(embedder.embed(pixels())["embedding"], right[1])
    assert keras.config.floatx() == "float16"
    assert keras.config.epsilon() == 1e-2
    assert keras.config.image_data_format() == "channels_first"
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert keras.config.max_epochs() == 1


def test_nested_pins_restore_once(other_settings):
    with pinned_keras():
        with pinned_keras():
            assert keras.config.floatx() == "float32"
        assert keras.config.floatx() == "float32"
    assert keras.config.floatx() == "float16"


@pytest.mark.slow
def test_keras_config_file_changes_nothing(right, tmp_path):
    settings = {"floatx": "float16", "epsilon": 1e-2, "backend": "tensorflow", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    program = (
        "import sys, numpy as np\n"
        "from transforms.models.config import EmbedderConfig\n"
        "from transforms.models.embedder import resolve\n"
        "embedder = resolve(EmbedderConfig('MobileNet', 'random:1', image_size=(32, 32)))\n"
        "images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)\n"
        "np.save(sys.argv[1], embedder.embed(images)['embedding'])\n"
        "print(embedder.spec.fingerprint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "vectors.npy")],
        env={**os.environ, "KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-1] == right[0].fingerprint
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), right[1])
