"""Vectors equal those of plain keras.applications: built in process and loaded from the staged file.

The weights are not as a constructor leaves them: normalisation layers get statistics other than 0 and 1, which a
layer that ignores them would not show.
"""

import itertools
import warnings

import keras
import numpy as np
import pytest

from transforms.core.spec import Pooling, Precision
from transforms.models.architectures import ARCHITECTURES, get_architecture
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.staged import LoadedModel, stage

TOLERANCE = {Precision.FLOAT32: 1e-5, Precision.BFLOAT16: 3e-2, Precision.FLOAT16: 5e-3}
"""Largest difference over the largest value. Keras pools in the precision of the model, Imagebeam in float32."""


SMALLEST = (
    "Xception",
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "InceptionV3",
    "InceptionResNetV2",
    "MobileNet",
    "MobileNetV2",
    "DenseNet121",
    "NASNetMobile",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ConvNeXtTiny",
)

BOTH_POOLINGS = ("VGG16", "MobileNetV2")
"""Pooling is one layer after any model, and each pooling builds the model anew; `make parity` tries all of all."""


def plain_model(name, side, pooling=None, precision=Precision.FLOAT32):
    """What a user of Keras would write, in a fresh session since Keras numbers unnamed layers by process."""
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(str(precision))
    try:
        return _plain_model(name, side, pooling)
    finally:
        keras.config.set_dtype_policy("float32")


def _plain_model(name, side, pooling):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        return getattr(keras.applications, name)(
            weights=None, include_top=False, pooling=pooling, input_shape=(side, side, 3)
        )


def draw_weights(model, seed=0):
    """He-scaled kernels, and statistics as training leaves them."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.Sequential):
            draw_weights(layer, seed + 1)
        elif isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
            layer.set_weights([mean, deviation**2, np.int32(0)])
            layer.finalize_state()
        elif isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0, 0.1, shape))
            layer.moving_variance.assign(generator.uniform(0.3, 0.7, shape))
            layer.beta.assign(generator.normal(0, 0.1, shape))
            if layer.gamma is not None:
                layer.gamma.assign(generator.uniform(0.7, 1.3, shape))
        elif isinstance(layer, keras.layers.LayerNormalization):
            layer.gamma.assign(generator.uniform(0.7, 1.3, layer.gamma.shape))
            layer.beta.assign(generator.normal(0, 0.1, layer.beta.shape))


def preprocess(name, pixels):
    module = __import__(getattr(keras.applications, name).__module__, fromlist=["preprocess_input"])
    return module.preprocess_input(pixels.astype("float32"))


def check(name, folder, precisions, poolings=tuple(Pooling)):
    side = get_architecture(name).min_size
    side += side % 2
    reference = plain_model(name, side)
    draw_weights(reference)
    weights = folder / "plain.weights.h5"
    reference.save_weights(weights)
    pixels = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    for pooling, precision in itertools.product(poolings, precisions):
        plain = plain_model(name, side, None if pooling == Pooling.FLATTEN else str(pooling), precision)
        plain.set_weights(reference.get_weights())
        for layer in plain.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()
        right = np.float32(plain.predict(preprocess(name, pixels), verbose=0)).reshape(len(pixels), -1)
        config = EmbedderConfig(name, str(weights), pooling=pooling, image_size=(side, side), precision=precision)
        built = resolve(config)
        for embedder in (
            built,
            stage(LoadedModel(built), str(folder / "staged"), {"source": "x", "file_sha256": None}).load(),
        ):
            vectors = embedder.embed(pixels)["embedding"]
            assert vectors.shape == right.shape
            assert vectors.dtype == np.float32
            off = np.abs(vectors - right).max() / np.abs(right).max()
            assert off <= TOLERANCE[precision], (pooling, precision)


@pytest.mark.slow
def test_a_small_architecture_equals_plain_keras(tmp_path):
    check("MobileNetV3Small", tmp_path, (Precision.FLOAT32,), (Pooling.AVG,))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_of_each_family_equals_plain_keras(name, tmp_path):
    poolings = (Pooling.AVG, Pooling.MAX) if name in BOTH_POOLINGS else (Pooling.AVG,)
    check(name, tmp_path, (Precision.FLOAT32,), poolings)


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_equals_plain_keras(name, tmp_path):
    check(name, tmp_path, tuple(Precision))
