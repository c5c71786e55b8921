"""`imagebeam train`, from parts to a classifier's folder."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines import train
from pipelines.cli import run_job
from pipelines.common.flags import JobParser
from pipelines.options.search import SearchOptions
from pipelines.options.training import (
    ClassifierOptions,
    EmbeddingOptions,
    FitOptions,
    HeadOptions,
    RowOptions,
    SolverOptions,
)
from pipelines.train import TrainOptions, run
from pipelines.training.result import TrainResult
from tests.support.embedding_sets import SPEC, blobs, write_output
from transforms.core.errors import ImagebeamError
from transforms.models.embedder import Embedder
from transforms.models.staged import LoadedModel, stage
from transforms.storage.local import TEMPORARY_PREFIX
from transforms.training.head import Normalization, Schedule, Solver, VectorTransform

QUICK = FitOptions(epochs=4, batch_size=64, learning_rate=0.05)
FILES = ["classifier.keras", "confusion_matrix.png", "labels.json", "metrics.json", "predictions.parquet"]


def options(embeddings, output, *, fit=QUICK, rows=None, head=None, search=None, memory=512, **classifier):
    classifier = {"skip_image_classifier": True, **classifier}
    return TrainOptions(
        EmbeddingOptions((str(embeddings),), max_memory_mb=memory),
        ClassifierOptions(str(output), **classifier),
        rows or RowOptions(),
        head or HeadOptions(),
        fit,
        search or SearchOptions(),
    )


@pytest.fixture(scope="module")
def blob_set(tmp_path_factory):
    vectors, labels = blobs(600, classes=4)
    return vectors, labels, write_output(tmp_path_factory.mktemp("blobs"), vectors, labels)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Scikit-learn's digits: real scans, whose 64 pixels stand for embeddings."""
    found = load_digits()
    vectors, labels = found.data.astype(np.float32), found.target
    images = [row.tobytes().hex() for row in vectors]
    folder = tmp_path_factory.mktemp("digits")
    return vectors, labels, write_output(folder, vectors, labels.astype(str), rows_per_part=500, images=images)


def split_of(images, labels, validation=0.1, test=0.2, seed=0):
    """The split once more, in plain Python: what `transforms.training_data.splits` must agree with for ever."""

    def number(image):
        digest = hashlib.sha256(image.encode()).hexdigest()
        return int.from_bytes(hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8).digest(), "big") / 2**64

    def nearest(count, wanted, members):
        allowed = max(0.02 * members, 0.5)
        return next(n for n in sorted(range(members + 1), key=lambda n: abs(n - count)) if abs(n - wanted) <= allowed)

    label_of: dict[str, object] = {}
    split: dict[str, str] = {}
    for image, label in zip(images, labels, strict=True):
        label_of.setdefault(image, label)
    for label in set(label_of.values()):
        members = sorted((image for image in label_of if label_of[image] == label), key=number)
        tested = nearest(sum(number(image) < test for image in members), test * len(members), len(members))
        share = test + validation
        held = nearest(sum(number(image) < share for image in members), share * len(members), len(members))
        for place, image in enumerate(members):
            split[image] = "test" if place < tested else "validation" if place < held else "train"
    return [split[image] for image in images]


def weights(output):
    return keras.saving.load_model(Path(output, "classifier.keras")).get_weights()


