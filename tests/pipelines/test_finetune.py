import dataclasses
import json
import os
import signal
import subprocess
import sys

import duckdb
import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import finetune as finetune_job
from pipelines.cli import run_job
from pipelines.options.extraction import InputOptions, ModelOptions
from pipelines.options.finetuning import FIT, FinetuneOptions
from pipelines.options.training import ClassifierOptions, FitOptions, RowOptions
from pipelines.training.backbone_training import inspect_images
from pipelines.training.result import TrainResult
from tests.support.extracting import extract, manifest, small_images
from tests.transforms.models.weights.test_load import WRITERS
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Pooling
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import assemble, load_backbone
from transforms.training.backbone import (
    Augmentation,
    Frozen,
    augmentation_layers,
    build_training_model,
    count_parameters,
    first_epochs,
    freeze,
)
from transforms.training.head import LOGITS, Normalization, build_head, join
from transforms.training.output import ResultFile

MODEL = ["--model", "VGG16", "--image_size", "32x32", "--layer", "block4_pool"]
ROWS = ["--batch_size", "8", "--seed", "1", "--validation_split", "0", "--test_split", "0.3"]
FLAGS = ["--weights", "random:0", *ROWS]
TUNING = ["--freeze_layers", "7", "--learning_rate", "1e-4", "--epochs", "3", "--augment", "flip,contrast"]
CONFIG = EmbedderConfig("VGG16", "random:0", layers=("block4_pool",), image_size=(32, 32))
SPEC = CONFIG.spec("0" * 64)
VGG_LAYERS = [f"block{block}_conv{number}" for block in range(1, 6) for number in range(1, 3 + (block > 2))]


def finetune(source, output, *flags, model=MODEL):
    return run_job("finetune", ["--input", str(source), "--output", str(output), *model, *FLAGS, *flags])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, and what finetune makes of them."""
    folder = tmp_path_factory.mktemp("finetune")
    small_images(folder / "images", 30)
    (folder / "images" / "a" / "bad.jpg").write_bytes(b"no image")
    assert finetune(folder / "images", folder / "tuned", *TUNING, "--max_failure_rate", "0.1") == 0
    return folder


def test_result_is_compared_with_probe_and_neighbours(folder, capsys):
    metrics = json.loads((folder / "tuned" / "metrics.json").read_text())
    tuned, linear, near = metrics["compared"]
    assert (tuned["method"], linear["method"], near["method"]) == ("fine-tuned", "linear probe", "nearest neighbours")
    assert tuned["accuracy"] == metrics["accuracy"]
    assert tuned["difference"] == 0
    assert linear["difference"] == pytest.approx(linear["accuracy"] - tuned["accuracy"])


@pytest.mark.parametrize(("low", "learned", "warned"), [(0.01, True, True), (-0.01, True, False), (0.01, False, False)])
def test_only_a_model_that_is_certainly_worse_than_its_probe_is_warned_of(low, learned, warned, capsys):
    def method(name, accuracy, interval):
        found = {"accuracy": accuracy, "interval_95": (0.1, 0.9)}
        return {"method": name, **found, "difference": accuracy - 0.5, "difference_interval_95": interval}

    compared = [method("fine-tuned", 0.5, (0, 0)), method("linear probe", 0.6, (low, 0.3))]
    summary = {"compared": compared, "evaluated_on": "test", "rows": {"test": 40}}
    finetune_job._print_compared(summary, learned=learned)
    assert ("WARNING: linear probe" in capsys.readouterr().err) == warned


def weights_of(model):
    return {layer.name: [array.tobytes() for array in layer.get_weights()] for layer in model.layers if layer.weights}


def test_frozen_layers_keep_every_byte_and_others_change(folder):
    before = weights_of(load_backbone(CONFIG))
    after = weights_of(
        load_backbone(dataclasses.replace(CONFIG, weights=str(folder / "tuned" / "backbone.weights.h5")))
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"block4_conv1", "block4_conv2", "block4_conv3"}
    assert all(b != a for name in changed for b, a in zip(before[name], after[name], strict=True))


def test_folder_holds_the_files_of_train_and_the_backbone(folder):
    assert {path.name for path in (folder / "tuned").iterdir()} == set(ResultFile)
    metrics = json.loads((folder / "tuned" / "metrics.json").read_text())
    assert metrics["failures"] == {"decode/not_an_image": 1}
    assert metrics["training"]["phases"]["tuning"]["epochs"] == 3
    frozen = [layer["name"] for layer in metrics["layers"] if layer["parameters"] and not layer["trainable"]]
    assert frozen[-1] == "block3_conv3"


def test_tuned_backbone_and_classifier_work_in_extract_and_classify(folder, tmp_path):
    """The tuned backbone extracts; the classifier takes its vectors, and says of them what it said of the images."""
    weights = ["--weights", str(folder / "tuned" / "backbone.weights.h5"), "--max_failure_rate", "1"]
    assert extract(folder / "images", tmp_path / "run", *weights, model=MODEL) == 0
    labels = json.loads((folder / "tuned" / "labels.json").read_text())
    assert manifest(tmp_path / "run")["fingerprint"] == labels["fingerprint"]
    assert (
        run_job(
            "classify",
            [
                *("--embeddings", str(tmp_path / "run"), "--classifier", str(folder / "tuned")),
                *("--output", str(tmp_path / "labelled")),
            ],
        )
        == 0
    )
    found = duckdb.execute(
        f"""select p.predicted, p.probability, l.predicted, l.probability, l.label, p.label
        from '{folder}/tuned/predictions.parquet' p join '{tmp_path}/labelled/predictions/*.parquet' l using (key)"""
    ).fetchall()
    assert len(found) > 3
    for predicted, probability, same_predicted, same_probability, label, same_label in found:
        assert predicted == same_predicted
        assert probability == pytest.approx(same_probability, abs=1e-5)
        assert label == same_label
    flags = ["--epochs", "1"]
    assert run_job("train", ["--embeddings", str(tmp_path / "run"), "--output", str(tmp_path / "again"), *flags]) == 0


_KILLED = """
import os, signal, sys
from pipelines.cli import run_job
from transforms.training.checkpoint import Checkpoint

