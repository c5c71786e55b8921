import itertools
import warnings

import keras
import numpy as np
import pytest

from tests.support.real_weights import vgg16_onnx
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Pooling, Precision
from transforms.models import embedder as embedder_module
from transforms.models.architectures import ARCHITECTURES, get_architecture
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, build_embedder, resolve

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ResNet50", "EfficientNetB0", "DenseNet121")]


KERAS_PRECISIONS = [precision for precision in Precision if precision != Precision.INT8]


def small(**settings):
    return EmbedderConfig("MobileNetV3Small", image_size=(40, 32), **settings)


def images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def cosine(left, right):
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def plain_keras(name, embedder, pixels, pooling="avg", layer=None):
    """What a user of Keras would write: the model, its module's preprocess_input, predict."""
    constructor = getattr(keras.applications, name)
    keras.utils.clear_session(free_memory=False)  # Keras numbers unnamed layers by process
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        model = constructor(
            weights=None,
            include_top=False,
            pooling=None if layer else pooling,
            # Padding depends on whether the size is known: MobileNets pad odd sizes differently when it is.
            input_shape=(*(embedder.spec.image_size or (None, None)), 3),
        )
    (backbone,) = (layer for layer in embedder.model.layers if isinstance(layer, keras.Model))
    for source in backbone.layers:
        if source.weights:
            model.get_layer(source.name).set_weights(source.get_weights())
    if layer:
        model = keras.Model(model.input, model.get_layer(layer).output)
    module = __import__(constructor.__module__, fromlist=["preprocess_input"])
    features = model.predict(module.preprocess_input(pixels.astype("float32")), verbose=0)
    if layer:
        features = features.mean(axis=(1, 2)) if pooling == "avg" else features.max(axis=(1, 2))
    return features


def check_against_plain_keras(name):
    side = get_architecture(name).min_size
    ours = resolve(EmbedderConfig(name, "random:7", image_size=(side, side + 5)))
    pixels = images(2, side, side + 5)
    vectors = ours.embed(pixels)["embedding"]
    reference = plain_keras(name, ours, pixels)
    assert vectors.dtype == np.float32
    assert vectors.shape == reference.shape == (2, ours.dimensions["embedding"])
    assert cosine(vectors, reference).min() >= 0.999999
    assert np.abs(vectors - reference).max() <= 1e-5 * np.abs(reference).max()
    keras.backend.clear_session()


@pytest.mark.parametrize("name", ["VGG16", "MobileNetV2", *SLOW])
def test_one_model_of_each_preprocessing_equals_plain_keras(name):
    check_against_plain_keras(name)


@pytest.mark.parity
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_equals_plain_keras(name):
    check_against_plain_keras(name)


