"""The exact solver against scikit-learn."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from transforms.training.exact_solver import solve
from transforms.training.head import LOGITS, VectorTransform, build_head, transform_vectors


def rows(count=200, dimension=6, classes=3, seed=0):
    random = np.random.default_rng(seed)
    targets = random.integers(classes, size=count)
    centers = random.normal(size=(classes, dimension))
    return (centers[targets] + random.normal(size=(count, dimension))).astype(np.float32), targets


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("transform", VectorTransform)
def test_model_agrees_with_scikit_learn(tmp_path, classes, balanced, transform):
    vectors, targets = rows(classes=classes)
    solution = solve(vectors, targets, np.arange(200), classes, transforms=(transform,), balanced=balanced)
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    values = {"none": vectors, "root": roots, "both": np.hstack([vectors, roots])}[transform]
    scaler = StandardScaler().fit(values)
    weights = "balanced" if balanced else None
    reference = LogisticRegression(C=solution.best.inverse_penalty, max_iter=5000, tol=1e-6, class_weight=weights)
    reference.fit(scaler.transform(values), targets)
    head = build_head(6, classes, mean=solution.mean, deviation=solution.deviation, transform=transform)
    head.get_layer(LOGITS).set_weights([solution.kernel, solution.bias])
    head.save(tmp_path / "head.keras")
    loaded = keras.saving.load_model(tmp_path / "head.keras")
    expected = reference.predict_proba(scaler.transform(values))
    assert loaded.predict(vectors, verbose=0) == pytest.approx(expected, abs=5e-4)


def test_constant_and_zero_features_are_harmless():
    vectors, targets = rows()
    vectors[:, 0], vectors[:, 1] = 0.0, 7.5
    solution = solve(vectors, targets, np.arange(200), 3)
    assert np.isfinite(solution.kernel).all()
    assert (solution.deviation > 0).all()


@pytest.mark.parametrize("factor", [1e-36, 1e-24, 1.0, 1e18, 1e30])
def test_the_size_of_values_does_not_matter(factor):
    """A column of another size than the others, as the saved model divides it."""
    vectors, targets = rows()
    expected = solve(vectors, targets, np.arange(200), 3, transforms=(VectorTransform.NONE,))
    vectors[:, 2] *= np.float32(factor)
    solution = solve(vectors, targets, np.arange(200), 3, transforms=(VectorTransform.NONE,))
    assert solution.best.log_loss == pytest.approx(expected.best.log_loss, rel=1e-3)
    heads = []
    for found in (expected, solution):
        heads.append(build_head(6, 3, mean=found.mean, deviation=found.deviation))
        heads[-1].get_layer(LOGITS).set_weights([found.kernel, found.bias])
    plain = rows()[0]
    assert heads[1].predict(vectors, verbose=0) == pytest.approx(heads[0].predict(plain, verbose=0), abs=1e-3)


def test_equal_images_are_left_out_together():
    """Every row ten times with noise for a label: only a fold that splits copies could tell the labels."""
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(40, 30)).astype(np.float32), 10, axis=0)
    targets = np.repeat(random.integers(2, size=40), 10)
    apart = solve(vectors, targets, np.arange(400), 2)
    together = solve(vectors, targets, np.repeat(np.arange(40), 10), 2)
    assert apart.best.accuracy > 0.95
    assert together.best.accuracy < 0.8


def test_class_without_rows_is_never_predicted():
    vectors, targets = rows(classes=2)
    solution = solve(vectors, targets * 2, np.arange(200), 3)
    logits = (transform_vectors(vectors, solution.best.transform) - solution.mean) / solution.deviation
    assert set((logits @ solution.kernel + solution.bias).argmax(axis=1)) == {0, 2}


def test_held_out_rows_choose_the_penalty():
    vectors, targets = rows()
    held_out = np.arange(200) >= 150
    solution = solve(vectors, targets, np.arange(200), 3, held_out=held_out)
    accuracies = {candidate.accuracy * 50 for candidate in solution.candidates}
    assert all(accuracy == pytest.approx(round(accuracy)) for accuracy in accuracies)


def test_class_with_fewer_rows_than_folds():
    vectors, targets = rows(30, classes=2)
    targets[:] = 0
    targets[:2] = 1
    assert np.isfinite(solve(vectors, targets, np.arange(30), 2).best.log_loss)


@pytest.mark.parametrize("counts", [(3, 3, 3), (2, 1), (1, 1), (4, 4), (1, 1, 7), (2,) * 15])
def test_classes_of_a_few_rows_each(counts):
    """scikit-learn refuses more folds than every class has rows, and a fold that leaves one class to train on.

    Of many such classes it warned, once for each fit, that they might be a regression's.
    """
    targets = np.repeat(np.arange(len(counts)), counts)
    vectors, _ = rows(len(targets))
    solution = solve(vectors, targets, np.arange(len(targets)), len(counts))
    assert np.isfinite(solution.kernel).all()
    assert np.isfinite(solution.best.log_loss)
