"""`imagebeam export`: what each runtime makes of the file, against Keras on photographs."""

import importlib.util
import json
import warnings
import zipfile

import keras
import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_images

from pipelines.cli import run_job
from transforms.core.spec import EmbedderSpec
from transforms.models import export
from transforms.models.export import ExportFormat
from transforms.training.head import VectorTransform, build_head, join, save, transform_vectors

LABELS = {"labels": ["猫", "dog", "b"], "multi_label": False}
ENDINGS = {"saved_model": "folder", "tflite": "model.tflite", "openvino": "model.xml"}


def backbone():
    """Normalises as EfficientNet's do, so that an export has something to lose."""
    image = keras.Input((32, 32, 3))
    normalization = keras.layers.Normalization(name="normalization")
    first = keras.initializers.HeNormal(seed=3)
    values = keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=first)(normalization(image))
    normalization.set_weights([np.array([90, 100, 110]), np.array([3000, 4000, 5000]), np.int32(1)])
    normalization.finalize_state()
    return keras.Model(image, values, name="backbone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier's folder, and an extract run's with an embedder of two layers."""
    folder = tmp_path_factory.mktemp("export")
    pixels = keras.Input((32, 32, 3), dtype="uint8", name="image")
    vectors = keras.layers.GlobalAveragePooling2D()(backbone()(keras.ops.cast(pixels, "float32")))
    embedder = keras.Model(pixels, vectors, name="embedder")
    values = transform_vectors(embedder.predict_on_batch(photographs()), VectorTransform.BOTH)
    head = build_head(8, 3, mean=values.mean(0), deviation=values.std(0), transform=VectorTransform.BOTH)
    head.set_weights([array * 3 for array in head.get_weights()])
    save(head, LABELS, folder / "classifier.keras")
    save(join(embedder, "embedding", head), LABELS, folder / "image_classifier.keras")
    (folder / "run" / "model").mkdir(parents=True)
    both = keras.Model(pixels, {"embedding_b": vectors, "embedding_a": keras.ops.mean(vectors, axis=1, keepdims=True)})
    both.save(folder / "run" / "model" / "embedder-0.keras")
    about = {
        "spec": EmbedderSpec("VGG16", "0" * 64, layers=("a", "b")).to_dict(),
        "model_file": "embedder-0.keras",
        "model_sha256": "0" * 64,
        "weights": {"source": "random:0", "file_sha256": None},
        "dimensions": {"embedding_a": 1, "embedding_b": 8},
    }
    (folder / "run" / "model" / "spec.json").write_text(json.dumps(about))
    return folder


def photographs():
    """uint8 [6, 32, 32, 3]: crops of two photographs."""
    photos = [PIL.Image.fromarray(photo) for photo in load_sample_images().images]
    boxes = [(left, 50, left + 200, 250) for left in (0, 150, 300)]
    return np.stack([np.asarray(photo.crop(box).resize((32, 32))) for photo in photos for box in boxes])


def run(*arguments, code=0):
    assert run_job("export", [str(word) for word in arguments]) == code


def said(capfd):
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("imagebeam: error")]
    return line


def saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda batch: np.asarray(loaded.serve(batch))