@pytest.mark.real_weights
@pytest.mark.parametrize(("layers", "pooling"), [((), Pooling.AVG), ((), Pooling.MAX), (("block4_pool",), Pooling.AVG)])
def test_real_vgg16_equals_plain_keras(layers, pooling):
    ours = resolve(EmbedderConfig("VGG16", str(vgg16_onnx()), layers, pooling, (64, 64)))
    pixels = images(5, 64, 64)
    full = resolve(EmbedderConfig("VGG16", str(vgg16_onnx()), image_size=(64, 64)))
    reference = plain_keras("VGG16", full, pixels, pooling, *layers)
    vectors = ours.embed(pixels)["embedding"]
    assert vectors.shape == (5, 512)
    assert cosine(vectors, reference).min() >= 0.999999
    assert np.abs(vectors - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.real_weights
def test_real_vgg16_starts_with_the_published_imagenet_values():
    # block1_conv1 of the weights published with keras.applications.
    convolution = resolve(EmbedderConfig("VGG16", str(vgg16_onnx()))).model.get_layer("vgg16").get_layer("block1_conv1")
    kernel, bias = convolution.get_weights()
    np.testing.assert_allclose([kernel[0, 0, 0, 0], bias[0]], [0.42947057, 0.73429835], rtol=1e-6)


@pytest.mark.real_weights
def test_bfloat16_stays_close_to_float32():
    pixels = images(8, 96, 96)
    vectors = [
        resolve(EmbedderConfig("VGG16", str(vgg16_onnx()), image_size=(96, 96), precision=precision)).embed(pixels)[
            "embedding"
        ]
        for precision in (Precision.FLOAT32, Precision.BFLOAT16)
    ]
    assert cosine(*vectors).min() >= 0.9999


def test_several_layers_come_out_of_one_pass_under_their_names():
    config = small()
    known = [layer.name for layer in get_architecture(config.model).build(config.size).layers]
    names = tuple(name for name in known if name.endswith("_add"))[:2]
    together = resolve(small(weights="random:3", layers=names))
    pixels = images(3, 40, 32)
    outputs = together.embed(pixels)
    assert list(together.dimensions) == list(outputs) == [f"embedding_{name}" for name in names]
    for name in names:
        alone = resolve(small(weights="random:3", layers=(name,)))
        assert list(alone.dimensions) == ["embedding"]
        np.testing.assert_allclose(outputs[f"embedding_{name}"], alone.embed(pixels)["embedding"], rtol=1e-5, atol=1e-6)


def test_columns_belong_to_their_layers_in_any_order():
    known = [layer.name for layer in get_architecture("VGG16").build((32, 32)).layers]
    layers = ("block2_pool", "block1_pool", "block3_pool")
    assert set(layers) <= set(known)
    for order in itertools.permutations(layers):
        embedder = resolve(EmbedderConfig("VGG16", "random:1", layers=order, image_size=(32, 32)))
        expected = {"block1_pool": 64, "block2_pool": 128, "block3_pool": 256}
        assert embedder.dimensions == {f"embedding_{name}": expected[name] for name in order}


def test_flatten_keeps_the_whole_map():
    flat = resolve(EmbedderConfig("VGG16", "random:1", pooling=Pooling.FLATTEN, image_size=(64, 96)))
    assert flat.dimensions == {"embedding": 2 * 3 * 512}
    pooled = resolve(EmbedderConfig("VGG16", "random:1", image_size=(64, 96)))
    pixels = images(2, 64, 96)
    means = flat.embed(pixels)["embedding"].reshape(2, 6, 512).mean(axis=1)
    np.testing.assert_allclose(means, pooled.embed(pixels)["embedding"], rtol=1e-5, atol=1e-7)


def test_images_of_any_size_give_a_vector_of_one_length():
    embedder = resolve(EmbedderConfig("VGG16", "random:1", image_size=None))
    for height, width in ((32, 32), (50, 90), (101, 64)):
        pixels = images(2, height, width)
        vectors = embedder.embed(pixels)["embedding"]
        assert vectors.shape == (2, 512)
        assert cosine(vectors, plain_keras("VGG16", embedder, pixels)).min() >= 0.999999


def test_a_layer_of_the_classifier_brings_the_top_with_it():
    embedder = resolve(EmbedderConfig("MobileNetV3Small", "random:1", layers=("predictions",)))
    probabilities = embedder.embed(images(2, 224, 224))["embedding"]
    assert probabilities.shape == (2, 1000)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_layer_of_the_classifier_needs_the_default_size():
    with pytest.raises(ImagebeamError, match=r"default size.*image_size=64x64"):
        resolve(EmbedderConfig("VGG16", "random:1", layers=("fc1",), image_size=(64, 64)))


def test_an_unknown_layer_is_answered_with_the_nearest_names():
    with pytest.raises(ImagebeamError, match=r"Received: layer='blok4_pool'. Did you mean block4_pool"):
        resolve(EmbedderConfig("VGG16", "random:1", layers=("blok4_pool",), image_size=(64, 64)))


def test_flattening_varying_sizes_is_refused():
    with pytest.raises(ImagebeamError, match="varying length"):
        resolve(EmbedderConfig("VGG16", "random:1", pooling=Pooling.FLATTEN, image_size=None))


def test_own_input_tensor_feeds_the_model():
    config = small(weights="random:3")
    image = keras.Input((40, 32, 3), name="photo")
    model = build_embedder(config, input_tensor=keras.layers.Rescaling(-1.0, 255.0)(image))
    plain = resolve(config)
    pixels = images(2, 40, 32)
    assert [tensor.name for tensor in model.inputs] == ["photo"]
    np.testing.assert_allclose(
        model.predict(pixels.astype("float32"), verbose=0), plain.embed(255 - pixels)["embedding"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "precision", [Precision.FLOAT32, *(pytest.param(p, marks=pytest.mark.slow) for p in KERAS_PRECISIONS[1:])]
)
def test_the_model_opens_as_one_file_in_plain_keras(tmp_path, precision):
    ours = resolve(small(weights="random:3", precision=precision))
    ours.model.save(tmp_path / "embedder.keras")
    opened = keras.saving.load_model(tmp_path / "embedder.keras", safe_mode=True)
    pixels = images(3, 40, 32)
    np.testing.assert_array_equal(opened.predict(pixels, verbose=0), ours.embed(pixels)["embedding"])


@pytest.mark.parametrize(
    "name",
    ["MobileNetV2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetB0", "ConvNeXtTiny"))],
)
def test_every_weight_finds_its_layer_at_another_precision(name):
    pixels = images(4, 64, 64)
    full, half = (
        resolve(EmbedderConfig(name, "random:3", image_size=(64, 64), precision=precision)).embed(pixels)["embedding"]
        for precision in (Precision.FLOAT32, Precision.BFLOAT16)
    )
    assert cosine(full, half).min() > 0.97


def test_precision_changes_the_arithmetic_and_nothing_else():
    specs = [resolve(small(weights="random:3", precision=precision)).spec for precision in KERAS_PRECISIONS]
    assert len({spec.weights_sha256 for spec in specs}) == 1
    assert len({spec.fingerprint for spec in specs}) == len(KERAS_PRECISIONS)
    assert keras.config.dtype_policy().name == "float32"


def test_the_embedder_can_be_called_from_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    embedder = resolve(small(weights="random:3"))
    batches = [images(2, 40, 32, seed) for seed in range(8)]
    alone = [embedder.embed(batch)["embedding"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: embedder.embed(batch)["embedding"], batches))
    np.testing.assert_array_equal(np.stack(together), np.stack(alone))


def test_column_names_and_weight_bytes():
    assert embedder_module.columns(()) == embedder_module.columns(("a",)) == ("embedding",)
    assert embedder_module.columns(("a", "b")) == ("embedding_a", "embedding_b")
    names = embedder_module.columns(("x/y", "x.y", "X y", "é"))
    assert names == ("embedding_x_y", "embedding_x_y_2", "embedding_X_y_3", "embedding__")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    assert Embedder(EmbedderSpec("x", "0" * 64), model).weight_bytes == 4 * (4 * 3 + 3)


@pytest.mark.parametrize(
    "settings", [{"layers": 5}, {"layers": [5]}, {"model": 5}, {"weights": None}, {"image_size": 5}]
)
def test_a_config_of_other_types_is_refused(settings):
    with pytest.raises(ImagebeamError, match=f"{next(iter(settings))} is .*Received"):
        EmbedderConfig(**settings)