def test_writes_a_classifier_and_its_metrics(blob_set, tmp_path):
    vectors, labels, folder = blob_set
    result = run(options(folder, tmp_path / "out"))
    assert result.problems == ()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "training_curves.png"])

    about = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert about["labels"] == ["class-0", "class-1", "class-2", "class-3"]
    assert about["spec"] == SPEC.to_dict()

    split = np.array(split_of([f"image {number}" for number in range(600)], labels))
    model = keras.saving.load_model(tmp_path / "out" / "classifier.keras")
    probabilities = model.predict(vectors[split == "test"], verbose=0)
    predicted = [about["labels"][number] for number in probabilities.argmax(axis=1)]
    truth = [label for label, part in zip(labels, split, strict=True) if part == "test"]

    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["key"].to_pylist() == [f"key-{number}" for number in np.flatnonzero(split == "test")]
    assert table["label"].to_pylist() == truth
    assert table["predicted"].to_pylist() == predicted
    assert np.array(table["probabilities"].to_pylist()) == pytest.approx(probabilities, abs=1e-6)
    assert table["probability"].to_numpy() == pytest.approx(probabilities.max(axis=1), abs=1e-6)

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics))
    assert metrics["evaluated_on"] == "test"
    assert metrics["accuracy"] == pytest.approx(np.mean(np.array(predicted) == truth))
    assert metrics["accuracy"] > 0.9
    assert metrics["fingerprint"] == SPEC.fingerprint
    assert {part: metrics["rows"][part] for part in ("train", "validation", "test")} == {
        part: int((split == part).sum()) for part in ("train", "validation", "test")
    }
    assert metrics["rows"]["by_class"]["class-2"]["test"] == truth.count("class-2")
    assert metrics["options"]["fit"]["epochs"] == 4
    assert metrics["versions"].keys() >= {"keras", "keras-backend", "scikit-learn", "python"}
    assert metrics["training"]["epochs"] == len(metrics["training"]["history"]["val_loss"]) == 4
    for name in ("training_curves.png", "confusion_matrix.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    # Epochs end by the validation loss, on a validation set of 180 rows; the solver has its optimum.
    ("fit", "worse"),
    [(FitOptions(epochs=60, learning_rate=0.01), 0.015), (FitOptions(), 0.01)],
    ids=["epochs", "exact"],
)
def test_softmax_regression_is_as_good_as_logistic_regression(digits, tmp_path, fit, worse):
    """On one split; a difference of 0.01 is its standard error. Ten splits: `python -m benchmarks.classifiers`."""
    vectors, labels, folder = digits
    rows = RowOptions(test_split=0.4)
    run(options(folder, tmp_path, rows=rows, fit=fit))
    split = np.array(split_of([row.tobytes().hex() for row in vectors], labels, test=0.4))
    scaler = StandardScaler().fit(vectors[split == "train"])
    theirs = LogisticRegression(max_iter=2000).fit(
        scaler.transform(vectors[split == "train"]), labels[split == "train"]
    )
    reference = theirs.score(scaler.transform(vectors[split == "test"]), labels[split == "test"])
    accuracy = json.loads((tmp_path / "metrics.json").read_text())["accuracy"]
    assert reference > 0.95
    assert accuracy >= reference - worse


@pytest.mark.slow
def test_default_is_no_worse_than_cross_validated_logistic_regression(digits, tmp_path):
    """Five times trained on 300 digits, so that the penalty matters, and tested on 700; scikit-learn has the same rows.

    One of 700 rows is 0.0014, and the standard error of a difference on one split about 0.006, of their mean 0.003.
    """
    differences = [difference_to_scikit_learn(digits, tmp_path / str(seed), seed) for seed in range(5)]
    assert np.mean(differences) >= -0.003
    assert min(differences) >= -0.012


