import json
import re
import shutil
from pathlib import Path

import duckdb
import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, classification_report, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from pipelines.cli import run_job
from tests.support.extracting import SMALL_MODEL, embeddings, extract, failures, manifest, small_images
from transforms.classify.predictions import PredictionLayout
from transforms.core.types import Row
from transforms.images.decode import ImageOptions, decode_image
from transforms.models.engines import trial
from transforms.models.engines.openvino_model import is_installed
from transforms.parts.part_files import PartOptions
from transforms.training.head import embedder_of, join, read_labels, save

IMAGES = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, what extract and train make of them."""
    folder = tmp_path_factory.mktemp("classify")
    small_images(folder / "images", IMAGES)
    assert extract(folder / "images", folder / "run") == 0
    flags = ["--epochs", "3", "--batch_size", "8", "--test_split", "0.3"]
    assert run_job("train", ["--embeddings", str(folder / "run"), "--output", str(folder / "trained"), *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def another(folder):
    """Another training, on the same images and labels."""
    flags = ["--epochs", "1", "--batch_size", "8", "--test_split", "0.3", "--seed", "5"]
    arguments = ["--embeddings", str(folder / "run"), "--output", str(folder / "another"), *flags]
    assert run_job("train", arguments) == 0
    return folder / "another"


@pytest.fixture(scope="module")
def tagged(folder):
    """Images with lists of labels, one of them without, what extract and train make of them; one label comes later."""
    made = folder / "tagged"
    made.mkdir()
    rows: list[dict[str, object]] = []
    for number, path in enumerate(sorted((folder / "images").glob("*/*.jpg"))):
        tags = ["odd" if number % 2 else "even", *(["third"] if number % 3 == 0 else [])]
        rows.append({"uri": str(path), "label": tags if number else None})
    lists = made / "images.jsonl"
    allowed = ("--allow_uri_prefix", str(folder))
    for name, known in (("first", rows), ("run", [*rows[:-1], {**rows[-1], "label": ["even", "unheard of"]}])):
        lists.write_text("\n".join(map(json.dumps, known)))
        assert extract(lists, made / name, *allowed) == 0
    flags = ["--multi_label", "--label_column", "labels", "--drop_unlabeled", "--epochs", "3", "--test_split", "0.3"]
    arguments = ["--embeddings", str(made / "first"), "--output", str(made / "trained"), *flags]
    assert run_job("train", arguments) == 0
    return made


@pytest.fixture(scope="module")
def labelled(folder):
    """The output of classify over the images."""
    assert classify("--input", folder / "images", folder=folder, output=folder / "labelled") == 0
    return folder / "labelled"


def classify(*flags, folder, output, trained="trained"):
    required = ["--classifier", str(folder / trained), "--output", str(output), "--rows_per_unit", "5"]
    return run_job("classify", [*map(str, flags), *required])


def rows_of(output):
    """Rows by key, as DuckDB reads them."""
    found = duckdb.execute(f"select * from '{output}/predictions/*.parquet'")
    names = [name for name, *_ in found.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    by_key = {row["key"]: row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def files_of(output):
    return {path.name: path.read_bytes() for path in Path(output, "predictions").glob("*")}


def assert_says(row, probabilities, labels):
    """A row is what the probabilities of all classes say, to 1e-5."""
    order = np.argsort(-probabilities)
    assert row["predicted"] == row["top_labels"][0] == labels[order[0]]
    assert row["top_labels"] == [labels[place] for place in order]
    np.testing.assert_allclose(row["top_probabilities"], probabilities[order], atol=1e-5)
    assert row["probability"] == row["top_probabilities"][0]


def change_labels(path, **changes):
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, **{name: change(about[name]) for name, change in changes.items()}}))


def reverse_labels(trained, other):
    change_labels(trained / "labels.json", labels=lambda names: names[::-1])


def name_another_spec(trained, other):
    change_labels(trained / "labels.json", spec=lambda spec: {**spec, "weights_sha256": "0" * 64})


def take(name):
    def replace(trained, other):
        shutil.copy(other / name, trained / name)

    return replace


def change_backbone(trained, other):
    """The same head behind a backbone whose weights differ in one number; labels.json inside as before."""
    path = trained / "image_classifier.keras"
    model, labels = keras.saving.load_model(path), read_labels(path)
    kernel = next(variable for variable in model.weights if len(variable.shape) == 4)
    values = np.array(kernel)
    values.flat[0] += 1e-3
    kernel.assign(values)
    save(model, labels, path)


def shift_head(trained, other):
    """The same kernel and backbone, another mean: a constant of the graph."""
    path = trained / "image_classifier.keras"
    whole, labels = keras.saving.load_model(path), read_labels(path)
    head = whole.layers[-1]
    config = json.dumps(head.get_config())
    shifted = keras.Model.from_config(json.loads(re.sub(r'("value": \[)[^],]+', r"\g<1>0.125", config, count=1)))
    shifted.set_weights(head.get_weights())
    save(join(embedder_of(whole), "embedding", shifted), labels, path)


def save_again(trained, other):
    model = keras.saving.load_model(trained / "classifier.keras")
    model.save(trained / "classifier.keras")


MIXED = {
    "labels reversed": (reverse_labels, r"classifier\.keras .* differ in labels\."),
    "another spec": (name_another_spec, r"classifier\.keras .* differ in spec\."),
    "another training's classifier.keras": (take("classifier.keras"), r"it is of another training"),
    "another training's image_classifier.keras": (take("image_classifier.keras"), r"it is of another training"),
    "another backbone": (change_backbone, r"other weights before its classifier"),
    "another mean": (shift_head, r"it is of another training"),
    "a model without its labels": (save_again, r"it holds no labels\.json"),
}


@pytest.mark.parametrize("what", list(MIXED))
def test_files_of_two_trainings_are_refused_before_an_image_is_read(folder, another, tmp_path, what, capfd):
    mix, message = MIXED[what]
    shutil.copytree(folder / "trained", tmp_path / "trained")
    mix(tmp_path / "trained", another)
    assert classify("--input", folder / "images", folder=tmp_path, output=tmp_path / "out") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.search(message, error), error
    assert not list((tmp_path / "out").glob("predictions/*"))


def test_images_get_the_predictions_of_the_image_classifier(folder, labelled):
    model = keras.saving.load_model(folder / "trained" / "image_classifier.keras")
    labels = json.loads((folder / "trained" / "labels.json").read_text())["labels"]
    rows = rows_of(labelled)
    assert len(rows) == IMAGES
    for path in (folder / "images").glob("*/*.jpg"):
        pixels = decode_image(path.read_bytes(), ImageOptions(image_size=(32, 32))).pixels
        (probabilities,) = model.predict_on_batch(pixels[None])
        assert_says(rows[str(path)], probabilities, labels)
        assert rows[str(path)]["label"] == path.parent.name


def test_images_get_the_predictions_of_the_head_on_extracted_vectors(folder, labelled):
    head = keras.saving.load_model(folder / "trained" / "classifier.keras")
    labels = json.loads((folder / "trained" / "labels.json").read_text())["labels"]
    rows, vectors = rows_of(labelled), embeddings(folder / "run")
    assert rows.keys() == vectors.keys()
    for key, vector in vectors.items():
        (probabilities,) = head.predict_on_batch(vector[None])
        assert_says(rows[key], probabilities, labels)


@pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed")
def test_openvino_and_keras_predict_the_same_labels(folder, labelled, tmp_path):
    images = ("--input", folder / "images")
    assert classify(*images, "--engine", "openvino", folder=folder, output=tmp_path) == 0
    rows, expected = rows_of(tmp_path), rows_of(labelled)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert row["predicted"] == expected[key]["predicted"]
        np.testing.assert_allclose(row["top_probabilities"], expected[key]["top_probabilities"], atol=1e-5)
    assert manifest(tmp_path)["engine"]["name"] == "openvino"
    assert manifest(labelled)["engine"]["name"] == "keras"
    next((tmp_path / "predictions").iterdir()).unlink()
    assert classify(*images, folder=folder, output=tmp_path) == 0, "what was settled stays"
    assert manifest(tmp_path)["engine"]["name"] == "openvino"
    assert rows_of(tmp_path).keys() == expected.keys()


@pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed")
def test_large_input_gets_an_engine_trial(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "PAYS_FROM_IMAGES", IMAGES)
    monkeypatch.setattr(trial, "PAYS_FROM_SECONDS", 0.0)
    assert classify("--input", folder / "images", folder=folder, output=tmp_path) == 0
    tried = [one["engine"] for one in manifest(tmp_path)["engine"]["trial"]["candidates"]]
    assert tried == ["keras", "openvino"]


def test_embeddings_and_their_images_get_the_same_labels(folder, labelled, tmp_path):
    assert classify("--embeddings", folder / "run", folder=folder, output=tmp_path) == 0
    rows, expected = rows_of(tmp_path), rows_of(labelled)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        np.testing.assert_allclose(row.pop("top_probabilities"), expected[key]["top_probabilities"], atol=1e-6)
        assert row.pop("probability") == pytest.approx(expected[key]["probability"], abs=1e-6)
        assert row == {name: expected[key][name] for name in row}
    assert len(files_of(tmp_path)) == len(list((folder / "run" / "embeddings").glob("*")))
    assert not list((tmp_path / "model").glob("embedder*"))
    assert manifest(tmp_path)["totals"]["embedded"] == IMAGES


@pytest.mark.parametrize("source", ["images", "embeddings"])
def test_rerun_keeps_committed_parts_and_remakes_missing_ones(folder, tmp_path, source, capfd):
    flags = ["--input", folder / "images"] if source == "images" else ["--embeddings", folder / "run"]
    assert classify(*flags, folder=folder, output=tmp_path) == 0
    before = files_of(tmp_path)
    name = sorted(before)[1]
    (tmp_path / "predictions" / name).unlink()
    capfd.readouterr()
    assert classify(*flags, folder=folder, output=tmp_path) == 0
    assert f"(1 unit now, {len(before) - 1} before)" in capfd.readouterr().err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("flags", [[], ["--allow_unfinished"]])
def test_parts_that_the_manifest_does_not_name_are_not_labelled(folder, tmp_path, flags):
    """Rows of an earlier input or cut, which a run with a problem leaves beside its own."""
    shutil.copytree(folder / "run", tmp_path / "run")
    small_images(tmp_path / "images", 3)
    assert extract(tmp_path / "images", tmp_path / "other") == 0
    for path in (tmp_path / "other" / "embeddings").iterdir():
        shutil.copy(path, tmp_path / "run" / "embeddings")
    assert classify("--embeddings", tmp_path / "run", *flags, folder=folder, output=tmp_path / "out") == 0
    assert rows_of(tmp_path / "out").keys() == embeddings(folder / "run").keys()


@pytest.fixture(scope="module")
def other_backbone(folder):
    """A classifier behind other weights, and what it says of the images."""
    made = folder / "other_backbone"
    model = [flag if flag != "random:0" else "random:1" for flag in SMALL_MODEL]
    assert extract(folder / "images", made / "run", model=model) == 0
    flags = ["--epochs", "3", "--batch_size", "8", "--test_split", "0.3"]
    assert run_job("train", ["--embeddings", str(made / "run"), "--output", str(made / "trained"), *flags]) == 0
    assert classify("--input", folder / "images", folder=made, output=made / "labelled") == 0
    return made


class TestModelsOfEarlierRuns:
    @pytest.mark.parametrize("left", ["a finished run", "a run that committed nothing"])
    def test_are_not_taken_for_the_classifiers(self, folder, labelled, other_backbone, tmp_path, left):
        if left == "a finished run":
            shutil.copytree(labelled, tmp_path / "out")
        else:
            shutil.copytree(labelled / "model", tmp_path / "out" / "model")
            shutil.copy(labelled / "run.json", tmp_path / "out")
        flags = ["--overwrite"] if left == "a finished run" else []
        output = tmp_path / "out"
        assert classify("--input", folder / "images", *flags, folder=other_backbone, output=output) == 0
        found, expected = rows_of(output), rows_of(other_backbone / "labelled")
        assert {key: row["top_probabilities"] for key, row in found.items()} == {
            key: pytest.approx(row["top_probabilities"], abs=1e-5) for key, row in expected.items()
        }
        differing = rows_of(labelled)
        assert any(abs(row["probability"] - differing[key]["probability"]) > 1e-3 for key, row in found.items())

    def test_are_staged_again_where_a_file_is_gone(self, folder, labelled, tmp_path):
        shutil.copytree(labelled, tmp_path / "out")
        for path in [*(tmp_path / "out" / "model").glob("embedder-*"), *(tmp_path / "out" / "predictions").iterdir()]:
            path.unlink()
        assert classify("--input", folder / "images", folder=folder, output=tmp_path / "out") == 0
        assert files_of(tmp_path / "out") == files_of(labelled)


def test_keeps_columns_and_the_embedding(folder, tmp_path):
    run = tmp_path / "run"
    assert extract(folder / "images" / "a", run) == 0
    for name, flags in (("images", ["--input", folder / "images" / "a"]), ("vectors", ["--embeddings", run])):
        output = tmp_path / name
        assert classify(*flags, "--keep_embedding", "--top_k", 1, folder=folder, output=output) == 0
        vectors = embeddings(run)
        for key, row in rows_of(output).items():
            np.testing.assert_allclose(row["embedding"], vectors[key], atol=1e-6)
            assert row["top_labels"] == [row["predicted"]]


@pytest.fixture(scope="module")
def table(folder):
    """The images as a Parquet file, with columns of several kinds."""
    paths = sorted((folder / "images").glob("*/*.jpg"))
    numbers = range(len(paths))
    columns = {
        "image": [path.read_bytes() for path in paths],
        "label": [path.parent.name for path in paths],
        "shot": pa.array([10**9 * number + 1 for number in numbers], pa.time64("ns")),
        "taken": pa.array([10**18 + number for number in numbers], pa.timestamp("ns")),
        "price": pa.array([None, *numbers][:-1], pa.decimal128(20, 2)),
        "Probability": [number / 100 for number in numbers],
    }
    pq.write_table(pa.table(columns), folder / "images.parquet")
    return folder / "images.parquet"


def test_columns_that_python_has_no_type_for_are_kept(folder, table, tmp_path):
    names = ["shot", "taken", "price"]
    assert extract(table, tmp_path / "run", "--keep_columns", ",".join(names)) == 0
    assert classify("--embeddings", tmp_path / "run", folder=folder, output=tmp_path / "out") == 0
    found, expected = (
        pq.read_table(path, columns=[*names, "key"]).sort_by("key")
        for path in (tmp_path / "out" / "predictions", tmp_path / "run" / "embeddings")
    )
    assert found.select(names).equals(expected.select(names))
    assert sorted(found["shot"].cast(pa.int64()).to_pylist()) == [10**9 * number + 1 for number in range(IMAGES)]


def test_a_kept_column_of_a_predictions_name_is_refused(folder, table, tmp_path, capfd):
    """It would be lost without a word."""
    assert extract(table, tmp_path / "run", "--keep_columns", "Probability") == 0
    assert classify("--embeddings", tmp_path / "run", folder=folder, output=tmp_path / "out") == 2
    assert "--keep_columns Probability=NEW" in error_of(capfd)
    assert not (tmp_path / "out").exists()
    flags = ["--keep_columns", "Probability=price", "--reuse", str(tmp_path / "run")]
    assert extract(table, tmp_path / "again", *flags) == 0
    assert manifest(tmp_path / "again")["totals"]["reused"] == IMAGES
    assert classify("--embeddings", tmp_path / "again", folder=folder, output=tmp_path / "out") == 0


def test_bad_image_is_a_failure_and_the_others_are_classified(folder, tmp_path):
    small_images(tmp_path / "images", 4)
    bad = tmp_path / "images" / "a" / "bad.jpg"
    bad.write_bytes(b"no image")
    flags = ["--input", tmp_path / "images", "--max_failure_rate", "0.1"]
    assert classify(*flags, folder=folder, output=tmp_path / "out") == 3
    assert list(failures(tmp_path / "out")) == [str(bad)]
    assert len(rows_of(tmp_path / "out")) == 4


class TestFigures:
    def test_equal_scikit_learn(self, folder, labelled, capfd):
        assert classify("--input", folder / "images", folder=folder, output=labelled) == 0
        metrics = json.loads((labelled / "metrics.json").read_text())
        rows = rows_of(labelled).values()
        truth, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
        assert metrics["rows"] == IMAGES
        assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
        assert metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
        report = classification_report(truth, predicted, output_dict=True, zero_division=0)
        for name, scores in metrics["per_class"].items():
            for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                assert scores[ours] == pytest.approx(report[name][theirs])
        assert f"Accuracy {metrics['accuracy']:.4f}" in capfd.readouterr().err

    def test_tell_abstentions_from_mistakes(self, folder, labelled, tmp_path, capfd):
        shutil.copytree(folder / "images" / "a", tmp_path / "images" / "a")
        shutil.copytree(folder / "images" / "a", tmp_path / "images" / "unheard of")
        rows = rows_of(labelled)
        threshold = float(np.median([row["probability"] for row in rows.values()]))
        flags = ["--input", tmp_path / "images", "--threshold", threshold]
        assert classify(*flags, folder=folder, output=tmp_path / "out") == 0
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        found = list(rows_of(tmp_path / "out").values())
        answered = [row for row in found if row["predicted"] is not None]
        assert [row["probability"] >= threshold for row in found] == [row["predicted"] is not None for row in found]
        assert metrics["abstained"] == len(found) - len(answered)
        assert metrics["unknown_labels"] == {"unheard of": len(found) // 2}
        right = sum(row["label"] == row["predicted"] for row in answered)
        assert (metrics["rows"], metrics["answered"]["rows"]) == (len(found), len(answered))
        truth, predicted = zip(*((row["label"], row["predicted"] or "") for row in found), strict=True)
        assert metrics["accuracy"] == accuracy_score(truth, predicted) == right / len(found)
        assert metrics["answered"]["accuracy"] == right / len(answered)
        labels = sorted(set(truth))
        expected = f1_score(truth, predicted, labels=labels, average="macro", zero_division=0)
        assert metrics["macro_f1"] == pytest.approx(expected)
        low, high = metrics["answered"]["accuracy_interval_95"]
        assert low <= metrics["answered"]["accuracy"] <= high
        told = capfd.readouterr().err
        assert f"on {len(found)} labelled images; macro F1 {expected:.4f}" in told
        assert f"on the {len(answered)} of them that reached the threshold" in told

    def test_are_of_the_column_that_the_classifier_learned(self, folder, tmp_path, capfd):
        """Trained on a kept column of whole numbers, and measured on it."""
        paths = sorted((folder / "images").glob("*/*.jpg"))
        lines = ["uri,kind", *(f"{path},{number % 2 + 7}" for number, path in enumerate(paths))]
        (tmp_path / "images.csv").write_text("\n".join(lines))
        kept = ("--keep_columns", "kind:int64", "--allow_uri_prefix", str(folder))
        assert extract(tmp_path / "images.csv", tmp_path / "run", *kept) == 0
        flags = ["--label_column", "kind", "--test_split", "0.3"]
        arguments = ["--embeddings", str(tmp_path / "run"), "--output", str(tmp_path / "trained"), *flags]
        assert run_job("train", arguments) == 0
        vectors = ["--embeddings", tmp_path / "run"]
        assert classify(*vectors, "--label_column", "kind", folder=tmp_path, output=tmp_path / "out") == 0
        rows = rows_of(tmp_path / "out")
        assert {row["uri"]: (row["label"], row["kind"]) for row in rows.values()} == {
            str(path): (str(number % 2 + 7), number % 2 + 7) for number, path in enumerate(paths)
        }
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        truth, predicted = zip(*((row["label"], row["predicted"]) for row in rows.values()), strict=True)
        assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
        capfd.readouterr()
        assert classify(*vectors, folder=tmp_path, output=tmp_path / "out") == 2
        assert "holds another run (label_column: kind != none)" in error_of(capfd)

    def test_count_a_record_of_two_runs_once(self, folder, tmp_path, capfd):
        """A copy of a run would narrow the interval."""
        shutil.copytree(folder / "run", tmp_path / "copy")
        figures = []
        for name, runs in (("one", [folder / "run"]), ("two", [folder / "run", tmp_path / "copy"])):
            assert classify("--embeddings", *runs, folder=folder, output=tmp_path / name) == 0
            figures.append(json.loads((tmp_path / name / "metrics.json").read_text()))
        assert figures[0] == figures[1]
        assert figures[0]["rows"] == IMAGES
        assert f"WARNING: {IMAGES} rows not measured whose record another run has too" in capfd.readouterr().err

    @pytest.mark.parametrize("source", [pytest.param("images", marks=pytest.mark.slow), "vectors"])
    def test_of_several_labels_equal_scikit_learn(self, tagged, tmp_path, source, capfd):
        flags = ["--input", tagged / "images.jsonl"] if source == "images" else ["--embeddings", tagged / "run"]
        if source == "images":
            flags += ["--allow_uri_prefix", tagged.parent]
        assert classify(*flags, "--threshold", 0.3, folder=tagged, output=tmp_path) == 0
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        rows = [row for row in rows_of(tmp_path).values() if row["labels"] is not None]
        names = ["even", "odd", "third", "unheard of"]
        binary = MultiLabelBinarizer(classes=names)
        truth = binary.fit_transform([row["labels"] for row in rows])
        predicted = binary.transform([row["predicted"] for row in rows])
        assert truth.any(axis=0).all()
        assert metrics["unknown_labels"] == {"unheard of": 1}
        assert (metrics["rows"], metrics["unlabeled"]) == (IMAGES - 1, 1)
        assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
        assert metrics["label_accuracy"] == pytest.approx((truth == predicted).mean())
        for average in ("macro", "micro"):
            expected = f1_score(truth, predicted, average=average, zero_division=0)
            assert metrics[f"{average}_f1"] == pytest.approx(expected)
        report = classification_report(truth, predicted, target_names=names, output_dict=True, zero_division=0)
        for name, scores in metrics["per_class"].items():
            for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                assert scores[ours] == pytest.approx(report[name][theirs])
            assert scores["support"] == report[name]["support"]
        told = capfd.readouterr().err
        assert f"Label accuracy {metrics['label_accuracy']:.4f}; rows with all labels right" in told
        assert "does not know 1 label: unheard of" in told

    def test_of_several_labels_need_lists(self, folder, tagged, tmp_path, capfd):
        assert classify("--input", folder / "images", folder=tagged, output=tmp_path) == 0
        assert "Not measured: the classifier gives an image several labels" in capfd.readouterr().err
        assert not (tmp_path / "metrics.json").exists()

    def test_of_an_earlier_run_go_with_its_rows(self, folder, tmp_path):
        small_images(tmp_path / "images", 4)
        flags = ["--input", tmp_path / "images", "--max_failure_rate", 1]
        assert classify(*flags, folder=folder, output=tmp_path / "out") == 0
        assert (tmp_path / "out" / "metrics.json").exists()
        for path in (tmp_path / "images").glob("*/*"):
            path.write_bytes(b"no image")
        assert classify(*flags, folder=folder, output=tmp_path / "out") == 3
        assert not (tmp_path / "out" / "metrics.json").exists()

    def test_are_absent_without_a_known_label(self, folder, tmp_path, capfd):
        (tmp_path / "in" / "images").mkdir(parents=True)
        for number, path in enumerate((folder / "images" / "a").iterdir()):
            shutil.copy(path, tmp_path / "in" / "images" / f"{number}.jpg")
        assert classify("--input", tmp_path / "in", folder=folder, output=tmp_path / "out") == 0
        assert {row["label"] for row in rows_of(tmp_path / "out").values()} == {"images"}
        told = capfd.readouterr().err
        assert "Accuracy" not in told
        assert "WARNING: the classifier knows none of the labels of 12 images: images\n" in told
        assert not (tmp_path / "out" / "metrics.json").exists()


def test_column_name_selects_one_of_several_layers(folder, tmp_path):
    """Its column's name is made from the layer's, which may not be read off it."""
    layers = ["--layer", "block1_conv1", "--layer", "block1_pool"]
    model = ["--model", "VGG16", "--weights", "random:0", "--image_size", "32x32", *layers]
    assert extract(folder / "images", tmp_path / "run", model=model) == 0
    flags = ["--epochs", "1", "--embedding_column", "embedding_block1_pool"]
    assert run_job("train", ["--embeddings", str(tmp_path / "run"), "--output", str(tmp_path / "trained"), *flags]) == 0
    for name, source in (("images", ["--input", folder / "images"]), ("vectors", ["--embeddings", tmp_path / "run"])):
        assert classify(*source, folder=tmp_path, output=tmp_path / name) == 0
    ours, theirs = rows_of(tmp_path / "images"), rows_of(tmp_path / "vectors")
    assert {key: row["predicted"] for key, row in ours.items()} == {
        key: row["predicted"] for key, row in theirs.items()
    }
    assert manifest(tmp_path / "images")["fingerprint"] == manifest(tmp_path / "vectors")["fingerprint"]


def error_of(capfd):
    """The one line of the error."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("imagebeam: ")]
    assert len(lines) == 1
    assert "internal error" not in lines[0]
    return lines[0]