def tflite(path):
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's, of the interpreter's next home
        interpreter = tf.lite.Interpreter(str(path))

    def answer(batch):
        (place,) = interpreter.get_input_details()
        interpreter.resize_tensor_input(place["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place["index"], batch)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return answer


def openvino(path):
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: compiled(batch)[0]


@pytest.mark.parametrize(
    ("format", "reader"),
    [("saved_model", saved_model), pytest.param("tflite", tflite, marks=pytest.mark.slow), ("openvino", openvino)],
)
def test_every_runtime_agrees_with_keras(folder, tmp_path, capfd, format, reader):  # noqa: A002
    output = tmp_path / ENDINGS[format]
    run(folder, "--format", format, "--output", output)
    assert "Largest difference from the Keras model on 8 images" in capfd.readouterr().err
    expected = keras.saving.load_model(folder / "image_classifier.keras").predict_on_batch(photographs())
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(reader(output)(photographs()), expected, atol=1e-5)
    labels = output / "labels.json" if format == "saved_model" else tmp_path / "model.labels.json"
    assert json.loads(labels.read_text())["labels"] == LABELS["labels"]
    before = sorted(tmp_path.rglob("*"))
    run(folder, "--format", format, "--output", output, code=2)
    assert "is there" in said(capfd)
    run(folder, "--format", format, "--output", output, "--overwrite", "--max_difference", "1e-5")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("pack", [lambda image: {"image": image}, lambda image: [image]], ids=["dict", "list"])
def test_input_within_a_structure_is_exported(tmp_path, capfd, pack):
    """keras.Model(inputs=[image], ...) is how many write it; KerasHub's models take {"images": image}."""
    image = keras.Input((32, 32, 3), name="image")
    keras.Model(pack(image), keras.layers.Conv2D(2, 3)(image)).save(tmp_path / "mine.keras")
    run(tmp_path / "mine.keras", "--format", "saved_model", "--output", tmp_path / "out")
    assert "UserWarning" not in capfd.readouterr().err


def test_heads_and_embedders_with_several_outputs(folder, tmp_path, capfd):
    run(folder / "classifier.keras", "--format", "tflite", "--output", tmp_path / "head.tflite")
    assert "8 vectors" in capfd.readouterr().err
    run(folder / "run", "--format", "saved_model", "--output", tmp_path / "embedder")
    assert not (tmp_path / "embedder" / "labels.json").exists()
    assert set(export.open_exported(ExportFormat.SAVED_MODEL, tmp_path / "embedder")(photographs())[0].shape) == {6, 1}


def test_more_than_ten_outputs_keep_their_order(tmp_path):
    """Their names in a SavedModel, output_0 to output_11, have another order as text."""
    vector = keras.Input((4,))
    outputs = [keras.layers.Dense(2, kernel_initializer=keras.initializers.HeNormal(n))(vector) for n in range(12)]
    keras.Model(vector, outputs).save(tmp_path / "mine.keras")
    run(tmp_path / "mine.keras", "--format", "saved_model", "--output", tmp_path / "out")


def test_own_images_are_used_for_the_check(folder, tmp_path, capfd):
    for number, pixels in enumerate(photographs()[:3]):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    output = tmp_path / "m.tflite"
    run(folder, "--format", "tflite", "--output", output, "--images", tmp_path)
    assert "on 3 images" in capfd.readouterr().err
    (tmp_path / "0.png").write_bytes(b"no image")
    run(folder, "--format", "tflite", "--output", output, "--images", tmp_path, "--overwrite", code=2)
    assert "0.png" in said(capfd)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found + 1e-3, "is more than --max_difference 0.0001"),
        (lambda found: found * np.nan, "inf is more than"),
        (lambda found: found[:, :2], "gives shapes"),
    ],
)
def test_export_that_disagrees_is_not_written(folder, tmp_path, monkeypatch, capfd, change, message):
    plain = export.open_exported

    def changed(*arguments):
        answer = plain(*arguments)
        return lambda batch: [change(found) for found in answer(batch)]

    monkeypatch.setattr(export, "open_exported", changed)
    run(folder, "--format", "tflite", "--output", tmp_path / "m.tflite", code=2)
    assert message in said(capfd)
    assert not list(tmp_path.iterdir())


def test_export_that_its_runtime_does_not_load_is_an_answer(folder, tmp_path, monkeypatch, capfd):
    def refuse(path):
        raise RuntimeError("Exception from core.cpp:132:\nConvolution of bf16 is not implemented")

    monkeypatch.setattr(export, "_open_tflite", refuse)
    run(folder, "--format", "tflite", "--output", tmp_path / "m.tflite", code=2)
    assert "tflite does not load what was exported: Convolution of bf16" in said(capfd)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="onnxruntime is installed")