def difference_to_scikit_learn(digits, folder, seed):
    """Accuracy of the job without flags less that of the baseline, on the job's test rows."""
    vectors, labels, _ = digits
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:1000]
    vectors, labels = vectors[chosen], labels[chosen]
    images = [row.tobytes().hex() for row in vectors]
    written = write_output(folder / "set", vectors, labels.astype(str), images=images)
    rows = RowOptions(test_split=0.7, validation_split=0.05, split_seed=seed)
    metrics = run(options(written, folder / "out", rows=rows, fit=FitOptions())).metrics
    held_out = np.array(split_of(images, labels, test=0.7, validation=0.05, seed=seed)) == "test"
    baseline = make_pipeline(StandardScaler(), LogisticRegressionCV(max_iter=1000, cv=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of arguments that will change their defaults
        baseline.fit(vectors[~held_out], labels[~held_out])
    assert metrics["rows"]["test"] == held_out.sum()
    return metrics["accuracy"] - baseline.score(vectors[held_out], labels[held_out])


def test_exact_solver_reports_its_choice_and_is_reproducible(blob_set, tmp_path):
    results = [run(options(blob_set[2], tmp_path / name, fit=FitOptions())).metrics for name in "ab"]
    training = results[0]["training"]
    assert training["solver"] == "exact"
    assert training["rows"] == results[0]["rows"]["train"] + results[0]["rows"]["validation"]
    losses = [candidate["log_loss"] for candidate in training["candidates"]]
    assert losses == sorted(losses)
    assert training["candidates"][0]["inverse_penalty"] == training["inverse_penalty"]
    low, high = results[0]["accuracy_interval_95"]
    assert low <= results[0]["accuracy"] <= high
    weights = [keras.saving.load_model(tmp_path / name / "classifier.keras").get_weights() for name in "ab"]
    assert all(np.array_equal(one, other) for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head": HeadOptions(hidden_units=(8,))}, "--hidden_units 8"),
        ({"fit": FitOptions(epochs=3)}, "--epochs 3"),
        ({"search": SearchOptions(search=True)}, "--search"),
        ({"memory": 1}, "--max_memory_mb"),
    ],
)
def test_flags_the_exact_solver_lacks_are_named(tmp_path, changes, named):
    vectors, labels = blobs(900, dimension=700)  # 2.4 MB: more than a budget of 1
    folder = write_output(tmp_path / "set", vectors, labels)
    exact = options(folder, tmp_path / "out", **{"fit": FitOptions(), **changes})
    with pytest.raises(ImagebeamError, match=rf"exact.* {named}"):
        run(dataclasses.replace(exact, solver=SolverOptions(Solver.EXACT)))
    assert not (tmp_path / "out").exists()


def test_mistakes_match_the_predictions(tmp_path):
    vectors, labels = blobs(900, spread=6.0)
    folder = write_output(tmp_path / "set", vectors, labels, rows_per_part=100)
    metrics = run(options(folder, tmp_path / "out", fit=FitOptions(), rows=RowOptions(test_split=0.6))).metrics
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    wrong = sorted((row for row in rows if row["label"] != row["predicted"]), key=lambda row: -row["probability"])
    assert len(wrong) > 40
    named = ("key", "uri", "label", "predicted", "probability")
    assert metrics["confident_mistakes"] == [{name: row[name] for name in named} for row in wrong[:20]]
    pairs = Counter((row["label"], row["predicted"]) for row in wrong)
    assert {(pair["label"], pair["predicted"]): pair["rows"] for pair in metrics["confused_pairs"]} == pairs
    assert sum(one["rows"] for one in metrics["calibration"]) == len(rows)


def test_folds_leave_out_every_training_and_validation_row_once(tmp_path, capsys):
    vectors, labels = blobs(400, spread=3.0)
    folder = write_output(tmp_path / "set", vectors, labels)
    asked = dataclasses.replace(options(folder, tmp_path / "out", fit=FitOptions()), solver=SolverOptions(folds=4))
    metrics = run(asked).metrics
    found = metrics["training"]["cross_validated"]
    assert (found["folds"], found["rows"]) == (4, metrics["rows"]["train"] + metrics["rows"]["validation"])
    assert len(found["fold_accuracies"]) == 4
    assert found["accuracy_interval_95"][0] < found["accuracy"] < found["accuracy_interval_95"][1]
    assert f"Cross-validated in 4 folds: accuracy {found['accuracy']:.4f}" in capsys.readouterr().err
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    assert found["accuracy"] == pytest.approx(cross_val_score(model, vectors, labels, cv=4).mean(), abs=0.04)


def test_folds_do_not_train_on_the_rows_left_out(tmp_path):
    """Labels drawn at random cannot be learned: seen in training they would be, with more values than rows."""
    vectors, _ = blobs(300, dimension=400)
    labels = np.random.default_rng(3).choice(["a", "b"], 300).tolist()
    folder = write_output(tmp_path / "set", vectors, labels)
    asked = dataclasses.replace(options(folder, tmp_path / "out", fit=FitOptions()), solver=SolverOptions(folds=5))
    assert abs(run(asked).metrics["training"]["cross_validated"]["accuracy"] - 0.5) < 0.1


@pytest.mark.parametrize("change", [{"head": HeadOptions((8,))}, {"fit": FitOptions(epochs=3)}])
def test_folds_without_the_exact_solver_are_refused(tmp_path, change):
    vectors, labels = blobs(60)
    folder = write_output(tmp_path / "set", vectors, labels)
    asked = options(folder, tmp_path / "out", **{"fit": FitOptions(), **change})
    with pytest.raises(ImagebeamError, match=r"exact solver.*--folds 3 and --(hidden_units 8|epochs 3)\."):
        run(dataclasses.replace(asked, solver=SolverOptions(folds=3)))


def test_one_group_stays_in_one_split(tmp_path):
    vectors, labels = blobs(300, classes=2)
    patients = [f"patient {number // 5}" for number in range(300)]
    folder = write_output(tmp_path / "set", vectors, labels, keep={"patient": (pa.string(), patients)})
    run(options(folder, tmp_path / "out", rows=RowOptions(group_column="patient")))
    keys = pq.read_table(tmp_path / "out" / "predictions.parquet")["key"].to_pylist()
    tested = {patients[int(key.removeprefix("key-"))] for key in keys}
    assert len(keys) == 5 * len(tested)
    assert 0.1 < len(keys) / 300 < 0.3


@pytest.mark.parametrize("memory", [pytest.param(512, marks=pytest.mark.slow), 1])
def test_same_seed_same_weights(tmp_path, memory):
    vectors, labels = blobs(900, dimension=700)  # 2.4 MB: streamed with a budget of 1
    write_output(tmp_path / "set", vectors, labels)
    head = HeadOptions((16,), dropout=0.2, normalization=Normalization.BATCH)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit = dataclasses.replace(QUICK, epochs=2, seed=seed)
        run(options(tmp_path / "set", tmp_path / name, head=head, fit=fit, memory=memory))
    first, same, other = (weights(tmp_path / name) for name in "abc")
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_streamed_rows_train_as_well_as_rows_in_memory(tmp_path):
    vectors, labels = blobs(900, dimension=700, spread=8.0)
    write_output(tmp_path / "set", vectors, labels)
    accuracies = []
    for memory in (512, 1):
        metrics = run(options(tmp_path / "set", tmp_path / str(memory), memory=memory)).metrics
        assert metrics["rows"]["train"] == split_of([f"image {n}" for n in range(900)], labels).count("train")
        accuracies.append(metrics["accuracy"])
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)
    assert min(accuracies) > 0.9