saves = 0
save = Checkpoint.save_state

def save_and_die(*args):
    global saves
    save(*args)
    saves += 1
    if saves == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save_state = save_and_die
run_job("finetune", sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_run_ends_with_the_same_result(folder, tmp_path, capfd):
    flags = [*TUNING, "--max_failure_rate", "0.1"]
    arguments = ["--input", str(folder / "images"), "--output", str(tmp_path / "out"), *MODEL, *FLAGS, *flags]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, *arguments], check=False, capture_output=True, env={**os.environ}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert finetune(folder / "images", tmp_path / "out", *flags) == 0
    assert "Going on with the run" in capfd.readouterr().err
    for name in ("classifier.keras", "image_classifier.keras"):
        expected, model = (keras.saving.load_model(path / name) for path in (folder / "tuned", tmp_path / "out"))
        for array, other in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-6)
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (folder / "tuned", tmp_path / "out")]
    history, resumed = (one["training"]["history"] for one in metrics)
    assert history["loss"] == pytest.approx(resumed["loss"], rel=1e-3)
    assert history["accuracy"] == resumed["accuracy"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(ResultFile)


@pytest.mark.slow
def test_frozen_model_trains_a_head_on_flattened_maps(folder, tmp_path):
    """Nothing but the head learns: the same vectors as extract's, of every place in the map, and as train does."""
    flags = ["--pooling", "flatten", "--max_failure_rate", "0.1"]
    assert finetune(folder / "images" / "**/*.jpg", tmp_path / "out", "--freeze_all", *flags) == 0
    assert weights_of(load_backbone(CONFIG)) == weights_of(
        load_backbone(dataclasses.replace(CONFIG, weights=str(tmp_path / "out" / "backbone.weights.h5")))
    )
    model = keras.saving.load_model(tmp_path / "out" / "classifier.keras")
    assert model.input_shape == (None, 2 * 2 * 512)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["training"]["phases"]) == ["head"]
    assert [one["method"] for one in metrics["compared"]] == ["this classifier", "linear probe", "nearest neighbours"]
    assert metrics["compared"][1]["difference"] == 0
    assert extract(folder / "images" / "**/*.jpg", tmp_path / "run", "--weights", "random:0", *flags, model=MODEL) == 0
    arguments = ["--embeddings", str(tmp_path / "run"), "--output", str(tmp_path / "trained"), *ROWS[2:]]
    assert run_job("train", arguments) == 0
    trained = keras.saving.load_model(tmp_path / "trained" / "classifier.keras")
    for array, other in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_allclose(array, other, atol=1e-3)


