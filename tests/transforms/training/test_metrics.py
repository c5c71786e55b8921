import numpy as np
import pytest
from sklearn import metrics as sk

from transforms.training.metrics import (
    Ranked,
    calibration_bins,
    calibration_error,
    confused_pairs,
    multi_label_metrics,
    single_label_metrics,
)

CLASSES = [f"class-{number}" for number in range(8)]


@pytest.fixture
def guesses():
    random = np.random.default_rng(1)
    truth = random.integers(7, size=400)  # the last class never occurs
    logits = random.normal(size=(400, 8)) + 1.5 * np.eye(8)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), truth


def test_metrics_equal_scikit_learn(guesses):
    probabilities, truth = guesses
    pieces = [Ranked.of(probabilities[start : start + 90], truth[start : start + 90]) for start in range(0, 400, 90)]
    found = single_label_metrics(Ranked.concatenate(pieces), CLASSES, np.array([1, 9, 2, 2, 2, 2, 2, 0]))
    predicted = probabilities.argmax(axis=1)
    wide = probabilities.astype(np.float64) / probabilities.sum(axis=1, dtype=np.float64, keepdims=True)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["top_5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(truth, probabilities, k=5, labels=range(8)))
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, wide, labels=range(8)), rel=1e-5)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert found["baseline"] == {"class": "class-1", "accuracy": pytest.approx((truth == 1).mean())}
    report = sk.classification_report(
        truth, predicted, labels=range(8), target_names=CLASSES, output_dict=True, zero_division=0.0
    )
    for name in CLASSES:
        mine, theirs = found["per_class"][name], report[name]
        assert mine["precision"] == pytest.approx(theirs["precision"])
        assert mine["recall"] == pytest.approx(theirs["recall"])
        assert mine["f1"] == pytest.approx(theirs["f1-score"])
        assert mine["support"] == theirs["support"]


def test_top_5_is_left_out_with_five_classes():
    rows = Ranked.of(np.full((3, 5), 0.2, np.float32), np.array([0, 1, 2]))
    assert single_label_metrics(rows, CLASSES[:5], np.ones(5))["top_5_accuracy"] is None


def test_equal_probabilities_rank_as_they_are_predicted():
    """With probabilities that are all equal, top-5 accuracy was 1."""
    rows = Ranked.of(np.full((12, 12), 1 / 12, np.float32), np.arange(12))
    assert rows.truth_rank.tolist() == list(range(12))
    classes = [str(number) for number in range(12)]
    assert single_label_metrics(rows, classes, np.ones(12, int))["top_5_accuracy"] == pytest.approx(5 / 12)


def test_a_certain_mistake_has_a_finite_loss():
    rows = Ranked.of(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert 80 < single_label_metrics(rows, ["a", "b"], np.ones(2))["log_loss"] < 100


def test_certain_and_right_answers_have_no_loss():
    """Not -0.0, which a summary printed as -0.0000."""
    rows = Ranked.of(np.eye(2, dtype=np.float32), np.arange(2))
    assert str(single_label_metrics(rows, ["a", "b"], np.ones(2))["log_loss"]) == "0.0"


def test_calibration_error_of_simple_cases():
    # 0.9 sure and right 9 times of 10; 0.6 sure and right 4 times of 10: 0.2 apart, on half of the rows.
    confidence = np.array([0.9] * 10 + [0.6] * 10, np.float32)
    correct = np.array([True] * 9 + [False] + [True] * 4 + [False] * 6)
    assert calibration_error(confidence, correct) == pytest.approx(0.1, abs=1e-6)
    assert calibration_error(np.ones(4, np.float32), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4, np.float32), np.zeros(4, bool)) == 1


def test_calibration_bins_add_up_to_the_error():
    random = np.random.default_rng(0)
    confidence = random.uniform(size=500).astype(np.float32)
    correct = random.uniform(size=500) < confidence**2
    bins = calibration_bins(confidence, correct)
    assert sum(one["rows"] for one in bins) == 500
    for one in bins:
        inside = (confidence >= one["from"]) & (confidence < one["to"])
        assert one["rows"] == inside.sum()
        assert one["confidence"] == pytest.approx(confidence[inside].mean(), rel=1e-5)
        assert one["accuracy"] == pytest.approx(correct[inside].mean())
    error = sum(one["rows"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / 500
    assert error == pytest.approx(calibration_error(confidence, correct), rel=1e-5)


def test_confused_pairs_are_counted():
    pairs = [(0, 1)] * 3 + [(1, 0)] * 5 + [(2, 2)] * 9 + [(2, 0)]
    assert confused_pairs(pairs, ["a", "b", "c"]) == [
        {"label": "b", "predicted": "a", "rows": 5},
        {"label": "a", "predicted": "b", "rows": 3},
        {"label": "c", "predicted": "a", "rows": 1},
    ]
    assert len(confused_pairs([(number, number + 1) for number in range(99)], [*map(str, range(100))])) == 20


def test_a_single_label_is_measured_as_such():
    """scikit-learn takes a matrix of one column for two classes, and is asked about the column instead."""
    random = np.random.default_rng(3)
    truth = random.random((200, 1)) < 0.4
    probabilities = np.clip(truth * 0.3 + random.random((200, 1)) * 0.7, 0, 1).astype(np.float32)
    predicted = probabilities[:, 0] >= 0.5
    found = multi_label_metrics(probabilities, truth.astype(np.float32), ["only"], np.array([0.4]))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth[:, 0], predicted, average="binary")
    assert found["accuracy"] == found["label_accuracy"] == pytest.approx((truth[:, 0] == predicted).mean())
    assert found["macro_f1"] == found["micro_f1"] == pytest.approx(f1)
    assert found["mean_average_precision"] == pytest.approx(
        sk.average_precision_score(truth[:, 0], probabilities[:, 0])
    )
    assert found["baseline"] == {"accuracy": pytest.approx(1 - truth.mean())}
    assert found["per_class"] == {
        "only": {
            "precision": pytest.approx(precision),
            "recall": pytest.approx(recall),
            "f1": pytest.approx(f1),
            "support": truth.sum(),
            "average_precision": found["mean_average_precision"],
        }
    }


def test_multi_label_metrics_equal_scikit_learn():
    random = np.random.default_rng(2)
    truth = random.random((300, 4)) < [0.5, 0.3, 0.8, 0.0]
    probabilities = np.clip(truth * 0.4 + random.random((300, 4)) * 0.6, 0, 1).astype(np.float32)
    predicted = probabilities >= 0.5
    found = multi_label_metrics(probabilities, truth.astype(np.float32), CLASSES[:4], np.array([0.5, 0.3, 0.8, 0.0]))
    assert found["accuracy"] == pytest.approx((predicted == truth).all(axis=1).mean())
    assert found["label_accuracy"] == pytest.approx(1 - sk.hamming_loss(truth, predicted))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["mean_average_precision"] == pytest.approx(
        sk.average_precision_score(truth[:, :3], probabilities[:, :3], average="macro")
    )
    assert found["per_class"]["class-3"]["average_precision"] is None
    losses = [sk.log_loss(truth[:, label], probabilities[:, label].astype(float), labels=[0, 1]) for label in range(4)]
    assert found["log_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["baseline"]["accuracy"] == pytest.approx((truth == [False, False, True, False]).all(axis=1).mean())