def test_image_classifier_equals_embedder_and_head(tmp_path):
    images = keras.Input((8, 8, 3), dtype="uint8", name="image")
    vector = keras.layers.Flatten()(keras.ops.cast(images, "float32") / 255.0)
    embedder = Embedder(SPEC, keras.Model(images, vector, name="embedder"))
    pixels = np.random.default_rng(0).integers(256, size=(300, 8, 8, 3), dtype=np.uint8)
    labels = ["dark" if picture.mean() < 127.5 else "light" for picture in pixels]
    vectors = embedder.embed(pixels)["embedding"]
    folder = write_output(tmp_path / "set", vectors, labels)
    stage(LoadedModel(embedder), f"{folder}/model", {"source": "none", "file_sha256": None})
    run(options(folder, tmp_path / "out", skip_image_classifier=False))
    whole = keras.saving.load_model(tmp_path / "out" / "image_classifier.keras", safe_mode=True)
    head = keras.saving.load_model(tmp_path / "out" / "classifier.keras", safe_mode=True)
    assert whole.predict(pixels, verbose=0) == pytest.approx(head.predict(vectors, verbose=0), abs=1e-6)


def test_missing_embedder_is_noticed_before_training(blob_set, tmp_path):
    with pytest.raises(ImagebeamError, match="--skip_image_classifier"):
        run(options(blob_set[2], tmp_path / "out", skip_image_classifier=False))
    assert not (tmp_path / "out").exists()


def test_several_labels_per_row(tmp_path, capsys):
    random = np.random.default_rng(0)
    truth = random.random((500, 3)) < 0.4
    vectors = (truth @ random.normal(size=(3, 8)) * 4 + random.normal(size=(500, 8))).astype(np.float32)
    tags = [[name for name, there in zip(("cat", "dog", "eel"), row, strict=True) if there] for row in truth]
    kept = {"tags": (pa.list_(pa.string()), tags)}
    folder = write_output(tmp_path / "set", vectors, [None] * 500, keep=kept)
    rows = RowOptions(label_column="tags", multi_label=True)
    fit = dataclasses.replace(QUICK, epochs=15, balance_classes=True)
    metrics = run(options(folder, tmp_path / "out", rows=rows, fit=fit)).metrics
    assert metrics["label_accuracy"] > 0.9
    measures = f"Label accuracy {metrics['label_accuracy']:.4f}; rows with all labels right: {metrics['accuracy']:.4f} "
    assert measures in capsys.readouterr().err
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    keys = [int(key.removeprefix("key-")) for key in table["key"].to_pylist()]
    assert table["label"].to_pylist() == [tags[key] for key in keys]
    model = keras.saving.load_model(tmp_path / "out" / "classifier.keras")
    probabilities = model.predict(vectors[keys], verbose=0)
    assert np.array(table["probabilities"].to_pylist()) == pytest.approx(probabilities, abs=1e-6)
    said = [[name for name, p in zip(("cat", "dog", "eel"), row, strict=True) if p >= 0.5] for row in probabilities]
    assert table["predicted"].to_pylist() == said


