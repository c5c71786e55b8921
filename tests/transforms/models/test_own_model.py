"""A backbone of one's own in a `.keras` file: as plain Keras computes it, and refused where Keras cannot load it."""

import dataclasses
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.support.extracting import embeddings, extract, manifest
from transforms.core.errors import ImagebeamError
from transforms.core.spec import Precision
from transforms.models.config import EmbedderConfig
from transforms.models.constants import with_constant_normalization
from transforms.models.embedder import build_embedder, load_backbone, resolve
from transforms.models.engines.compiled import CompiledModel
from transforms.models.layer_tables import build_layers
from transforms.models.own_model import describe
from transforms.models.staged import stage_model
from transforms.training.backbone import Frozen, freeze

PIXELS = np.random.default_rng(0).integers(256, size=(3, 24, 20, 3), dtype=np.uint8)
MODES = {
    "none": lambda pixels: pixels,
    "unit": lambda pixels: pixels / 255,
    "tf": lambda pixels: pixels / 127.5 - 1,
    "torch": lambda pixels: (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "caffe": lambda pixels: pixels[..., ::-1] - [103.939, 116.779, 123.68],
}


@keras.saving.register_keras_serializable("imagebeam-tests")
class Subclassed(keras.Model):  # type: ignore[misc]
    """Has no graph of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.first = keras.layers.Conv2D(4, 3, activation="relu")
        self.second = keras.layers.Conv2D(5, 3)

    def call(self, inputs):
        return self.second(self.first(inputs))


@keras.saving.register_keras_serializable("imagebeam-tests")
class Composite(keras.layers.Layer):  # type: ignore[misc]
    """Has batch normalisation inside."""

    def __init__(self, name=None, **settings):
        super().__init__(name=name, **settings)
        self.norm = keras.layers.BatchNormalization()

    def call(self, inputs):
        return self.norm(inputs)

    def build(self, shape):
        self.norm.build(shape)
        super().build(shape)


def functional(size=(24, 20)):
    keras.utils.set_random_seed(5)
    image = keras.Input((*size, 3))
    hidden = keras.layers.Conv2D(4, 3, activation="relu", name="low")(image)
    hidden = Composite(name="composite")(hidden)
    return keras.Model(image, keras.layers.Conv2D(6, 3, name="high")(hidden), name="mine")


def sequential():
    keras.utils.set_random_seed(6)
    return keras.Sequential([keras.Input((24, 20, 3)), keras.layers.Conv2D(7, 3), keras.layers.ReLU()])


def subclassed():
    keras.utils.set_random_seed(7)
    model = Subclassed()
    model(np.zeros((1, 24, 20, 3), "float32"))
    return model


def tokens():
    image = keras.Input((24, 20, 3))
    return keras.Model(image, keras.layers.Reshape((-1, 4))(keras.layers.Conv2D(4, 4, strides=4)(image)))


def with_dict_input():
    image = keras.Input((24, 20, 3), name="images")
    return keras.Model({"images": image}, keras.layers.Conv2D(4, 4)(image))


@pytest.fixture
def save(tmp_path):
    def save(model, name="mine.keras"):
        model.save(tmp_path / name)
        return str(tmp_path / name)

    return save


def expected(model, mode="none", pool=np.mean):
    values = MODES[mode](PIXELS.astype("float64")).astype("float32")
    named = not isinstance(model, keras.Sequential) and isinstance(model.input, dict)
    output = np.asarray(model({"images": values} if named else values))
    return pool(output, axis=tuple(range(1, output.ndim - 1)))


@pytest.mark.parametrize("mode", MODES)
def test_preprocessing_follows_its_name(save, mode):
    model = functional()
    embedder = resolve(EmbedderConfig(save(model), preprocessing=mode))
    np.testing.assert_allclose(embedder.embed(PIXELS)["embedding"], expected(model, mode), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [functional, sequential, tokens, with_dict_input])
def test_every_kind_of_model_equals_plain_keras_on_a_worker(save, tmp_path, make):
    model = make()
    config = EmbedderConfig(save(model), pooling="max", image_size=(24, 20))
    staged = stage_model(config, str(tmp_path / "model"))
    vectors = staged.load().embed(PIXELS)["embedding"]
    np.testing.assert_allclose(vectors, expected(model, pool=np.max), rtol=1e-5, atol=1e-4)
    assert EmbedderConfig(config.model).size == (24, 20)


def test_a_subclassed_model_is_taken_whole(save, tmp_path):
    model = subclassed()
    path = save(model)
    vectors = stage_model(EmbedderConfig(path, image_size=(24, 20)), str(tmp_path / "m")).load().embed(PIXELS)
    output = np.asarray(model(PIXELS.astype("float32")))
    np.testing.assert_allclose(vectors["embedding"], output.mean(axis=(1, 2)), rtol=1e-5, atol=1e-4)
    with pytest.raises(ImagebeamError, match="no such layer"):
        resolve(EmbedderConfig(path, layers=("first",), image_size=(24, 20)))


def test_layers_pooling_sizes_and_an_own_tensor(save):
    model = functional((None, None))
    path = save(model)
    with pytest.raises(ImagebeamError, match="image_size"):
        EmbedderConfig(path)
    low = np.asarray(keras.Model(model.input, model.get_layer("low").output)(PIXELS.astype("float32")))
    both = resolve(EmbedderConfig(path, layers=("high", "low"), image_size="native")).embed(PIXELS)
    assert len(both) == 2
    (vectors,) = (value for value in both.values() if value.shape[1] == 4)
    np.testing.assert_allclose(vectors, low.mean(axis=(1, 2)), rtol=1e-5, atol=1e-4)
    image = keras.Input((24, 20, 3))
    composed = build_embedder(EmbedderConfig(path, image_size=(24, 20)), input_tensor=image)
    np.testing.assert_allclose(
        composed.predict(PIXELS.astype("float32"), verbose=0), expected(model), rtol=1e-5, atol=1e-4
    )
    with pytest.raises(ImagebeamError, match="Did you mean low"):
        resolve(EmbedderConfig(path, layers=("loww",), image_size=(24, 20)))
    half = resolve(EmbedderConfig(path, image_size=(24, 20), precision="bfloat16")).embed(PIXELS)["embedding"]
    assert 0 < np.abs(half - expected(model)).max() < 0.05 * np.abs(expected(model)).max()


def test_fingerprint_depends_on_the_content_of_the_file(save, tmp_path):
    path = save(functional())
    (tmp_path / "moved").mkdir()
    moved = str(shutil.copy(path, tmp_path / "moved" / "other.keras"))
    spec = resolve(EmbedderConfig(path)).spec
    assert resolve(EmbedderConfig(moved)).spec == spec
    assert type(spec).from_json(spec.to_json()) == spec
    assert resolve(EmbedderConfig(path, preprocessing="tf")).spec.fingerprint != spec.fingerprint
    save(functional((30, 20)))
    assert resolve(EmbedderConfig(path)).spec.fingerprint != spec.fingerprint
    assert "preprocessing" not in EmbedderConfig("VGG16", "random:0").spec("0" * 64).to_dict()


def test_other_weights_for_the_same_model(save, tmp_path):
    path = save(functional())
    other = functional()
    other.get_layer("high").set_weights([array + 1 for array in other.get_layer("high").get_weights()])
    other.save_weights(tmp_path / "tuned.weights.h5")
    embedder = resolve(EmbedderConfig(path, str(tmp_path / "tuned.weights.h5")))
    np.testing.assert_allclose(embedder.embed(PIXELS)["embedding"], expected(other), rtol=1e-5, atol=1e-3)
    sequential().save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ImagebeamError, match="do not fit"):
        resolve(EmbedderConfig(path, str(tmp_path / "other.weights.h5")))


def test_freezing_reaches_into_nested_layers(save):
    config = EmbedderConfig(save(functional()))
    backbone = load_backbone(config)
    layers = freeze(backbone, config.spec("0" * 64), Frozen(until="low"))
    assert [layer.name for layer in layers if layer.trainable] == ["high"]
    assert not backbone.get_layer("composite").norm.trainable
    assert not backbone.get_layer("low").trainable


def test_extract_resumes_without_loading(source, output, save, monkeypatch):
    path = save(functional())
    model = ("--model", path, "--preprocessing", "tf", "--rows_per_unit", "5")
    assert extract(source, output, model=model) == 0
    assert {len(vector) for vector in embeddings(output).values()} == {6}
    next(output.glob("embeddings/*")).unlink()
    monkeypatch.setattr("pipelines.runtime.model_loader.load_backbone", lambda config: pytest.fail("resolved again"))
    assert extract(source, output, model=model) == 0
    assert manifest(output)["totals"]["units_skipped"] > 0
    assert extract(source, output, model=("--model", path, "--rows_per_unit", "5")) == 2


def test_unsafe_model_file_is_refused(save, tmp_path):
    image = keras.Input((24, 20, 3))
    unsafe = save(keras.Model(image, keras.layers.Lambda(lambda pixels: pixels * 2)(image)), "unsafe.keras")
    with pytest.raises(ImagebeamError, match="safe mode"):
        resolve(EmbedderConfig(unsafe))
    two = keras.Model([image, keras.Input((24, 20, 3))], image)
    with pytest.raises(ImagebeamError, match="one batch of RGB images"):
        resolve(EmbedderConfig(save(two, "two.keras")))
    several = keras.Model(image, [image, keras.layers.ReLU()(image)])
    with pytest.raises(ImagebeamError, match="2 outputs"):
        resolve(EmbedderConfig(save(several, "several.keras")))
    (tmp_path / "no.keras").write_bytes(b"no zip")
    with pytest.raises(ImagebeamError, match="Not a Keras 3 model file"):
        EmbedderConfig(str(tmp_path / "no.keras"))
    with zipfile.ZipFile(tmp_path / "empty.keras", "w"):
        pass
    with pytest.raises(ImagebeamError, match="Not a Keras 3 model file"):
        EmbedderConfig(str(tmp_path / "empty.keras"))
    with pytest.raises(ImagebeamError, match="cannot be read"):
        EmbedderConfig(str(tmp_path / "missing.keras"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"weights": "random:0"}, "brings its weights"),
        ({"image_size": (32, 32)}, "24x20"),
        ({"image_size": "native"}, "24x20"),
        ({"preprocessing": "imagenet"}, "none, unit, tf, torch, caffe"),
    ],
)
def test_bad_requests_are_refused_when_constructed(save, fields, named):
    with pytest.raises(ImagebeamError, match=named):
        EmbedderConfig(**{"model": save(functional()), **fields})


@pytest.mark.parametrize(
    ("shape", "remedy"), [((24, 20, 1), "rgb_to_grayscale"), ((3, 24, 20), "Permute"), ((24, 20, 4), "keras.Input")]
)
def test_images_that_are_not_rgb_are_refused_before_loading(save, shape, remedy):
    image = keras.Input(shape)
    path = save(keras.Model(image, keras.layers.Flatten()(image)))
    with pytest.raises(ImagebeamError, match=remedy):
        EmbedderConfig(path)


def test_the_remedy_for_grey_models_gives_their_vectors(save):
    """What the message says to save is a backbone, and computes what the model does on grey images."""
    grey = keras.Input((24, 20, 1))
    model = keras.Model(grey, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(grey)))
    images = keras.Input((None, None, 3))
    around = save(keras.Model(images, model(keras.ops.image.rgb_to_grayscale(images))))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 3), dtype=np.uint8)
    expected = model(keras.ops.image.rgb_to_grayscale(pixels.astype(np.float32)))
    found = resolve(EmbedderConfig(around, image_size=(24, 20))).embed(pixels)["embedding"]
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["model.h5", "MODEL.HDF5", "weights.npz", "models/vgg", "net.onnx"])
def test_files_of_other_kinds_are_told_from_architectures(name):
    with pytest.raises(ImagebeamError, match=r"a Keras 3 file, \*\.keras") as caught:
        EmbedderConfig(name)
    assert ("load_model" in str(caught.value)) == name.lower().endswith((".h5", ".hdf5"))


def test_preprocessing_of_a_built_in_model_cannot_be_set():
    with pytest.raises(ImagebeamError, match="its own preprocessing"):
        EmbedderConfig("VGG16", preprocessing="tf")
    assert dataclasses.replace(EmbedderConfig("VGG16")).preprocessing is None


def nested():
    """A model that stands in another one as a layer, with what it learned of its images."""
    keras.utils.set_random_seed(8)
    image = keras.Input((24, 20, 3))
    inner_image = keras.Input((24, 20, 3))
    inner = keras.Model(inner_image, keras.layers.Conv2D(4, 3)(inner_image), name="inner")
    return keras.Model(image, keras.layers.ReLU(name="behind")(inner(keras.layers.Rescaling(1 / 255)(image))))


def with_two_outputs():
    image, inner_image = keras.Input((24, 20, 3)), keras.Input((24, 20, 3))
    parts = keras.Model(inner_image, [keras.layers.ReLU()(inner_image), inner_image], name="parts")
    return keras.Model(image, keras.layers.Add(name="behind")(parts(image)))


def test_a_model_within_the_model_is_a_layer(save, tmp_path):
    model = nested()
    path = save(model)
    expected = np.asarray(model.get_layer("inner")(PIXELS.astype("float32") / 255)).mean(axis=(1, 2))
    config = EmbedderConfig(path, layers=("inner",))
    assert np.abs(resolve(dataclasses.replace(config, layers=("behind",))).embed(PIXELS)["embedding"] - expected).max()
    vectors = stage_model(config, str(tmp_path / "m")).load().embed(PIXELS)["embedding"]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)
    backbone = load_backbone(config)
    layers = freeze(backbone, config.spec("0" * 64), Frozen())
    assert [layer.name for layer in layers][-1] == "inner"


def test_a_layer_of_several_outputs_is_refused(save):
    path = save(with_two_outputs())
    with pytest.raises(ImagebeamError, match=r"2 outputs.*parts"):
        resolve(EmbedderConfig(path, layers=("parts",)))
    config = EmbedderConfig(path, layers=("behind",))
    np.testing.assert_allclose(
        resolve(config).embed(PIXELS)["embedding"], (2.0 * PIXELS).mean(axis=(1, 2)), rtol=1e-5, atol=1e-4
    )
    backbone = load_backbone(config)
    assert with_constant_normalization(backbone) is backbone
    assert [layer.name for layer in freeze(backbone, config.spec("0" * 64), Frozen())][-1] == "behind"


def test_a_layer_that_is_called_twice_is_refused(save):
    image = keras.Input((24, 20, 3))
    shared = keras.layers.Conv2D(3, 1, name="shared")
    path = save(keras.Model(image, keras.layers.ReLU(name="behind")(shared(shared(image)))))
    with pytest.raises(ImagebeamError, match=r"calls the layer 2 times.*shared"):
        resolve(EmbedderConfig(path, layers=("shared",)))
    assert resolve(EmbedderConfig(path, layers=("behind",))).embed(PIXELS)["embedding"].shape == (len(PIXELS), 3)


@keras.saving.register_keras_serializable("imagebeam-tests")
class Scaled(keras.layers.Layer):  # type: ignore[misc]
    """Has an adapted normalisation inside."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.norm = keras.layers.Normalization(axis=-1)

    def build(self, shape):
        self.norm.build(shape)
        super().build(shape)

    def call(self, inputs):
        return self.norm(inputs)


def test_a_normalization_within_a_layer_survives_another_precision(save):
    image = keras.Input((24, 20, 3))
    scaled = Scaled()
    model = keras.Model(image, keras.layers.ReLU()(scaled(image)))
    scaled.norm.adapt(PIXELS.astype("float32"))
    vectors = {
        precision: resolve(EmbedderConfig(save(model), precision=precision)).embed(PIXELS)["embedding"]
        for precision in ("float32", "bfloat16")
    }
    np.testing.assert_allclose(vectors["float32"], expected(model), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vectors["bfloat16"], vectors["float32"], rtol=0.05, atol=0.02)


def integers():
    image = keras.Input((24, 20, 3), dtype="uint8")
    return keras.Model(image, keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(image)))