NORMALISED_CONFIG = EmbedderConfig("MobileNetV3Small", "random:3", image_size=(32, 32), pooling=Pooling.MAX)
NORMALISED = NORMALISED_CONFIG.spec("0" * 64)


@pytest.fixture(scope="module")
def normalised():
    """A backbone with batch normalisation, nothing else of it frozen."""
    backbone = load_backbone(NORMALISED_CONFIG)
    freeze(backbone, NORMALISED, Frozen())
    return backbone


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(4, 32, 32, 3)).astype(np.uint8)


class TestTrainingModel:
    def test_normalisation_of_the_backbone_runs_as_in_inference(self, normalised, pixels):
        """Its moving averages do not move, and training gives what inference gives."""
        head = steep_head(normalised, pixels)
        model = build_training_model(NORMALISED, normalised, head, (), multi_label=False, seed=0)
        before = normalised.get_weights()
        trained = model(pixels, training=True)
        for array, other in zip(normalised.get_weights(), before, strict=True):
            np.testing.assert_array_equal(array, other)
        expected = join(assemble(NORMALISED, normalised), "embedding", head)(pixels, training=False)
        assert np.ptp(expected, axis=0).max() > 0.01
        np.testing.assert_allclose(trained, expected, atol=1e-5)
        assert model.get_layer(LOGITS).output.shape == (None, 3)

    def test_augmentation_is_for_training_only(self, normalised, pixels):
        head = steep_head(normalised, pixels)
        model = build_training_model(NORMALISED, normalised, head, [*Augmentation], multi_label=True, seed=0)
        expected = join(assemble(NORMALISED, normalised), "embedding", build_sigmoid(head))(pixels)
        np.testing.assert_allclose(model(pixels, training=False), expected, atol=1e-5)
        first, second = (np.asarray(model(pixels, training=True)) for _ in range(2))
        assert np.abs(first - second).max() > 1e-4

    @pytest.mark.parametrize("augmentation", Augmentation)
    def test_each_augmentation_changes_images_and_keeps_their_range(self, augmentation):
        (layer,) = augmentation_layers([augmentation], 0)
        images = keras.ops.cast(np.random.default_rng(0).integers(256, size=(8, 16, 16, 3)), "float32")
        changed = np.asarray(layer(images, training=True))
        assert changed.shape == (8, 16, 16, 3)
        assert np.abs(changed - images).max() > 1
        assert changed.min() >= -0.01
        assert changed.max() <= 255.01

    def test_layers_above_the_chosen_one_are_not_listed(self):
        backbone = load_backbone(CONFIG)
        layers = freeze(backbone, SPEC, Frozen(until="block2_pool"))
        assert layers[-1].name == "block4_pool"
        assert next(layer.name for layer in layers if layer.trainable) == "block3_conv1"
        tuned, parameters = count_parameters(layers)
        assert parameters - tuned == sum(
            backbone.get_layer(f"block{block}_conv{number}").count_params() for block in (1, 2) for number in (1, 2)
        )

    @pytest.mark.parametrize(
        ("frozen", "message"),
        [
            (Frozen(keras_layers=20), r"has 19 layers\. .*--freeze_keras_layers 20"),
            (Frozen(layers=14), r"has 13 layers with weights\. .*--freeze_layers 14.* it has 19"),
            (Frozen(until="blok4_pool"), "Did you mean block4_pool"),
        ],
    )
    def test_unknown_layers_are_refused(self, frozen, message):
        with pytest.raises(ImagebeamError, match=message):
            freeze(load_backbone(CONFIG), SPEC, frozen)

    @pytest.mark.parametrize(
        ("frozen", "last"),
        [
            (Frozen(layers=7), "block3_conv3"),
            (Frozen(keras_layers=10), "block3_conv3"),  # model.layers[:10], of which three have no weights
            (Frozen(layers=10), "block4_conv3"),
            (Frozen(until="block3_conv3"), "block3_conv3"),
        ],
    )
    def test_layers_count_with_weights_or_as_in_keras(self, frozen, last):
        backbone = load_backbone(CONFIG)
        layers = freeze(backbone, SPEC, frozen)
        assert [layer.name for layer in layers if layer.parameters and not layer.trainable][-1] == last
        assert [backbone.layers[layer.keras_number - 1].name for layer in layers] == [layer.name for layer in layers]
        assert [layer.number for layer in layers if layer.parameters] == list(range(1, 11))

    def test_layers_unfreeze_from_the_last_backwards(self):
        backbone = load_backbone(CONFIG)
        freeze(backbone, SPEC, Frozen(layers=5))
        epochs = first_epochs(backbone, 2)
        begins = {name: epochs.get(id(backbone.get_layer(name).kernel)) for name in VGG_LAYERS}
        assert begins == {
            **dict.fromkeys(VGG_LAYERS),
            "block4_conv3": 0,
            "block4_conv2": 0,
            "block4_conv1": 1,
            "block3_conv3": 1,
            "block3_conv2": 2,
        }