def test_missing_packages_are_named_first(folder, tmp_path, capfd):
    run(folder, "--format", "onnx", "--output", tmp_path / "m.onnx", code=2)
    assert "needs tf2onnx and onnxruntime, which are not installed: pip install tf2onnx onnxruntime" in said(capfd)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite", "--output", "m.onnx"], "ends in .tflite. Received: --output m.onnx"),
        (["--format", "coreml", "--output", "m"], "choose one of saved_model, tflite, onnx, openvino"),
        (["--format", "tflite", "--output", "m.tflite", "--max_difference", "-1"], "--max_difference is at least 0"),
    ],
)
def test_bad_flags_are_refused(folder, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    run(folder, *arguments, code=2)
    assert message in said(capfd)


def test_folder_without_a_model_is_refused(tmp_path, capfd):
    run(tmp_path, "--format", "tflite", "--output", tmp_path / "m.tflite", code=2)
    assert "There is no model in" in said(capfd)


def test_models_that_cannot_be_compared_are_refused(tmp_path, capfd):
    image = keras.Input((32, 32, 1))
    keras.Model(image, keras.layers.Flatten()(image), name="grey").save(tmp_path / "grey.keras")
    with zipfile.ZipFile(tmp_path / "list.keras", "w") as archive:
        for name, content in (("config.json", "[1]"), ("metadata.json", "{}"), ("model.weights.h5", "")):
            archive.writestr(name, content)
    for name, said_of_it in (
        ("grey", "grey takes no RGB images"),
        ("list", "is not a model that Keras loads"),
        ("no", "There is no such model file. Received: "),
    ):
        run(tmp_path / f"{name}.keras", "--format", "tflite", "--output", tmp_path / "m.tflite", code=2)
        assert said_of_it in said(capfd)


def test_truth_values_are_compared(tmp_path):
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(image) > 100).save(tmp_path / "truth.keras")
    run(tmp_path / "truth.keras", "--format", "saved_model", "--output", tmp_path / "folder")


def test_file_in_place_of_a_folder_is_refused(tmp_path, capfd):
    """By every job that is given the output of another one."""
    file = tmp_path / "x.py"
    file.write_text("x = 1")
    (tmp_path / "in").mkdir()
    PIL.Image.new("RGB", (40, 40)).save(tmp_path / "in" / "a.png")
    into = ["--output", str(tmp_path / "out")]
    images = ["--input", str(tmp_path / "in"), *into]
    model = ["--model", "VGG16", "--weights", "random:0", "--image_size", "32x32"]
    for job, arguments in [
        ("export", [str(file), "--format", "tflite", "--output", str(tmp_path / "m.tflite")]),
        ("report", [str(file)]),
        ("verify", [str(file)]),
        ("compact", [str(file), *into]),
        ("train", ["--embeddings", str(file), *into]),
        ("classify", ["--classifier", str(file), *images]),
        ("classify", ["--classifier", str(file), "--embeddings", str(file), *into]),
        ("extract", [*images, *model, "--reuse", str(file)]),
        ("extract", [*images, *model, "--int8_model", str(file), "--precision", "int8"]),
    ]:
        assert run_job(job, arguments) == 2, (job, arguments)
        text = said(capfd)
        assert "Errno" not in text, text
        assert "x.py" in text, text
    assert run_job("extract", ["--input", str(tmp_path / "in"), *model, "--output", str(file)]) == 2
    assert "Not a directory" in said(capfd)
    assert file.read_text() == "x = 1"


def test_head_refuses_images(folder, tmp_path, capfd):
    arguments = ["--format", "tflite", "--output", tmp_path / "m.tflite", "--images", tmp_path]
    run(folder / "classifier.keras", *arguments, code=2)
    assert "takes vectors, and no --images" in said(capfd)
