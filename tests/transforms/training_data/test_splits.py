import hashlib

import numpy as np
import pytest

from transforms.training_data.splits import (
    DROPPED,
    Split,
    assign,
    describe_gaps,
    describe_small,
    grouped_numbers,
    image_numbers,
    largest_shift,
    straddling,
    stratify,
)

DIGESTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]


def test_number_of_an_image_never_changes():
    # Worked out with `b2sum -l 64`: printf '0:abc' | b2sum -l 64
    assert image_numbers(["abc"], seed=0).tolist() == [0x6AEFAD96F5C63487]
    assert image_numbers(["abc"], seed=1)[0] != image_numbers(["abc"], seed=0)[0]


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.0, 0.5), (0.3, 0.0)])
def test_the_shares_are_kept(validation, test):
    codes = assign(image_numbers(DIGESTS, 0), validation, test)
    shares = np.bincount(codes, minlength=3) / len(codes)
    assert shares == pytest.approx([1 - validation - test, validation, test], abs=0.01)


def test_a_larger_set_keeps_its_old_split_and_equal_images_stay_together():
    small = assign(image_numbers(DIGESTS[:500], 7), 0.1, 0.2)
    large = assign(image_numbers(DIGESTS[::-1] + DIGESTS, 7), 0.1, 0.2)
    assert large[20_000:20_500].tolist() == small.tolist()
    assert large[:20_000][::-1].tolist() == large[20_000:].tolist()


def test_the_test_rows_do_not_depend_on_the_validation_share():
    numbers = image_numbers(DIGESTS, 0)
    assert np.array_equal(assign(numbers, 0.0, 0.2) == Split.TEST.code, assign(numbers, 0.3, 0.2) == Split.TEST.code)


def test_images_in_several_splits_are_counted_once():
    numbers = np.array([1, 1, 2, 2, 3, 3, 3, 4], np.uint64)
    codes = np.array([0, 0, 0, 2, 0, 1, 2, DROPPED], np.int8)
    assert straddling(numbers, codes) == 2


def test_gaps_and_shifts_of_a_split():
    counts = np.array([[6, 3, 1], [2, 0, 0], [0, 0, 0]])
    assert describe_gaps(counts, ["a", "b", "c"]) == ["2 of 3 classes have no validation rows: b, c"]
    shift = largest_shift(counts)
    assert shift.keys() == {"train", "validation"}
    assert shift["validation"] == pytest.approx(1 - 8 / 12)
    assert shift["train"] == pytest.approx(8 / 12 - 6 / 10)


def test_every_class_gets_its_share():
    numbers = image_numbers(DIGESTS[:3_000], 3)
    labels = np.random.default_rng(0).choice(30, 3_000, p=np.arange(1, 31) / 465)
    codes = stratify(numbers, assign(numbers, 0.1, 0.2), labels, 0.1, 0.2)
    for label in range(30):
        mine = codes[labels == label]
        allowed = max(0.02 * len(mine), 0.5)
        assert abs((mine == Split.TEST.code).sum() - 0.2 * len(mine)) <= allowed
        assert abs((mine != Split.TRAIN.code).sum() - 0.3 * len(mine)) <= allowed


def test_few_images_change_split_as_a_class_grows():
    numbers = image_numbers(DIGESTS, 5)
    moved = []
    for size in (100, 200, 400, 800, 1_600, 3_200):
        small, large = (
            stratify(numbers[:count], assign(numbers[:count], 0.1, 0.2), np.zeros(count, int), 0.1, 0.2)
            for count in (size, 2 * size)
        )
        moved.append((small != large[:size]).mean())
    assert max(moved) < 0.06
    assert moved[-1] == 0


def test_equal_images_stay_together_when_classes_are_evened_out():
    numbers = np.tile(image_numbers(DIGESTS[:40], 0), 3)
    labels = np.tile(np.arange(40) % 8, 3)
    codes = stratify(numbers, assign(numbers, 0.2, 0.2), labels, 0.2, 0.2)
    assert straddling(numbers, codes) == 0


def test_groups_that_share_an_image_are_one_group():
    images = np.array([1, 2, 3, 3, 4, 5], np.uint64)
    numbers = grouped_numbers(images, ["a", "a", "a", "b", "b", "c"], 0)
    assert len(set(numbers[:5].tolist())) == 1
    assert numbers[5] != numbers[0]


def test_classes_too_small_to_measure_are_named():
    counts = np.array([[50, 20], [5, 2], [12, 4]])
    described = describe_small(counts, ["a", "b"], Split.TEST)
    assert described is not None
    assert "1 of 2 classes" in described
    assert "b (4)" in described
    assert describe_small(counts[:, :1], ["a"], Split.TEST) is None