def mixed():
    image = keras.Input((24, 20, 3))
    return keras.Model(image, keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16")(image))


def shared():
    image = keras.Input((24, 20, 3))
    relu = keras.layers.ReLU(name="relu")
    return keras.Model(image, relu(keras.layers.Conv2D(4, 3)(relu(image))))


@pytest.mark.parametrize("make", [integers, mixed, shared])
def test_odd_models_equal_plain_keras(save, tmp_path, make):
    model = make()
    vectors = stage_model(EmbedderConfig(save(model)), str(tmp_path / "m")).load().embed(PIXELS)["embedding"]
    assert vectors.dtype == np.float32
    exact = expected(model, pool=lambda output, axis: output.astype("float32").mean(axis))
    np.testing.assert_allclose(vectors, exact, rtol=1e-4, atol=1e-4)


def test_a_cast_stays_what_it_is_in_another_precision(save):
    """Embedders as Imagebeam stages them begin with one."""
    image = keras.Input((24, 20, 3), dtype="uint8")
    model = keras.Model(image, keras.layers.Conv2D(4, 3)(keras.ops.cast(image, "float32") / 255.0))
    vectors = resolve(EmbedderConfig(save(model), precision="bfloat16")).embed(PIXELS)["embedding"]
    np.testing.assert_allclose(vectors, expected(model), rtol=0.02, atol=0.02)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the others have these matrices")
def test_layers_that_another_precision_does_not_have_are_refused(save):
    """TensorFlow has no orthogonal matrices of bfloat16, with which a recurrent layer begins."""
    image = keras.Input((8, 8, 3))
    model = save(keras.Model(image, keras.layers.LSTM(4)(keras.layers.Reshape((8, 24))(image))))
    resolve(EmbedderConfig(model))
    with pytest.raises(ImagebeamError, match="Received: precision=bfloat16"):
        resolve(EmbedderConfig(model, precision="bfloat16"))


@pytest.mark.parametrize("mode", ["unit", "tf", "torch", "caffe"])
def test_whole_numbers_are_not_preprocessed(save, mode):
    with pytest.raises(ImagebeamError, match=f"takes uint8.*preprocessing={mode}"):
        resolve(EmbedderConfig(save(integers()), preprocessing=mode))


def test_a_model_that_was_never_built_is_refused(save):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(keras.Sequential([keras.layers.Conv2D(4, 3)]))
    with pytest.raises(ImagebeamError, match="before it was built"):
        resolve(EmbedderConfig(path, image_size=(24, 20)))


def test_vectors_of_varying_length_are_refused(save):
    image = keras.Input((None, None, 3))
    path = save(keras.Model(image, keras.layers.Flatten()(image)))
    with pytest.raises(ImagebeamError, match="length of the vectors depends"):
        resolve(EmbedderConfig(path, image_size="native"))
    assert resolve(EmbedderConfig(path, image_size=(24, 20))).dimensions == {"embedding": 24 * 20 * 3}


def channels_first(around):
    """A map [n, 4, 22, 18], behind `around`."""
    keras.utils.set_random_seed(9)
    image = keras.Input((24, 20, 3))
    convolution = keras.layers.Conv2D(4, 3, data_format="channels_first")
    first = keras.layers.BatchNormalization(axis=1)(convolution(keras.layers.Permute((3, 1, 2))(image)))
    return keras.Model(image, around(first))


def in_a_model(first):
    image = keras.Input(first.shape[1:])
    pooled = keras.layers.MaxPooling2D(2, data_format="channels_first")(image)
    return keras.Model(image, keras.layers.Activation("tanh")(pooled))(first)


@pytest.mark.parametrize("around", [keras.layers.ReLU(name="last"), in_a_model], ids=["activation", "model"])
@pytest.mark.parametrize(("pooling", "pool"), [("avg", np.mean), ("max", np.max)])
def test_channels_that_come_first_are_not_pooled_over(save, around, pooling, pool):
    """The shape [n, 4, 22, 18] does not tell: means over channels and rows would be 18 floats."""
    path = save(model := channels_first(around))
    found = resolve(EmbedderConfig(path, pooling=pooling)).embed(PIXELS)["embedding"]
    expected = pool(np.asarray(model(PIXELS.astype("float32"))), axis=(2, 3))
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert [layer.dimension for layer in build_layers(describe(path), (24, 20))][-1] == 4


def test_channels_that_were_put_last_are_last(save):
    path = save(model := channels_first(lambda first: keras.layers.Permute((2, 3, 1))(first)))
    np.testing.assert_allclose(
        resolve(EmbedderConfig(path)).embed(PIXELS)["embedding"], expected(model), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "operation",
    [
        lambda images: (images - keras.ops.mean(images)) / keras.ops.std(images),
        lambda images: keras.ops.mean(images, axis=0, keepdims=True),
        lambda images: keras.ops.reshape(images, (1, 24 * 20 * 3)),
        lambda images: keras.layers.Conv2D(4, 3, name="block 1")(images),  # no name that TensorFlow takes
    ],
    ids=["statistics", "one vector", "one image", "cannot run"],
)
def test_models_that_do_not_embed_each_image_for_itself_are_refused(save, operation):
    image = keras.Input((24, 20, 3))
    path = save(keras.Model(image, operation(image)))
    with pytest.raises(ImagebeamError, match=r"mine\.keras") as caught:
        resolve(EmbedderConfig(path))
    assert "Arguments" not in str(caught.value)
    assert "node" not in str(caught.value)
    assert keras.Variable(0.0, name="later").path == "later", "the refused model names what is made later"


def test_a_batch_without_a_vector_for_each_image_is_an_error():
    """At native size no model is tried before the run: one vector was taken for that of every image."""
    image = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(image, keras.ops.mean(keras.ops.cast(image, "float32"), axis=(0, 1, 2), keepdims=True)[0, 0])
    with pytest.raises(ValueError, match="1 vectors for 3 images"):
        CompiledModel(model, Precision.FLOAT32)(PIXELS)


@pytest.mark.parametrize(
    "output",
    [
        keras.ops.mean,
        lambda images: keras.ops.mean(images, axis=(1, 2, 3)),
        lambda images: keras.layers.Flatten()(images)[:, :0],
    ],
    ids=["number", "numbers", "empty"],
)
def test_outputs_that_are_no_vectors_are_refused(save, output):
    image = keras.Input((24, 20, 3))
    path = save(keras.Model(image, output(image)))
    with pytest.raises(ImagebeamError, match="can be pooled"):
        resolve(EmbedderConfig(path))


def test_answers_of_a_model_are_floats(save):
    image = keras.Input((24, 20, 3))
    path = save(keras.Model(image, keras.layers.GlobalAveragePooling2D()(image) > 127))
    vectors = resolve(EmbedderConfig(path)).embed(PIXELS)["embedding"]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, PIXELS.mean(axis=(1, 2)) > 127)


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "float64"])
def test_weights_of_another_precision(save, policy):
    image = keras.Input((24, 20, 3))
    layers = [keras.layers.Rescaling(1 / 255, dtype=policy), keras.layers.Conv2D(4, 3, dtype=policy)]
    model = keras.Model(image, layers[1](layers[0](image)))
    exact = np.asarray(model(PIXELS.astype("float32"))).astype("float64").mean(axis=(1, 2))
    np.testing.assert_allclose(
        resolve(EmbedderConfig(save(model))).embed(PIXELS)["embedding"], exact, rtol=1e-2, atol=1e-3
    )