class TestErrors:
    def test_refuses_vectors_of_another_spec(self, folder, tmp_path, capfd):
        other = [flag if flag != "block1_pool" else "block1_conv1" for flag in SMALL_MODEL]
        assert extract(folder / "images" / "a", tmp_path / "other", model=other) == 0
        for hide in (False, True):  # the model's folder may have stayed behind
            if hide:
                shutil.rmtree(tmp_path / "other" / "model")
            assert classify("--embeddings", tmp_path / "other", folder=folder, output=tmp_path / "out") == 2
            assert "layers: block1_pool != block1_conv1" in error_of(capfd)
        assert not (tmp_path / "out").exists()

    def test_refuses_a_folder_without_classifier(self, folder, tmp_path, capfd):
        flags = ["--input", folder / "images"]
        assert classify(*flags, folder=folder, output=tmp_path / "out", trained="run") == 2
        assert "no finished classifier" in error_of(capfd)
        assert not (tmp_path / "out").exists()

    def test_refuses_another_classifier_in_the_same_output(self, folder, labelled, capfd):
        before = files_of(labelled)
        flags = ["--input", folder / "images", "--top_k", 2]
        assert classify(*flags, folder=folder, output=labelled) == 2
        assert "top_k: 5 != 2" in error_of(capfd)
        assert files_of(labelled) == before

    def test_refuses_an_output_that_holds_embeddings(self, folder, capfd):
        assert classify("--input", folder / "images", folder=folder, output=folder / "run") == 2
        assert "holds another run (classifier_sha256: none !=" in error_of(capfd)

    @pytest.mark.parametrize("flags", [[], ["--overwrite"]])
    def test_refuses_to_write_into_the_run_that_it_reads(self, folder, tmp_path, capfd, flags):
        """With --overwrite its manifest, run.json and model were replaced before the vectors were read."""
        before = files_of(folder / "run")
        (tmp_path / "link").symlink_to(folder / "run")
        for output in (folder / "run", tmp_path / "link"):
            assert classify("--embeddings", folder / "run", *flags, folder=folder, output=output) == 2
            line = error_of(capfd)
            assert f"--embeddings '{folder / 'run'}'" in line
            assert f"--output '{output}'" in line
        assert files_of(folder / "run") == before

    def test_vectors_of_another_run_are_not_written_where_a_run_of_images_is(self, folder, tmp_path, capfd):
        shutil.copytree(folder / "run", tmp_path / "copy")
        assert classify("--embeddings", folder / "run", folder=folder, output=tmp_path / "copy") == 2
        assert "holds another run (" in error_of(capfd)

    def test_extract_refuses_an_output_that_holds_labels(self, folder, labelled, capfd):
        assert extract(folder / "images", labelled) == 2
        assert "holds another run" in error_of(capfd)

    def test_a_copy_of_the_run_is_neither_its_input_nor_its_output(self, folder, tmp_path, capsys):
        assert run_job("compact", [str(folder / "run"), "--output", str(tmp_path / "copy")]) == 0
        before = sorted(path.name for path in (tmp_path / "copy").iterdir())
        assert classify("--embeddings", tmp_path / "copy", folder=folder, output=tmp_path / "out") == 2
        assert str(folder / "run") in capsys.readouterr().err
        assert classify("--input", folder / "images", folder=folder, output=tmp_path / "copy") == 2
        assert "imagebeam compact" in capsys.readouterr().err
        assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == before

    @pytest.mark.parametrize("job", ["images", "vectors", "extract"])
    @pytest.mark.parametrize("holds", ["classifier.keras", "checkpoint-run.json"])
    def test_no_run_writes_into_a_classifiers_folder(self, folder, tmp_path, capfd, holds, job):
        """One that is finished, or one whose training goes on where it stopped."""
        for path in (folder / "trained").iterdir() if holds == "classifier.keras" else ():
            shutil.copy(path, tmp_path)
        (tmp_path / holds).touch()
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        if job == "extract":
            assert extract(folder / "images", tmp_path, "--overwrite") == 2
        else:
            source = ["--input", folder / "images"] if job == "images" else ["--embeddings", folder / "run"]
            assert classify(*source, "--overwrite", folder=folder, output=tmp_path) == 2
        assert f"{tmp_path} holds a classifier of train or finetune" in error_of(capfd)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("flags", [[], ["--overwrite"]])
    @pytest.mark.parametrize("run", ["run", "labelled"])
    def test_no_classifier_is_written_into_a_runs_folder(self, folder, labelled, capfd, run, flags):
        before = sorted((folder / run).iterdir())
        arguments = ["--embeddings", str(folder / "run"), "--output", str(folder / run), *flags]
        assert run_job("train", arguments) == 2
        assert f"{folder / run} holds a run of extract or classify (run.json)" in error_of(capfd)
        assert sorted((folder / run).iterdir()) == before

    def test_refuses_images_without_the_image_classifier(self, folder, tmp_path, capfd):
        shutil.copytree(folder / "trained", tmp_path / "trained")
        (tmp_path / "trained" / "image_classifier.keras").unlink()
        flags = ["--input", folder / "images"]
        assert classify(*flags, folder=tmp_path, output=tmp_path / "out") == 2
        assert "--skip_image_classifier" in error_of(capfd)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ([], "either --input"),
            (["--input", "a", "--embeddings", "b"], "either --input"),
            (["--input", "a", "--allow_unfinished"], "goes with --embeddings"),
            (["--input", "a", "--top_k", "0"], "--top_k is at least 1"),
            (["--input", "a", "--threshold", "1.5"], "--threshold is a probability"),
            (["--input", "a", "--keep_columns", "probability"], "name the output uses itself"),
            (["--input", "a", "--keep_columns", "x=Predicted"], "name the output uses itself"),
            (["--embeddings", "RUN", "--label_column", "x"], "no such column. Received: --label_column 'x'"),
            (["--embeddings", "RUN", "--label_column", "embedding"], "Labels are text"),
            (["--embeddings", "a", "--keep_columns", "x"], "--keep_columns goes with --input"),
        ],
    )
    def test_refuses_bad_flags(self, folder, tmp_path, flags, message, capfd):
        flags = [folder / "run" if flag == "RUN" else flag for flag in flags]
        assert classify(*flags, folder=folder, output=tmp_path / "out") == 2
        assert message in error_of(capfd)


