import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from tests.support.embedding_sets import blobs
from transforms.training.head import Normalization, Schedule, balanced_weights, build_head, compile_head, join, save
from transforms.training_data.vector_sources import moments

VECTORS = blobs(64, dimension=6)[0]


def losses_of(head, targets, **settings):
    trained = compile_head(head, steps=10, **settings)
    return trained.evaluate(VECTORS, targets, batch_size=64, verbose=0, return_dict=True)


def logits_of(head):
    return keras.Model(head.input, head.get_layer("logits").output).predict_on_batch(VECTORS)


def test_softmax_regression_equals_its_formula():
    head = build_head(6, 3, normalization=Normalization.NONE, seed=1)
    kernel, bias = head.get_weights()
    assert head.predict_on_batch(VECTORS) == pytest.approx(softmax(VECTORS @ kernel + bias, axis=1), abs=1e-6)


def test_normalization_equals_standard_scaler():
    scaler = StandardScaler().fit(VECTORS)
    mean, deviation = moments(scaler)
    head = build_head(6, 3, mean=mean, deviation=deviation)
    normalized = keras.Model(head.input, head.get_layer("normalization").output).predict_on_batch(VECTORS)
    assert normalized == pytest.approx(scaler.transform(VECTORS), abs=1e-5)


def test_constant_feature_is_harmless():
    still = VECTORS.copy()
    still[:, 2] = 0.5
    mean, deviation = moments(StandardScaler().fit(still))
    head = build_head(6, 3, mean=mean, deviation=deviation)
    normalized = keras.Model(head.input, head.get_layer("normalization").output)
    assert np.abs(normalized.predict_on_batch(VECTORS)).max() < 20


def test_hidden_layers_dropout_and_batch_normalization_are_in_order():
    head = build_head(6, 3, hidden_units=(5, 4), dropout=0.5, normalization=Normalization.BATCH)
    kinds = [type(layer).__name__ for layer in head.layers]
    block = ["Dense", "BatchNormalization", "Activation", "Dropout"]
    assert kinds == ["InputLayer", "BatchNormalization", *block, *block, "Dense", "Activation"]
    assert [layer.units for layer in head.layers if isinstance(layer, keras.layers.Dense)] == [5, 4, 3]


def test_the_seed_decides_the_first_weights():
    one, same, other = (
        build_head(6, 3, hidden_units=(5,), normalization=Normalization.NONE, seed=s) for s in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one.get_weights(), same.get_weights(), strict=True))
    assert not np.array_equal(one.get_weights()[0], other.get_weights()[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, np.array([0.5, 1, 4], np.float32)])
def test_the_single_label_loss_is_the_textbooks(smoothing, weights):
    head = build_head(6, 3, normalization=Normalization.NONE)
    targets = np.arange(64, dtype=np.int32) % 3
    log_probabilities = log_softmax(logits_of(head).astype(np.float64), axis=1)
    wanted = np.eye(3)[targets] * (1 - smoothing) + smoothing / 3
    per_row = -(wanted * log_probabilities).sum(axis=1) * (1 if weights is None else weights[targets])
    found = losses_of(head, targets, label_smoothing=smoothing, class_weights=weights)
    assert found["loss"] == pytest.approx(per_row.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((log_probabilities.argmax(axis=1) == targets).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, np.array([0.5, 1, 4], np.float32)])
def test_the_multi_label_loss_is_the_textbooks(smoothing, weights):
    head = build_head(6, 3, normalization=Normalization.NONE, multi_label=True)
    targets = (np.random.default_rng(0).random((64, 3)) < 0.4).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-logits_of(head).astype(np.float64)))
    wanted = targets * (1 - smoothing) + smoothing / 2
    losses = -(wanted * np.log(probabilities) + (1 - wanted) * np.log(1 - probabilities))
    if weights is not None:
        losses = np.where(targets > 0, losses * weights, losses)
    found = losses_of(head, targets, label_smoothing=smoothing, class_weights=weights, multi_label=True)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx(((probabilities > 0.5) == (targets > 0)).mean())
    assert head.predict_on_batch(VECTORS) == pytest.approx(probabilities, abs=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0] * 10 + [1] * 4 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = balanced_weights(np.bincount(labels, minlength=3), 15, multi_label=False)
    assert found == pytest.approx(expected)
    assert balanced_weights(np.array([5, 0]), 5, multi_label=False)[1] == 1
    assert balanced_weights(np.array([2, 8, 0]), 10, multi_label=True) == pytest.approx([4, 0.25, 1])


