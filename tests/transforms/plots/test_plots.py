import io
import itertools

import numpy as np
import pytest
from PIL import Image

from transforms.plots import runs, training


@pytest.fixture
def drawn(monkeypatch):
    """The last figure that was drawn."""
    figures = []
    png = training.to_png
    monkeypatch.setattr(training, "to_png", lambda figure: figures.append(figure) or png(figure))
    return lambda: figures[-1]


def overlap(texts, axis):
    """Whether any two neighbouring texts overlap along an axis of the picture."""
    boxes = [text.get_window_extent() for text in texts]
    spans = sorted((box.x0, box.x1) if axis == "x" else (box.y0, box.y1) for box in boxes)
    return any(before[1] > after[0] for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize("classes", [2, 10, 25, 60, 100])
def test_class_names_are_legible(drawn, classes):
    names = [f"A rather long name, no. {number}" for number in range(classes)]
    random = np.random.default_rng(0)
    truth = random.integers(classes, size=2000)
    png = training.confusion_matrix(truth, random.integers(classes, size=2000), names, "test")
    axes = drawn().axes[0]
    for axis, texts in (("x", axes.get_xticklabels()), ("y", axes.get_yticklabels())):
        assert len(texts) == classes
        assert not overlap(texts, axis)
        assert all(text.get_fontsize() >= 7 for text in texts)
    # Nothing is cut off: every text lies within the picture.
    width, height = Image.open(io.BytesIO(png)).size
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert max(width, height) < 4000


NAMES = {
    "plain": ("cat", "cat"),
    "accents": ("Ärger, garçon, Ωμέγα", "Ärger, garçon, Ωμέγα"),
    "Japanese": ("猫", "#2"),
    "Korean among Latin": ("dog 개", "#3"),
    "Arabic": ("قطة", "#4"),
    "Hebrew": ("חתול", "#5"),
    "Hindi": ("बिल्ली", "#6"),
    "Thai": ("แมว", "#7"),
    "emoji": ("🐈", "#8"),
    "a direction mark": ("\u202ecat", r"\u202ecat"),
}


def test_undrawable_names_become_numbers(drawn):
    """A missing letter would be a warning, which fails the tests, and a row of boxes on the picture."""
    names = [name for name, _ in NAMES.values()]
    training.confusion_matrix(np.arange(10), np.arange(10), names, "test")
    axes = drawn().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [shown for _, shown in NAMES.values()]
    assert "by their place in labels.json" in axes.get_title()
    training.label_outcomes(np.eye(2), np.eye(2), ["a", "猫"], "test")
    assert [text.get_text() for text in drawn().axes[0].get_yticklabels()] == ["a", "#1"]


def test_numbers_of_classes_refer_to_all_classes(drawn):
    classes = [f"猫{number}" for number in range(150)]
    truth = np.arange(150)
    training.confusion_matrix(truth, np.where(truth >= 50, 0, truth), classes, "test")
    shown = [text.get_text() for text in drawn().axes[0].get_yticklabels()]
    assert shown == ["#0", *(f"#{number}" for number in range(50, 149))]


def test_cells_hold_the_counts(drawn):
    training.confusion_matrix(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0]), ["a", "b", "c"], "test")
    axes = drawn().axes[0]
    assert {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts} == {
        (0, 0): "2",
        (0, 1): "1",
        (1, 1): "2",
        (2, 0): "1",
    }
    assert axes.images[0].get_array()[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert axes.get_title() == "Confusion matrix: 6 test rows, 66.7% right"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_many_classes_show_only_those_with_errors(drawn):
    truth = np.arange(300).repeat(3)
    predicted = truth.copy()
    predicted[3 * 250] = 7  # class 250 taken for class 7
    training.confusion_matrix(truth, predicted, [f"c{number}" for number in range(300)], "test")
    names = [text.get_text() for text in drawn().axes[0].get_yticklabels()]
    assert len(names) == training.MAX_CLASSES
    assert {"c250", "c7"} <= set(names)
    assert "the 100 of 300 classes with the most errors" in drawn().axes[0].get_title()


def test_outcomes_of_several_labels(drawn):
    truth = np.array([[1, 0], [1, 1], [0, 1]])
    predicted = np.array([[1, 1], [0, 1], [0, 1]])
    training.label_outcomes(truth, predicted, ["$5 or $6", "b"], "validation")
    axes = drawn().axes[0]
    numbers = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "1", (0, 1): "1", (1, 0): "2", (1, 2): "1"}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$5 or $6", "b"]


@pytest.mark.parametrize("epochs", [1, 30])
@pytest.mark.parametrize("validated", [False, True])
def test_curves_show_the_history(drawn, epochs, validated):
    history = {"loss": np.linspace(2, 1, epochs).tolist(), "accuracy": np.linspace(0.5, 0.8, epochs).tolist()}
    if validated:
        history |= {f"val_{name}": values for name, values in history.items()}
    png = training.training_curves(history, best_epoch=epochs)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    loss, accuracy = drawn().axes
    assert [line.get_label() for line in loss.lines][: 1 + validated] == ["train", "validation"][: 1 + validated]
    assert loss.lines[0].get_ydata().tolist() == history["loss"]
    assert accuracy.lines[0].get_ydata().tolist() == history["accuracy"]
    assert loss.get_ylabel() == "loss (nats per row)"


@pytest.mark.parametrize("value", [0.1, 86.58])
def test_equal_vectors_have_no_variance(value):
    """Even where their mean, which is rounded, is not one of them."""
    vectors = np.full((12, 3), value, np.float32)
    assert np.any(vectors != vectors.mean(axis=0))
    Image.open(io.BytesIO(runs.embeddings(vectors, [None] * 12, {}))).verify()
