import numpy as np
import pytest

from transforms.training.search import search

rng = np.random.default_rng(0)
VECTORS = rng.normal(size=(120, 3)).astype(np.float32)
TARGETS = rng.integers(3, size=120)
IMAGES = np.arange(120) // 2  # every image twice


def run(points, seen, folds=3, targets=TARGETS):
    def train(vectors, targets, parameters):
        seen.append((parameters["bias"], vectors, targets))
        return lambda vectors: np.full((len(vectors), 3), parameters["bias"])

    return search(
        VECTORS,
        targets,
        IMAGES,
        points,
        train,
        lambda probabilities, targets: {"score": probabilities[0, 0] + len(targets) * 0.0, "rows": len(targets)},
        rank_by="score",
        folds=folds,
        seed=1,
    )


def test_grid_points_are_ranked_and_every_fold_is_left_out_once():
    seen: list[tuple[float, np.ndarray, np.ndarray]] = []
    table = run([{"bias": 1.0}, {"bias": 3.0}, {"bias": 2.0}], seen)
    assert [row["bias"] for row in table] == [3.0, 2.0, 1.0]
    assert [row["score"] for row in table] == [3.0, 2.0, 1.0]
    assert [row["score_std"] for row in table] == [0, 0, 0]
    assert len(seen) == 9
    assert table[0]["rows"] == pytest.approx(40)
    for bias in (1.0, 2.0, 3.0):
        folds = [vectors for mine, vectors, _ in seen if mine == bias]
        assert sum(len(fold) for fold in folds) == 2 * 120


@pytest.mark.parametrize("targets", [TARGETS, np.eye(3)[TARGETS]])
def test_equal_images_stay_in_one_fold(targets):
    seen: list[tuple[float, np.ndarray, np.ndarray]] = []
    run([{"bias": 1.0}], seen, targets=targets)
    number_of = {row.tobytes(): image for row, image in zip(VECTORS, IMAGES, strict=True)}
    for _, vectors, _ in seen:
        trained = [number_of[row.tobytes()] for row in vectors]
        assert len(trained) == 2 * len(set(trained))  # both rows of an image, or neither


@pytest.mark.parametrize("targets", [np.arange(6) % 3, np.eye(3)[np.arange(6) % 3]])
def test_few_rows_are_cut_into_fewer_folds(targets):
    seen: list[int] = []

    def train(vectors, targets, parameters):
        seen.append(len(vectors))
        return lambda vectors: np.zeros((len(vectors), 3))

    search(
        *(VECTORS[:6], targets, np.arange(6) // 2, [{}], train, lambda *_: {"score": 0.0}),
        rank_by="score",
        folds=5,
        seed=1,
    )
    assert 1 < len(seen) < 5
    assert sum(seen) == 6 * (len(seen) - 1)


def test_classes_keep_their_shares_in_every_fold():
    seen: list[tuple[float, np.ndarray, np.ndarray]] = []
    run([{"bias": 1.0}], seen)
    overall = np.bincount(TARGETS) / len(TARGETS)
    for _, _, targets in seen:
        assert np.bincount(targets) / len(targets) == pytest.approx(overall, abs=0.05)