class TestLayout:
    def table(self, probabilities, *, multi_label=False, top_k=2, threshold=0.0):
        rows = [
            Row(f"k{number}", "u", "b", 4, 5, "0" * 64, {"probabilities": np.array(values, np.float32)}, {"x": number})
            for number, values in enumerate(probabilities)
        ]
        part = PartOptions(keep_columns=(("x", pa.int64()),))
        return PredictionLayout(("a", "b", "c"), multi_label, top_k, threshold, part).to_table(
            rows, {"probabilities": 3}
        )

    def test_row_holds_top_labels_and_kept_columns(self):
        first, second = self.table([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]]).to_pylist()
        assert first == {
            "key": "k0",
            "uri": "u",
            "label": "b",
            "predicted": "b",
            "probability": 0.5,
            "top_labels": ["b", "a"],
            "top_probabilities": [0.5, 0.25],
            "width": 4,
            "height": 5,
            "sha256": "0" * 64,
            "x": 0,
        }
        assert second["top_labels"] == ["c", "b"]

    def test_lists_every_label(self):
        table = self.table([[0.5, 0.1, 0.75], [0.25, 0.125, 0.0]], multi_label=True, top_k=9, threshold=0.5)
        assert table["predicted"].to_pylist() == [["c", "a"], []]
        assert table["label"].to_pylist() == ["b", "b"]
        assert table["top_probabilities"].to_pylist() == [[0.75, 0.5, 0.10000000149011612], [0.25, 0.125, 0.0]]

    def test_abstains_below_the_threshold(self):
        table = self.table([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], threshold=0.6)
        assert table["predicted"].to_pylist() == [None, "c"]
        assert table["probability"].to_pylist() == [0.5, pytest.approx(0.7)]

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_empty_table_has_the_same_schema(self, multi_label, tmp_path):
        empty = self.table([], multi_label=multi_label)
        assert empty.schema == self.table([[1.0, 0.0, 0.0]], multi_label=multi_label).schema
        pq.write_table(empty, tmp_path / "empty.parquet")