def test_weight_decay_leaves_biases_and_normalization_alone():
    head = build_head(6, 3, hidden_units=(5,), normalization=Normalization.BATCH)
    trained = compile_head(head, steps=10, weight_decay=0.1, learning_rate=0.1)
    before = {variable.path: np.array(variable) + 0 for variable in trained.trainable_variables}
    nothing = [variable * 0.0 for variable in trained.trainable_variables]
    for variable in trained.trainable_variables:
        if variable.name == "bias":
            variable.assign_add(keras.ops.ones_like(variable))
            before[variable.path] = np.array(variable)
    trained.optimizer.apply(nothing, trained.trainable_variables)
    for variable in trained.trainable_variables:
        ratio = 1 - 0.1 * 0.1 if variable.name == "kernel" else 1
        assert np.array(variable) == pytest.approx(before[variable.path] * ratio, rel=1e-5), variable.path


def test_a_cosine_schedule_ends_at_zero():
    trained = compile_head(build_head(6, 3, normalization=Normalization.NONE), steps=4, schedule=Schedule.COSINE)
    targets = np.zeros(64, np.int32)
    rates = []
    for _ in range(5):
        rates.append(float(trained.optimizer.learning_rate))
        trained.train_on_batch(VECTORS, targets)
    assert rates == pytest.approx([0.001 * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(5)], abs=1e-8)


def image_embedder(columns):
    images = keras.Input((None, None, 3), dtype="uint8", name="image")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.ops.cast(images, "float32") / 255.0)
    vectors = {name: keras.layers.Dense(6, name=f"dense_{number}")(pooled) for number, name in enumerate(columns)}
    return keras.Model(images, vectors if len(columns) > 1 else vectors[columns[0]], name="embedder")


@pytest.mark.parametrize("columns", [["embedding"], ["embedding.one", "embedding.two"]])
def test_an_image_classifier_is_the_embedder_and_the_head(columns):
    embedder = image_embedder(columns)
    head = build_head(6, 3, normalization=Normalization.NONE, hidden_units=(4,))
    joined = join(embedder, columns[-1], head)
    images = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    vectors = embedder.predict_on_batch(images)
    vectors = vectors[columns[-1]] if len(columns) > 1 else vectors
    assert joined.predict_on_batch(images) == pytest.approx(head.predict_on_batch(vectors), abs=1e-6)
    assert joined.input.dtype == "uint8"


PLAIN_KERAS = """
import sys, numpy as np, keras
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
assert not [name for name in sys.modules if name.split(".")[0] in ("transforms", "pipelines")]
"""


def test_a_saved_classifier_opens_in_plain_keras_and_knows_its_labels(tmp_path):
    mean, deviation = moments(StandardScaler().fit(np.random.default_rng(1).normal(size=(9, 6))))
    head = build_head(6, 3, mean=mean, deviation=deviation, hidden_units=(4,), dropout=0.3)
    joined = join(image_embedder(["embedding"]), "embedding", head)
    images = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    save(joined, {"labels": ["a", "ä", "中"]}, tmp_path / "model.keras")
    paths = [str(tmp_path / name) for name in ("model.keras", "images.npy", "probabilities.npy")]
    subprocess.run([sys.executable, "-c", PLAIN_KERAS, *paths], check=True, cwd=tmp_path, timeout=120)
    assert np.load(tmp_path / "probabilities.npy") == pytest.approx(joined.predict_on_batch(images), abs=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert json.loads(archive.read("labels.json")) == {"labels": ["a", "ä", "中"]}