def steep_head(backbone, pixels):
    """Tells the vectors of random weights apart, which are all but zero."""
    vectors = np.asarray(assemble(NORMALISED, backbone)(pixels))
    head = build_head(576, 3, normalization=Normalization.NONE)
    head.set_weights([array * 10 / vectors.std(axis=0).max() for array in head.get_weights()])
    return head


def build_sigmoid(head):
    """The same head with sigmoids."""
    logits = head.get_layer(LOGITS).output
    return keras.Model(head.input, keras.layers.Activation("sigmoid")(logits))


def test_epochs_apply_to_the_part_that_learns(monkeypatch):
    """The model; or the classifier, where all of the model is frozen."""
    seen: list[FinetuneOptions] = []
    monkeypatch.setattr(finetune_job, "run", lambda options: seen.append(options) or TrainResult({}, ()))
    flags = [
        "--epochs",
        "4",
        "--learning_rate",
        "0.1",
        "--patience",
        "7",
        "--weight_decay",
        "0.5",
        "--head_epochs",
        "9",
    ]
    for more in ([], ["--freeze_all"]):
        assert finetune_job.main(["--input", "i", "--output", "o", *flags, *more]) == 0
    tuned, frozen = seen
    for options in seen:
        assert (options.fit.epochs, options.fit.learning_rate, options.fit.patience) == (4, 0.1, 7)
    assert tuned.head_fit == FitOptions(epochs=9, weight_decay=0.5)
    assert frozen.head_fit == FitOptions(epochs=4, learning_rate=0.1, patience=7, weight_decay=0.5)
    assert dataclasses.replace(frozen, fit=FIT).head_fit == FitOptions(epochs=9)