def test_one_label_that_a_row_has_or_not(tmp_path):
    random = np.random.default_rng(0)
    there = random.random(300) < 0.4
    vectors = (there[:, None] * 3 + random.normal(size=(300, 8))).astype(np.float32)
    kept = {"tags": (pa.list_(pa.string()), [["cat"] if one else [] for one in there])}
    folder = write_output(tmp_path / "set", vectors, [None] * 300, keep=kept)
    rows = RowOptions(label_column="tags", multi_label=True)
    metrics = run(options(folder, tmp_path / "out", rows=rows, fit=QUICK)).metrics
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    truth, predicted = ([bool(names) for names in table[name].to_pylist()] for name in ("label", "predicted"))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted))
    assert metrics["per_class"]["cat"]["support"] == sum(truth)
    assert metrics["accuracy"] > 0.8


def test_without_test_rows_the_validation_rows_are_measured(blob_set, tmp_path):
    metrics = run(options(blob_set[2], tmp_path, rows=RowOptions(test_split=0.0))).metrics
    assert metrics["evaluated_on"] == "validation"
    assert pq.read_metadata(tmp_path / "predictions.parquet").num_rows == metrics["rows"]["validation"]


@pytest.mark.parametrize("everything", [False, True])
def test_many_classes_list_only_the_most_probable(tmp_path, everything):
    vectors, labels = blobs(606, dimension=4, classes=150)
    folder = write_output(tmp_path / "set", vectors, labels)
    run(options(folder, tmp_path / "out", all_probabilities=everything))
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert ("probabilities" in table.column_names) is everything
    if not everything:
        head = keras.saving.load_model(tmp_path / "out" / "classifier.keras")
        names = np.array(json.loads((tmp_path / "out" / "labels.json").read_text())["labels"])
        by_key = dict(zip(pq.read_table(f"{folder}/embeddings")["key"].to_pylist(), vectors, strict=True))
        for row in table.to_pylist():
            (probabilities,) = head.predict_on_batch(by_key[row["key"]][None])
            order = np.argsort(-probabilities, kind="stable")[:5]
            assert row["top_labels"] == names[order].tolist()
            assert row["top_labels"][0] == row["predicted"]
            assert row["top_probabilities"] == pytest.approx(probabilities[order], abs=1e-6)


def test_all_epochs_run_without_validation_rows(blob_set, tmp_path):
    metrics = run(options(blob_set[2], tmp_path, rows=RowOptions(validation_split=0.0))).metrics
    assert metrics["training"]["history"].keys() == {"loss", "accuracy"}
    assert metrics["training"]["best_epoch"] == 4


@pytest.mark.parametrize(
    "given",
    [
        "--search_hidden_units none/128/512",
        "--search_weight_decay 0,0.01",
        "--search_learning_rate 0.001,0.01",
        "--search_folds 3",
        "--search_folds 2",
    ],
)
def test_flags_of_the_grid_need_the_search(given):
    """Also where their value is the default."""
    name = given.split()[0]
    with pytest.raises(ImagebeamError, match=f"{name} describes the grid of --search"):
        train.main(["--embeddings", "d", "--output", "o", *given.split()])
    assert SearchOptions(search=True).folds == 3


def test_equal_points_of_a_grid_are_trained_once():
    search = SearchOptions(True, ((4,), (), (4,)), (0.0, 0.0, 0.1), (0.01, 0.01))
    assert search.values() == (((4,), ()), (0.0, 0.1), (0.01,))


def test_a_point_that_diverges_is_the_last_of_the_search(blob_set, tmp_path, capsys):
    search = SearchOptions(True, ((),), (0.0,), (1e38, 0.01), 2)
    metrics = run(options(blob_set[2], tmp_path / "out", search=search, fit=FitOptions(epochs=2))).metrics
    best, diverged = metrics["search"]
    assert (best["learning_rate"], diverged["learning_rate"]) == (0.01, 1e38)
    assert best["log_loss"] > 0
    assert {name: diverged[name] for name in ("log_loss", "log_loss_std", "accuracy")} == dict.fromkeys(
        ("log_loss", "log_loss_std", "accuracy")
    )
    assert "diverged" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "out" / "metrics.json").read_text()