@pytest.fixture
def rewrite(save, tmp_path):
    """Save a model with other content of one member."""

    def rewrite(member, content):
        with zipfile.ZipFile(save(functional())) as archive, zipfile.ZipFile(tmp_path / "odd.keras", "w") as odd:
            for name in archive.namelist():
                odd.writestr(name, content if name == member else archive.read(name))
        return str(tmp_path / "odd.keras")

    return rewrite


@pytest.mark.parametrize("content", [b"[1, 2]", b"3", b"[" * 100_000, b"\xff", b'{"a"'])
def test_a_configuration_that_is_none_is_refused(rewrite, content):
    with pytest.raises(ImagebeamError, match="Not a Keras 3 model file"):
        EmbedderConfig(rewrite("config.json", content))


@pytest.mark.parametrize(
    "config",
    [
        {"config": {"layers": ["a", 3]}},
        {"config": {"layers": 7}},
        {"config": {"layers": [{"class_name": "InputLayer"}]}},
        {"config": {}, "build_config": [1]},
    ],
)
def test_a_configuration_that_keras_cannot_load_is_refused_in_few_words(rewrite, config):
    path = rewrite("config.json", json.dumps({"class_name": "Functional", **config, "note": "x" * 9999}).encode())
    with pytest.raises(ImagebeamError, match="cannot load") as caught:
        resolve(EmbedderConfig(path, image_size=(24, 20)))
    assert len(str(caught.value)) < 700