class TestErrors:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--freeze_layers", "3", "--freeze_all"], "--freeze_layers 3 and --freeze_all"),
            (["--freeze_layers", "-1"], "--freeze_layers is at least 0"),
            (["--freeze_until", "nothing"], "--freeze_until='nothing'"),
            (["--image_size", "native"], "--image_size HEIGHTxWIDTH"),
            (["--layer", "block3_pool"], "takes one --layer"),
            (["--augment", "flip,turn"], "choose of flip"),
            (["--augment", "flip,flip"], "takes each name once"),
            (["--epochs", "0"], "--epochs is at least 1"),
            (["--seed", "4294967296"], "less than 4,294,967,296. Received: 4294967296"),
            (["--head_epochs", "0"], "--head_epochs is at least 1"),
            (["--head_learning_rate", "nan"], "--head_learning_rate is more than 0"),
            (["--tune_epochs", "1"], "unknown flag"),
            (["--freeze_layers", "3", "--freeze_keras_layers", "3"], "--freeze_layers 3 and --freeze_keras_layers 3"),
            (["--freeze_all", "--augment", "flip"], "--freeze_all and --augment flip"),
            (["--freeze_all", "--unfreeze_per_epoch", "3"], "--freeze_all and --unfreeze_per_epoch 3"),
            (["--unfreeze_per_epoch", "1", "--epochs", "9"], "--unfreeze_per_epoch 1 and --epochs 9"),
            (["--keep_columns", "x"], "unknown flag"),
            ([], "gave no image; the first is"),
        ],
    )
    def test_bad_flags_are_one_line_and_write_nothing(self, folder, tmp_path, flags, message, capfd):
        if "--freeze_until" in flags:
            flags = [*flags, "--max_failure_rate", "1"]
        assert finetune(folder / "images", tmp_path / "out", *flags) == 2
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("imagebeam: ")]
        assert len(error) == 1
        assert message in error[0]
        assert not (tmp_path / "out").exists()

    def test_one_class_is_refused(self, folder, tmp_path, capfd):
        assert finetune(folder / "images" / "b" / "*", tmp_path / "out") == 2
        assert "at least two classes" in capfd.readouterr().err

    def test_an_input_without_records_is_refused(self, tmp_path, capfd):
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
        assert finetune(tmp_path / "none.parquet", tmp_path / "out") == 2
        assert "the input has no records" in capfd.readouterr().err

    def test_existing_output_is_not_overwritten(self, folder, capfd):
        before = {path.name: path.read_bytes() for path in (folder / "tuned").iterdir()}
        assert finetune(folder / "images", folder / "tuned", "--seed", "5") == 2
        assert "already holds" in capfd.readouterr().err
        assert {path.name: path.read_bytes() for path in (folder / "tuned").iterdir()} == before


@pytest.mark.parametrize("column", ["uri", "label"])
def test_groups_may_be_told_by_a_column_that_every_row_has(folder, column):
    """As those of `train` may; image files have no others."""
    options = FinetuneOptions(
        InputOptions((str(folder / "images"),)),
        ModelOptions(image_size=(32, 32)),
        ClassifierOptions("out"),
        RowOptions(group_column=column),
    )
    assert inspect_images(options).keep_columns == ()


