"""`imagebeam compare` over sets whose better embedding is known, held against plain scikit-learn."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from pipelines.cli import run_job
from pipelines.training.accuracy_table import print_accuracies
from tests.support.embedding_sets import blobs, write_output
from transforms.training.compare import Answers, common_rows, nearest_neighbours
from transforms.training.exact_solver import cut_folds

ROWS = 300


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same images as good, noisy and useless vectors, each in an order of its own."""
    folder = tmp_path_factory.mktemp("compare")
    vectors, labels = blobs(ROWS, classes=4, spread=2.0)
    random = np.random.default_rng(1)
    images = [f"{number:064x}" for number in range(ROWS)]
    made = {
        "good": vectors,
        "noisy": vectors + random.normal(size=vectors.shape) * 4,
        "none": random.normal(size=vectors.shape),
    }
    for name, values in made.items():
        order = random.permutation(ROWS)
        write_output(
            folder / name,
            values[order].astype(np.float32),
            [labels[row] for row in order],
            images=[images[row] for row in order],
        )
    return folder, vectors, labels


def compare(capsys, *arguments, code=0):
    assert run_job("compare", [*map(str, arguments), "--format", "json"]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out) if code == 0 else captured.err


def test_better_embedding_comes_first_with_paired_differences(sets, capsys):
    folder, *_ = sets
    best, noisy, useless = compare(capsys, folder / "none", folder / "noisy", folder / "good")
    assert [row["embedding"].split()[0].rsplit("/", 1)[-1] for row in (best, noisy, useless)] == [
        "good",
        "noisy",
        "none",
    ]
    for method in ("linear_probe", "neighbours"):
        assert best[method]["difference"] == 0
        low, high = useless[method]["difference_interval_95"]
        assert low < useless[method]["difference"] < high < -0.2
        assert useless[method]["difference"] == pytest.approx(useless[method]["accuracy"] - best[method]["accuracy"])
    assert useless["linear_probe"]["accuracy"] < 0.4
    assert best["images"] == ROWS


def test_nearest_neighbours_agree_with_scikit_learn(sets):
    _, vectors, labels = sets
    targets = np.unique(labels, return_inverse=True)[1]
    folds = cut_folds(targets, np.arange(len(targets)), 5, seed=3)
    plain = KNeighborsClassifier(7, metric="cosine", weights="distance")
    expected = np.zeros(len(targets), bool)
    for train, rest in folds:
        expected[rest] = plain.fit(vectors[train], targets[train]).predict(vectors[rest]) == targets[rest]
    found = nearest_neighbours(vectors, targets, folds, 7).right
    assert (found == expected).mean() > 0.99  # of the same neighbours, weighed by another distance


@pytest.mark.slow
def test_linear_probe_is_as_good_as_logistic_regression(sets, capsys):
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder, vectors, labels = sets
    best = compare(capsys, folder / "good", folder / "noisy")[0]
    baseline = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=10, max_iter=500, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False),
    )
    expected = cross_val_score(baseline, vectors, labels, cv=StratifiedKFold(5, shuffle=True, random_state=0)).mean()
    assert best["linear_probe"]["accuracy"] == pytest.approx(expected, abs=0.03)


def write_images(folder, first, last, label):
    """A run over the images of these numbers; vectors of 4 classes, labels by number."""
    vectors, names = blobs(ROWS, classes=4)
    given = [label(number, names[number]) for number in range(first, last)]
    return write_output(folder, vectors[first:last], given, images=[f"image {n}" for n in range(first, last)]), names


def test_labels_that_differ_between_outputs_are_told(tmp_path, capfd):
    one, names = write_images(tmp_path / "one", 0, 250, lambda number, name: name)
    two, _ = write_images(tmp_path / "two", 50, 300, lambda number, name: "other" if number % 4 == 0 else name)
    assert run_job("compare", [one, two]) == 0
    told = capfd.readouterr().err
    said = (
        r"WARNING: 50 images have other labels in one output than in another, such as 'key-(\d+)' \('(\S+)', 'other'\)"
    )
    found = re.search(said, told)
    assert found, told
    assert int(found[1]) % 4 == 0
    assert found[2] == names[int(found[1])]
    assert "100 images are not in every output, and left out" in told
    assert "on 200 images of 4 classes" in told


def test_any_output_may_have_the_label(tmp_path, capfd):
    one, _ = write_images(tmp_path / "one", 0, 300, lambda number, name: name if number < 100 else None)
    two, _ = write_images(tmp_path / "two", 0, 300, lambda number, name: name if number >= 50 else None)
    assert run_job("compare", [one, two]) == 0
    told = capfd.readouterr().err
    assert "on 300 images of 4 classes" in told
    assert "WARNING" not in told
    assert "not in every output" not in told


def test_one_output_may_have_the_label_column(tmp_path, capfd):
    vectors, labels = blobs(ROWS, classes=3)
    one = write_output(tmp_path / "one", vectors, [None] * ROWS)
    numbers = [int(label[-1]) for label in labels]
    two = write_output(tmp_path / "two", vectors, [None] * ROWS, keep={"kind": (pa.int64(), numbers)})
    assert run_job("compare", [one, two, "--label_column", "kind"]) == 0
    assert "on 300 images of 3 classes" in capfd.readouterr().err


def test_an_output_given_twice_is_refused(sets, capsys):
    folder, *_ = sets
    assert "An output is given twice" in compare(capsys, folder / "good", f"{folder}/none/../good", code=2)


def test_only_images_that_all_have_once_are_compared():
    rows = common_rows([["b", "a", "x", "b"], ["y", "a", "b"]], 10, 0)
    assert [found.tolist() for found in rows] == [[1, 0], [1, 2]]


def test_interval_is_that_of_the_paired_difference():
    left, right = Answers(np.array([True] * 80 + [False] * 20)), Answers(np.array([True] * 70 + [False] * 30))
    mean, low, high = left.difference(right)
    assert mean == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.1 - 1.96 * 0.3015 / 10, 0.1 + 1.96 * 0.3015 / 10), abs=1e-3)


def test_one_row_excludes_no_difference():
    assert Answers(np.array([True])).difference(Answers(np.array([False]))) == (1.0, -1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good"], "nothing to compare it with"),
        (["good", "noisy", "--folds", "1"], "--folds is at least 2"),
        (["good", "noisy", "--seed", "-1"], "--seed is at least 0"),
        (["good", "noisy", "--label_column", "no"], "--label_column 'no'"),
        (["good", "missing"], "no embeddings in"),
    ],
)
def test_bad_arguments_are_refused(sets, capsys, arguments, message):
    paths = [sets[0] / word if word in ("good", "noisy", "missing") else word for word in arguments]
    assert message in compare(capsys, *paths, code=2)


def test_folder_names_are_printed_literally(capsys):
    print_accuracies(("embedding", "length"), [("out/[red]a[/red]\x1b[2J 猫", "3")], "title")
    assert r"out/[red]a[/red]\x1b[2J 猫" in capsys.readouterr().out


def test_a_pipe_gets_long_names_whole(capsys):
    names = [f"/a/folder/whose/name/is/long/and/which/holds/several/runs/of/one/project/{name}" for name in ("x", "y")]
    print_accuracies(("embedding", *"abcdef"), [(name, *["0.8507 (0.8178 to 0.8785)"] * 6) for name in names], "title")
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in names)