def test_a_damaged_archive_is_refused(rewrite):
    path = rewrite("config.json", b"{}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(range(256)))
    data = bytearray(Path(path).read_bytes())
    start = 30 + len("config.json")
    data[start : start + 40] = bytes(40)
    Path(path).write_bytes(data)
    with pytest.raises(ImagebeamError, match="Not a Keras 3 model file"):
        EmbedderConfig(path)


def test_a_file_of_keras_2_is_told(rewrite):
    with pytest.raises(ImagebeamError, match=r"Keras 2\.15\.0 wrote it.*--weights"):
        EmbedderConfig(rewrite("metadata.json", b'{"keras_version": "2.15.0"}'))


def test_a_file_without_its_ending_is_told_from_a_name(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(save(functional()), "backbone")
    with pytest.raises(ImagebeamError, match=r"a Keras 3 file, \*\.keras"):
        EmbedderConfig("backbone")
    shutil.copy("backbone", "VGG16")
    assert EmbedderConfig("VGG16").model == "VGG16"


def test_the_remedy_for_several_outputs_gives_one(save):
    image, inner = keras.Input((24, 20, 3)), keras.Input((24, 20, 3))
    parts = keras.Model(inner, {"b": inner, "a": keras.layers.ReLU(max_value=99)(inner)})
    model = keras.Model(image, parts(image))
    with pytest.raises(
        ImagebeamError, match=r"\(keras\.Model\(images, keras\.tree\.flatten\(model\(images\)\)\[0\]\)\)"
    ):
        resolve(EmbedderConfig(save(model)))
    images = keras.Input((24, 20, 3))
    one = save(keras.Model(images, keras.tree.flatten(model(images))[0]))
    found = resolve(EmbedderConfig(one)).embed(PIXELS)["embedding"]
    np.testing.assert_allclose(found, np.minimum(PIXELS, 99).mean(axis=(1, 2)), rtol=1e-5)


def test_errors_of_freezing_name_the_file(save):
    config = EmbedderConfig(save(functional()))
    backbone = load_backbone(config)
    with pytest.raises(ImagebeamError, match=r"mine\.keras has 3 layers with weights"):
        freeze(backbone, config.spec("0" * 64), Frozen(layers=9), config.model)