@pytest.mark.parametrize("flag", ["--group_column", "--split_column"])
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("x", ["1", "2"], r"columns are .* Received: {} 'x'\."),
        ("e", [None, None], r"do not tell the type of a kept column\. Received: {} e\. Give the column that {} names"),
        ("e", [1, "b"], r"'e' holds int64 .*Give the column that {} names values of one type in the input\."),
    ],
)
def test_a_column_of_groups_or_splits_is_refused_by_its_own_flag(folder, tmp_path, flag, name, values, message):
    images = sorted((folder / "images").rglob("*.jpg"))[:2]
    rows = [{"uri": str(path), "label": "a", "e": value} for path, value in zip(images, values, strict=True)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = FinetuneOptions(
        InputOptions((str(tmp_path / "in.jsonl"),)),
        ModelOptions(image_size=(32, 32)),
        ClassifierOptions("out"),
        RowOptions(**{flag.strip("-"): name}),
    )
    with pytest.raises(ImagebeamError, match=message.format(flag, flag)) as error:
        inspect_images(options)
    assert "--keep_columns" not in str(error.value)


def test_image_files_have_no_column_of_groups(folder):
    options = FinetuneOptions(
        InputOptions((str(folder / "images"),)),
        ModelOptions(image_size=(32, 32)),
        ClassifierOptions("out"),
        RowOptions(group_column="x"),
    )
    with pytest.raises(ImagebeamError, match=r"Image files have no columns to keep\. Received: --group_column x"):
        inspect_images(options)


def test_spec_names_the_tuned_weights(folder):
    labels = json.loads((folder / "tuned" / "labels.json").read_text())
    spec = EmbedderSpec.from_dict(labels["spec"])
    assert dataclasses.replace(spec, weights_sha256=SPEC.weights_sha256, graph_sha256="") == SPEC
    base = json.loads((folder / "tuned" / "metrics.json").read_text())["base"]
    assert base["weights_sha256"] != spec.weights_sha256


def normalising_model(path):
    """A backbone of one's own that normalises, its statistics in weights; and a file of its weights."""
    image = keras.Input((32, 32, 3))
    normalization = keras.layers.Normalization(name="scale")
    values = keras.layers.Conv2D(8, 3, strides=2, name="conv_1")(normalization(image))
    values = keras.layers.BatchNormalization(name="norm_1")(values)
    values = keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="conv_2")(values)
    model = keras.Model(image, values, name="own")
    random = np.random.default_rng(5)
    for layer in model.layers:
        layer.set_weights([random.uniform(0.1, 1, array.shape).astype(array.dtype) for array in layer.get_weights()])
    normalization.set_weights([np.array([90, 100, 110]), np.array([3000, 4000, 5000]), np.int32(1)])
    normalization.finalize_state()
    model.save(path / "own.keras")
    model.save_weights(path / "a.weights.h5")


OWN = ("--model", "own.keras", "--image_size", "32x32")
VGG = ("--model", "VGG16", "--image_size", "32x32", "--layer", "block1_pool")


class TestWhatIsSaidIsWhatIsWritten:
    """Whatever the weights come from, metrics.json and predictions.parquet are what classify makes of the files."""

    @pytest.mark.parametrize(
        "flags",
        [
            pytest.param(OWN, id="own file"),
            pytest.param((*OWN, "--weights", "a.weights.h5"), id="weights.h5 of one's own", marks=pytest.mark.slow),
            *(
                pytest.param((*VGG, "--weights", name), id=name, marks=pytest.mark.slow)
                for name in ("none", "a.npz", "a.weights.h5", "a.h5", "a.onnx")
            ),
        ],
    )
    def test_equal_classify_for_each_source_of_weights(self, flags, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        small_images(tmp_path / "images", 24)
        if "VGG16" not in flags:
            normalising_model(tmp_path)
        elif flags[-1] in WRITERS:
            WRITERS[flags[-1]](load_backbone(CONFIG), tmp_path / flags[-1])
        arguments = [*flags, *ROWS, "--learning_rate", "1e-3", "--epochs", "2"]
        assert run_job("finetune", ["--input", "images", "--output", "tuned", *arguments]) == 0
        assert run_job("classify", ["--input", "images", "--classifier", "tuned", "--output", "labelled"]) == 0
        found = duckdb.execute(
            """select p.label = p.predicted, p.probability, l.predicted = l.label, l.probability
            from 'tuned/predictions.parquet' p join 'labelled/predictions/*.parquet' l using (key)"""
        ).fetchall()
        metrics = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
        assert len(found) == metrics["rows"]["test"] > 3
        np.testing.assert_allclose([row[1] for row in found], [row[3] for row in found], atol=1e-5)
        assert [row[0] for row in found] == [row[2] for row in found]
        assert metrics["accuracy"] == pytest.approx(np.mean([row[2] for row in found]))
        assert metrics["training"]["phases"]["tuning"]["epochs"] == 2
