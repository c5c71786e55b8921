"""Winograd's convolutions against OpenVINO's own, and against sums of products in float64."""

import numpy as np
import pytest

from transforms.core.engines import Engine
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.engines import winograd
from transforms.models.engines.openvino_model import convert, import_openvino, is_installed
from transforms.models.engines.winograd import with_winograd
from transforms.models.staged import LoadedModel, StagedEngine, read_staged, stage

pytestmark = pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed: the extra openvino")
CHANNELS = 160


def convolution(ops, images, channels, filters, kernel=(3, 3), stride=1, padding=1):
    random = np.random.default_rng(channels * filters + stride)
    weights = random.normal(0, 1 / np.sqrt(9 * channels), (filters, channels, *kernel)).astype(np.float32)
    around = [padding, padding]
    return ops.convolution(images, ops.constant(weights), [stride] * 2, around, around, [1, 1])


def model_of(build, size, channels=CHANNELS):
    """`build(ops, images)` gives outputs for [n, channels, height, width]."""
    openvino = import_openvino()
    ops = openvino.opset13
    images = ops.parameter([-1, channels, *size], np.float32)
    outputs = build(ops, images)
    model = openvino.Model(outputs, [images], "test")
    for number, output in enumerate(model.outputs):
        output.get_tensor().set_names({f"output {number}"})
    return model


def compute(model, images):
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = import_openvino().Core().compile_model(model, "CPU", settings)(images)
    return {name: found[name] for output in model.outputs for name in output.get_names()}


def convolutions_in(model):
    return [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]


def block(ops, images):
    """Convolutions with what stands between them in VGG16 and ResNet: bias, activation, scale, shortcut, pooling."""
    bias = np.linspace(-1, 1, CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1)
    first = ops.relu(ops.add(convolution(ops, images, CHANNELS, CHANNELS), ops.constant(bias)))
    scaled = ops.multiply(convolution(ops, first, CHANNELS, CHANNELS), ops.constant(1 + bias / 2))
    joined = ops.relu(ops.add(scaled, first))
    pooled = ops.max_pool(joined, [1, 1], [1, 1], [1, 1], [1, 1], [3, 3])
    last = convolution(ops, pooled.output(0), CHANNELS, 192)
    return [first, last, ops.reduce_mean(ops.relu(last), ops.constant(np.array([2, 3])), keep_dims=False)]


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (4, 13)])
@pytest.mark.parametrize("count", [1, 3])
def test_vectors_equal_those_of_openvinos_own_convolutions(size, count):
    model = model_of(block, size)
    rewritten = with_winograd(model)
    assert (len(convolutions_in(model)), convolutions_in(rewritten)) == (3, [])
    images = np.random.default_rng(1).normal(1, 1, (count, CHANNELS, *size)).astype(np.float32)
    ours, theirs = compute(rewritten, images), compute(model, images)
    assert list(ours) == list(theirs) == ["output 0", "output 1", "output 2"]
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        assert np.linalg.norm(ours[name] - expected) < 3e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda ops, images: [convolution(ops, images, CHANNELS, CHANNELS, stride=2)],
        lambda ops, images: [convolution(ops, images, CHANNELS, CHANNELS, padding=0)],
        lambda ops, images: [convolution(ops, images, CHANNELS, CHANNELS, kernel=(1, 1), padding=0)],
        lambda ops, images: [convolution(ops, images, CHANNELS, CHANNELS, kernel=(5, 5), padding=2)],
        lambda ops, images: [convolution(ops, images, CHANNELS, 32)],
        lambda ops, images: [ops.relu(images)],
    ],
    ids=["stride", "valid", "1x1", "5x5", "few filters", "none"],
)
def test_other_convolutions_are_left_alone(build):
    assert with_winograd(model_of(build, (8, 8))) is None


