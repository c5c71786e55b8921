"""A classifier with a normalising backbone, copied as plain Keras copies."""

import keras
import numpy as np
import pytest

from transforms.models.constants import with_constant_normalization
from transforms.training.head import VectorTransform, build_head, join, transform_vectors

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(256, size=(3, 32, 32, 3)).astype(np.uint8)


def copy(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


@pytest.fixture(scope="module")
def embedder():
    """A backbone that normalises as EfficientNet's do, and pooling."""
    image = keras.Input((32, 32, 3))
    normalization = keras.layers.Normalization(name="normalization")
    values = normalization(keras.layers.Rescaling(1 / 255)(image))
    backbone = keras.Model(image, keras.layers.Conv2D(8, 3, activation="relu")(values), name="backbone")
    normalization.set_weights([np.array([0.3, 0.4, 0.5]), np.array([0.1, 0.2, 0.3]), np.int32(1)])
    normalization.finalize_state()
    pixels = keras.Input((32, 32, 3), dtype="uint8")
    return keras.Model(pixels, keras.layers.GlobalMaxPooling2D()(backbone(keras.ops.cast(pixels, "float32"))))


@pytest.mark.parametrize("transform", VectorTransform)
def test_copied_classifier_predicts_the_same(embedder, transform):
    vectors = embedder.predict_on_batch(PIXELS)
    values = transform_vectors(vectors, transform)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    head = build_head(8, 3, mean=mean, deviation=deviation, transform=transform)
    expected = head.predict_on_batch(vectors)
    np.testing.assert_allclose(copy(head).predict_on_batch(vectors), expected, atol=1e-6)
    whole = join(embedder, "embedding", head)
    np.testing.assert_allclose(whole.predict_on_batch(PIXELS), expected, atol=1e-5)
    np.testing.assert_allclose(copy(whole).predict_on_batch(PIXELS), expected, atol=1e-5)


def test_plain_keras_would_lose_the_normalization(embedder):
    """Why this is done; where Keras mends it, `with_constant_normalization` can go."""
    assert np.abs(copy(embedder).predict_on_batch(PIXELS) - embedder.predict_on_batch(PIXELS)).max() > 0.1


def test_model_without_normalization_is_unchanged():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert with_constant_normalization(plain) is plain