def test_a_diverged_search_names_its_own_flag(blob_set, tmp_path):
    search = SearchOptions(True, ((),), (0.0,), (1e38,), 2)
    with pytest.raises(ImagebeamError, match=r"diverged .*Lower --search_learning_rate\.$"):
        run(options(blob_set[2], tmp_path, search=search, fit=FitOptions(epochs=2)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_search_trains_the_best_of_the_grid(tmp_path):
    vectors, _ = blobs(400, dimension=2, spread=1.0)
    labels = ["in" if inside else "out" for inside in np.hypot(*(vectors - vectors.mean(axis=0)).T) < 2.5]
    folder = write_output(tmp_path / "set", vectors, labels)  # a disc: only a hidden layer can tell it
    search = SearchOptions(
        search=True,
        search_hidden_units=((), (32,)),
        search_weight_decay=(0.0,),
        search_learning_rate=(0.0001, 0.02),
        search_folds=2,
    )
    metrics = run(options(folder, tmp_path / "out", search=search, fit=FitOptions(epochs=8, batch_size=64))).metrics
    table = metrics["search"]
    points = {(tuple(row["hidden_units"]), row["weight_decay"], row["learning_rate"]) for row in table}
    assert points == set(itertools.product([(), (32,)], [0.0], [0.0001, 0.02]))
    assert [row["log_loss"] for row in table] == sorted(row["log_loss"] for row in table)
    assert (table[0]["hidden_units"], table[0]["learning_rate"]) == ((32,), 0.02)
    assert metrics["options"]["head"]["hidden_units"] == (32,)
    assert metrics["options"]["fit"]["learning_rate"] == 0.02
    kinds = [layer.name for layer in keras.saving.load_model(tmp_path / "out" / "classifier.keras").layers]
    assert "hidden_1" in kinds


def test_search_over_rows_larger_than_memory_is_refused(tmp_path):
    vectors, labels = blobs(900, dimension=700)
    folder = write_output(tmp_path / "set", vectors, labels)
    with pytest.raises(ImagebeamError, match=r"about 2 MB.*Raise --max_memory_mb"):
        run(options(folder, tmp_path / "out", fit=FitOptions(), search=SearchOptions(search=True), memory=1))
    assert not (tmp_path / "out").exists()


def test_folders_whose_names_are_not_utf_8(tmp_path):
    """As of a disk that a machine with another encoding wrote."""
    base = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    run = str(Path(write_output(tmp_path / "run", *blobs(60))).rename(base))
    assert run_job("train", ["--embeddings", run, "--output", str(base / "out"), "--skip_image_classifier"]) == 0
    assert json.loads((base / "out" / "metrics.json").read_bytes())["embeddings"] == [run]


def test_existing_output_is_not_overwritten(blob_set, tmp_path):
    (tmp_path / "classifier.keras").write_text("someone's own")
    with pytest.raises(ImagebeamError, match=r"classifier\.keras.*--overwrite"):
        run(options(blob_set[2], tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.keras"]
    assert (tmp_path / "classifier.keras").read_text() == "someone's own"
    run(options(blob_set[2], tmp_path, overwrite=True))
    assert len(weights(tmp_path)) == 2


def test_a_copied_run_changes_no_figure(blob_set, tmp_path, capfd):
    """Rows that count twice would give the same accuracy with a narrower interval."""
    _, _, folder = blob_set
    shutil.copytree(folder, tmp_path / "copy")
    figures = {}
    for name, runs in (("one", [folder]), ("two", [folder, str(tmp_path / "copy")])):
        arguments = ["--embeddings", *runs, "--output", str(tmp_path / name), "--skip_image_classifier"]
        assert run_job("train", arguments) == 0
        assert ("WARNING: 600 rows are left out" in capfd.readouterr().err) == (name == "two")
        figures[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert figures["two"]["rows"].pop("in_several_runs") == 600
    assert figures["one"]["rows"].pop("in_several_runs") == 0
    for key in ("rows", "accuracy", "accuracy_interval_95", "per_class"):
        assert figures["two"][key] == figures["one"][key]


BAD_SETS: dict[str, tuple[np.ndarray, list[str | None], str]] = {
    "labels": (np.zeros((40, 2), np.float32), [None] * 40, "have no label"),
    "one class": (np.zeros((40, 2), np.float32), ["cat"] * 40, "at least two classes"),
    "NaN": (np.full((40, 2), np.nan, np.float32), ["cat", "dog"] * 20, "NaN or infinity"),
    "masked": (np.full((40, 2), np.finfo(np.float32).min), ["cat", "dog"] * 20, "a value beyond 1e+36"),
    "empty": (np.zeros((0, 2), np.float32), [], "no embeddings"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_bad_input_is_one_line_and_leaves_the_output_alone(tmp_path, capfd, name):
    vectors, labels, message = BAD_SETS[name]
    folder = write_output(tmp_path / "set", vectors, labels)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("{}")
    arguments = ["--embeddings", folder, "--output", str(tmp_path / "out"), "--skip_image_classifier", "--overwrite"]
    assert run_job("train", arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("imagebeam")]
    assert message in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.json"]


def test_accuracy_below_the_minimum_is_exit_code_3(blob_set, tmp_path, capfd):
    arguments = ["--embeddings", blob_set[2], "--skip_image_classifier", "--epochs", "1", "--learning_rate", "1e-6"]
    code = run_job("train", [*arguments, "--output", str(tmp_path / "a"), "--assert_accuracy_at_least", "0.99"])
    assert code == 3
    assert "is lower than --assert_accuracy_at_least 0.99" in capfd.readouterr().err
    assert (tmp_path / "a" / "metrics.json").exists()
    code = run_job("train", [*arguments, "--output", str(tmp_path / "b"), "--assert_accuracy_at_least", "0"])
    assert code == 0


def test_classes_without_validation_rows_are_named(tmp_path, capfd):
    vectors, labels = blobs(200, classes=2)
    labels[0] = "rare"
    folder = write_output(tmp_path / "set", vectors, labels)
    run(options(folder, tmp_path / "out", fit=dataclasses.replace(QUICK, epochs=1)))
    assert "1 of 3 classes have no validation rows: rare" in capfd.readouterr().err


def test_images_in_several_splits_are_counted(tmp_path, capfd):
    vectors, labels = blobs(200)
    fold = (["train", "validation", "test", "train"] * 50, ["x", "y", "y", "z"] * 50)
    folder = write_output(tmp_path / "set", vectors, labels, images=fold[1], keep={"fold": (pa.string(), fold[0])})
    metrics = run(options(folder, tmp_path / "out", rows=RowOptions(split_column="fold"))).metrics
    assert metrics["rows"]["images_in_several_splits"] == 1
    assert metrics["rows"]["validation"] == 50
    assert "1 image is in more than one split" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "group", "expected"),
    [
        ("--embeddings x y --embeddings z", "embeddings", EmbeddingOptions(("x", "y", "z"))),
        (
            "--embedding_column e --allow_unfinished --max_memory_mb 9 --no_local_copy --labels new.csv",
            "embeddings",
            EmbeddingOptions(("d",), "e", True, 9, True, "new.csv"),
        ),
        (
            "--solver exact --vector_transform root --folds 5",
            "solver",
            SolverOptions(Solver.EXACT, VectorTransform.ROOT, 5),
        ),
        ("--group_column g", "rows", RowOptions(group_column="g")),
        ("--label_column l --drop_unlabeled", "rows", RowOptions("l", drop_unlabeled=True)),
        ("--multi_label --label_separator |", "rows", RowOptions(multi_label=True, label_separator="|")),
        (
            "--validation_split 0.3 --test_split 0 --split_seed 4",
            "rows",
            RowOptions(validation_split=0.3, test_split=0, split_seed=4),
        ),
        ("--split_column c", "rows", RowOptions(split_column="c")),
        (
            "--hidden_units 8,4 --dropout 0.5 --normalization batch",
            "head",
            HeadOptions((8, 4), 0.5, Normalization.BATCH),
        ),
        ("--hidden_units none", "head", HeadOptions()),
        (
            "--epochs 2 --batch_size 3 --learning_rate 0.4 --learning_rate_schedule cosine --weight_decay 0.5",
            "fit",
            FitOptions(2, 3, 0.4, Schedule.COSINE, 0.5),
        ),
        (
            "--label_smoothing 0.1 --balance_classes --patience 0 --seed 5 --checkpoint_seconds 6",
            "fit",
            FitOptions(label_smoothing=0.1, balance_classes=True, patience=0, seed=5, checkpoint_seconds=6),
        ),
        (
            "--search --search_hidden_units none/8,4 --search_weight_decay 0,1 --search_learning_rate 1",
            "search",
            SearchOptions(True, ((), (8, 4)), (0, 1), (1,)),
        ),
        (
            "--search --search_folds 2",
            "search",
            SearchOptions(True, search_folds=2),
        ),
        (
            "--overwrite --skip_image_classifier --all_probabilities --assert_accuracy_at_least 0.5",
            "classifier",
            ClassifierOptions("o", True, True, True, 0.5),
        ),
    ],
)
def test_every_flag_reaches_its_options(monkeypatch, arguments, group, expected):
    seen: list[TrainOptions] = []
    monkeypatch.setattr(train, "run", lambda given: seen.append(given) or TrainResult({}, ()))
    required = [] if "--embeddings" in arguments else ["--embeddings", "d"]
    assert train.main([*required, "--output", "o", *arguments.split()]) == 0
    assert getattr(seen[0], group) == expected


def test_every_flag_is_in_the_test_above():
    parser = JobParser("train")
    train.add_arguments(parser)
    marks = test_every_flag_reaches_its_options.pytestmark[0].args[1]
    tried = {word.removeprefix("--") for case in marks for word in case[0].split() if word.startswith("--")}
    of_every_job = {"help", "config", "debug", "log_format", "quiet"}
    declared = {name.removeprefix("--") for name in parser.flags} - of_every_job - {"output"}
    assert tried == declared


@pytest.mark.parametrize(
    "arguments",
    [
        "--max_memory_mb 0",
        "--validation_split 1",
        "--test_split -0.1",
        "--validation_split 0 --test_split 0",
        "--validation_split 0.5 --test_split 0.5",
        "--label_separator ,",
        "--hidden_units 8,0",
        "--hidden_units wide",
        "--dropout 0.5",
        "--dropout 1 --hidden_units 8",
        "--normalization layer",
        "--epochs 0",
        "--learning_rate 0",
        "--learning_rate nan",
        "--weight_decay -1",
        "--label_smoothing 1",
        "--patience -1",
        "--search_folds 1 --search",
        "--search_weight_decay 0",
        "--search_learning_rate 0,1 --search",
        "--search_weight_decay nan --search",
        "--search_hidden_units none/0 --search",
        "--assert_accuracy_at_least 97",
    ],
)
def test_impossible_value_is_refused(arguments):
    with pytest.raises(ImagebeamError, match=arguments.split()[0]):
        train.main(["--embeddings", "d", "--output", "o", *arguments.split()])


@pytest.mark.slow
def test_killed_job_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    vectors, labels = blobs(2000, dimension=32, spread=4.0)
    folder = write_output(tmp_path / "set", vectors, labels)
    flags = "--skip_image_classifier --hidden_units 32 --dropout 0.3 --epochs 60 --patience 0 --checkpoint_seconds 0"
    command = [sys.executable, "-m", "pipelines.train", "--embeddings", folder, *flags.split(), "--output"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, env=environment, timeout=200)
    output = tmp_path / "killed"
    state, kills = output / "checkpoint-state.npz", 0
    while kills < 3:
        before = state.stat().st_mtime_ns if state.exists() else 0
        with subprocess.Popen([*command, str(output)], env=environment) as process:
            while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
                time.sleep(0.02)
            time.sleep(0.3 * kills)
            process.send_signal(signal.SIGKILL)
        kills += 1
        assert not (output / "metrics.json").exists()
    subprocess.run([*command, str(output)], check=True, env=environment, timeout=200)
    for mine, theirs in zip(weights(output), weights(tmp_path / "undisturbed"), strict=True):
        assert np.array_equal(mine, theirs)
    names = {path.name for path in output.iterdir()}
    half_written = {name for name in names if name.startswith(TEMPORARY_PREFIX)}  # Too young to be removed.
    assert names - half_written == {*FILES, "training_curves.png"}
    assert len(half_written) <= kills
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("killed", "undisturbed"))
    for metrics in (one, other):
        del metrics["training"]["seconds"], metrics["options"]["classifier"]["output"]
    assert one == other