def test_a_model_with_most_work_elsewhere_is_left_alone():
    def build(ops, images):
        narrow = convolution(ops, images, CHANNELS, 64, kernel=(5, 5), padding=2)
        wide = convolution(ops, images, CHANNELS, CHANNELS, stride=1)
        return [narrow, convolution(ops, images, CHANNELS, CHANNELS, kernel=(5, 5), padding=2), wide]

    assert with_winograd(model_of(build, (8, 8))) is None


def test_a_model_for_images_of_any_size_is_left_alone():
    assert with_winograd(model_of(block, (-1, -1))) is None
    assert with_winograd(model_of(block, (8, -1))) is None


def transformed(matrices, signal, kernel):
    inputs, weights, outputs = matrices
    return outputs @ ((weights @ kernel) * (inputs @ signal))


def test_matrices_give_the_sum_of_products():
    random = np.random.default_rng(0)
    signal, kernel = random.normal(size=6), random.normal(size=3)
    expected = np.correlate(signal, kernel, "valid")
    np.testing.assert_allclose(transformed(winograd._matrices(), signal, kernel), expected, rtol=1e-12)


def test_the_points_have_half_the_rounding_error_of_the_usual_ones(monkeypatch):
    """In float32, of sums over 256 channels, as a share of their length."""

    def error():
        inputs, weights, outputs = (np.kron(one, one).astype(np.float32) for one in winograd._matrices())
        random = np.random.default_rng(0)
        tiles = np.maximum(random.normal(0.5, 1, (100, 6, 6, 256)), 0).astype(np.float32)
        kernels = random.normal(0, 0.02, (3, 3, 256, 64)).astype(np.float32)
        exact = sum(
            np.einsum("tijc,ck->tijk", tiles[:, p : p + 4, q : q + 4].astype(float), kernels[p, q])
            for p in range(3)
            for q in range(3)
        )
        products = np.matmul(
            (inputs @ tiles.transpose(1, 2, 0, 3).reshape(36, -1)).reshape(36, 100, 256),
            (weights @ kernels.reshape(9, -1)).reshape(36, 256, 64),
        )
        found = (outputs @ products.reshape(36, -1)).reshape(4, 4, 100, 64).transpose(2, 0, 1, 3)
        return np.linalg.norm(found - exact) / np.linalg.norm(exact)

    ours = error()
    monkeypatch.setattr(winograd, "_POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
    assert ours < 2e-6
    assert 1.6 < error() / ours < 3


@pytest.fixture(scope="module")
def vgg16():
    return resolve(EmbedderConfig("VGG16", "random:0", layers=("block4_conv2", "block5_pool"), image_size=(33, 50)))


def test_workers_load_a_model_as_it_was_rewritten(vgg16, tmp_path):
    plain = convert(vgg16)
    rewritten = with_winograd(plain)
    assert rewritten is not None
    assert 0 < len(convolutions_in(rewritten)) < len(convolutions_in(plain))
    assert list(rewritten.outputs[1].get_names()) == ["embedding_block5_pool"]
    engine = StagedEngine(Engine.OPENVINO, Engine.OPENVINO)
    random = np.random.default_rng(0)
    images = np.kron(random.integers(0, 256, (5, 11, 10, 3)), np.ones((1, 3, 5, 1))).astype(np.uint8)
    sizes = []
    for name, model in (("plain", plain), ("rewritten", rewritten)):
        staged = stage(LoadedModel(vgg16, engine, model), str(tmp_path / name), {"source": "random:0"})
        sizes.append(sum(path.stat().st_size for path in (tmp_path / name).glob("*.bin")))
        found = read_staged(staged.folder)
        assert found is not None
        vectors = found.load().embed(images)
        for column, expected in vgg16.embed(images).items():
            apart = np.linalg.norm(vectors[column] - expected, axis=1)
            assert (apart < 4e-6 * np.linalg.norm(expected, axis=1)).all()
    assert sizes[1] < 1.01 * sizes[0]
