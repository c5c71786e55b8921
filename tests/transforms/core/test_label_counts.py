"""How labels are counted and described."""

import itertools

import pytest

from transforms.core.label_counts import CLASSES_KEPT, LabelCount


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], "labels: no row has one"),
        ([None, None], "labels: no row has one"),
        (["a"], "labels: all rows have one, 1 class: a"),
        (["b", None, "a", "a"], "labels: 3 of 4 rows have one, 2 classes: a, b"),
        (list("abcdefg"), "labels: all rows have one, 7 classes: a, b, c, d, e, ..."),
        (["two\nlines", "x" * 500], "labels: all rows have one, 2 classes: two lines, " + "x" * 37 + "..."),
    ],
)
def test_labels_are_described_in_one_line(labels, expected):
    line = LabelCount.of(labels).describe()
    assert line.startswith(expected)
    assert "\n" not in line


def test_counts_add_up_in_any_order():
    parts = [LabelCount.of(labels) for labels in (["a", None], ["b", "a"], [], [None])]
    wanted = LabelCount.of(["a", None, "b", "a", None])
    for order in itertools.permutations(parts):
        assert sum(order, LabelCount()) == wanted


def test_number_of_classes_kept_is_bounded():
    count = LabelCount.of([f"{number:06}" for number in range(CLASSES_KEPT + 1)])
    assert len(count.classes) == CLASSES_KEPT
    assert "more than 1,000 classes" in (count + LabelCount.of(["000000"])).describe()
    exact = LabelCount.of([f"{number:06}" for number in range(CLASSES_KEPT)])
    assert "rows have one, 1,000 classes" in (exact + exact).describe()
    assert "more than" in (exact + LabelCount.of(["other"])).describe()
