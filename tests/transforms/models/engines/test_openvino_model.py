"""Embedders on OpenVINO against the same Keras model, converted, staged, quantised."""

import dataclasses
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from transforms.core.batching import MODEL_CALLS
from transforms.core.engines import Engine
from transforms.core.errors import ImagebeamError
from transforms.core.spec import Precision
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.engines import int8, openvino_model
from transforms.models.engines.openvino_model import OpenVinoEmbedder, convert, converter, is_installed
from transforms.models.engines.trial import calibrate, choose
from transforms.models.staged import LoadedModel, StagedEngine, read_staged, stage

pytestmark = pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed: the extra openvino")
SIZE = (48, 56)


def draw(count, size=SIZE, seed=0):
    """Images with large shapes in them: noise alone looks the same to any network."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, *size, 3), np.uint8)
    for image in images:
        for _ in range(4):
            top, left = random.integers(0, size[0] - 8), random.integers(0, size[1] - 8)
            image[top : top + random.integers(4, 24), left : left + random.integers(4, 24)] = random.integers(0, 256, 3)
    return images


@pytest.fixture(scope="module")
def vgg16():
    return resolve(EmbedderConfig("VGG16", "random:0", layers=("block1_pool", "block2_pool"), image_size=SIZE))


def test_every_column_equals_keras(vgg16):
    images = draw(5)
    embedder = OpenVinoEmbedder(vgg16.spec, vgg16.dimensions, convert(vgg16))
    ours, theirs = embedder.embed(images), vgg16.embed(images)
    assert list(ours) == ["embedding_block1_pool", "embedding_block2_pool"]
    for column, vectors in theirs.items():
        assert ours[column].dtype == np.float32
        np.testing.assert_allclose(ours[column], vectors, rtol=1e-4, atol=1e-5 * np.abs(vectors).max())


def test_a_large_batch_is_embedded_in_parts(vgg16, monkeypatch):
    """Whose vectors are those of the whole; the last part is smaller."""
    images = draw(7)
    embedder = OpenVinoEmbedder(vgg16.spec, vgg16.dimensions, convert(vgg16))
    whole = embedder.embed(images)
    monkeypatch.setattr(openvino_model, "_PIXELS", 3 * SIZE[0] * SIZE[1])
    for column, vectors in embedder.embed(images).items():
        np.testing.assert_array_equal(vectors, whole[column])


class Watched:
    """A request of OpenVINO that meets another at a barrier first, where there is one; some of its calls fail."""

    def __init__(self, request, barrier=None, fails=None):
        self.request, self.barrier, self.fails = request, barrier, fails

    def infer(self, inputs, **arguments):
        if self.barrier is not None:
            self.barrier.wait(timeout=30)
        if self.fails is not None and next(self.fails):
            raise RuntimeError("no memory")
        return self.request.infer(inputs, **arguments)


def watch(embedder, **settings):
    for request in [embedder._requests.get() for _ in range(MODEL_CALLS)]:
        embedder._requests.put(Watched(request, **settings))


def test_parts_of_a_batch_run_at_once(vgg16, monkeypatch):
    monkeypatch.setattr(openvino_model, "_PIXELS", 3 * SIZE[0] * SIZE[1])
    embedder = OpenVinoEmbedder(vgg16.spec, vgg16.dimensions, convert(vgg16))
    watch(embedder, barrier=threading.Barrier(2))
    images = draw(10)
    found = embedder.embed(images)
    for column, vectors in vgg16.embed(images).items():
        np.testing.assert_allclose(found[column], vectors, rtol=1e-4, atol=1e-5 * np.abs(vectors).max())


def test_many_threads_get_the_vectors_of_their_own_images(vgg16, monkeypatch):
    """Of sizes that end in parts of other sizes, so that requests go from one batch to another all the time."""
    monkeypatch.setattr(openvino_model, "_PIXELS", 2 * SIZE[0] * SIZE[1])
    embedder = OpenVinoEmbedder(vgg16.spec, vgg16.dimensions, convert(vgg16))
    batches = [draw(count, seed=count) for count in (1, 2, 5, 7, 3, 4, 6, 9)]
    with ThreadPoolExecutor(4) as pool:
        for images, found in zip(batches, pool.map(embedder.embed, batches), strict=True):
            for column, vectors in vgg16.embed(images).items():
                np.testing.assert_allclose(found[column], vectors, rtol=1e-4, atol=1e-5 * np.abs(vectors).max())


def test_an_inference_that_fails_leaves_the_embedder_fit_for_the_next(vgg16, monkeypatch):
    monkeypatch.setattr(openvino_model, "_PIXELS", 3 * SIZE[0] * SIZE[1])
    embedder = OpenVinoEmbedder(vgg16.spec, vgg16.dimensions, convert(vgg16))
    images = draw(10)
    expected = embedder.embed(images)
    watch(embedder, fails=iter([False, True, *[False] * 10]))
    with pytest.raises(RuntimeError, match="no memory"):
        embedder.embed(images)
    for column, vectors in embedder.embed(images).items():
        np.testing.assert_array_equal(vectors, expected[column])


def test_extra_outputs_of_activations_are_not_columns():
    """EfficientNet's swish is an operation of several outputs in TensorFlow."""
    keras = resolve(EmbedderConfig("EfficientNetB0", "random:0", layers=("block1a_activation",), image_size=(32, 32)))
    images = draw(3, (32, 32))
    ours = OpenVinoEmbedder(keras.spec, keras.dimensions, convert(keras)).embed(images)
    assert list(ours) == ["embedding"]
    np.testing.assert_allclose(ours["embedding"], keras.embed(images)["embedding"], rtol=1e-4, atol=1e-5)


def test_a_conversion_that_fails_leaves_the_log_as_it_was(caplog):
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    with pytest.raises(Exception, match="not there"), converter() as openvino:
        openvino.convert_model("/not there.pb")
    assert (root.level, root.filters, root.handlers) == before
    logging.getLogger("transforms").warning("still heard")
    assert "still heard" in caplog.text


def test_two_threads_that_convert_leave_the_log_as_it_was(vgg16):
    """As two jobs in one process do; each of the two finds the root logger's level as the other has set it."""
    root = logging.getLogger()
    before = root.level
    started = threading.Barrier(2)

    def one():
        started.wait()
        for _ in range(5):
            convert(vgg16)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(one), pool.submit(one)]:
            future.result()
    assert root.level == before


def test_native_image_sizes_are_supported():
    keras = resolve(EmbedderConfig("VGG16", "random:1", layers=("block2_pool",), image_size="native"))
    embedder = OpenVinoEmbedder(keras.spec, keras.dimensions, convert(keras))
    for size in ((32, 40), (57, 33), (32, 40)):
        images = draw(2, size)
        expected = keras.embed(images)["embedding"]
        np.testing.assert_allclose(embedder.embed(images)["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_a_staged_model_runs_without_keras_in_another_process(vgg16, tmp_path):
    engine = StagedEngine(Engine.OPENVINO, Engine.OPENVINO, "asked for")
    folder = str(tmp_path / "model")
    staged = stage(LoadedModel(vgg16, engine, convert(vgg16)), folder, {"source": "random:0", "file_sha256": None})
    assert [name.partition("-")[0] for name in staged.engine.files] == ["embedder", "embedder"]
    (numbers,) = (tmp_path / "model").glob("*.bin")
    assert read_staged(folder) == staged
    images = draw(3)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np\n"
        "from transforms.models.staged import read_staged\n"
        "vectors = read_staged(sys.argv[1] + '/model').load().embed(np.load(sys.argv[1] + '/images.npy'))\n"
        "np.savez(sys.argv[1] + '/vectors.npz', **vectors)\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules), 'workers would wait for Keras'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    with np.load(tmp_path / "vectors.npz") as vectors:
        for column, expected in vgg16.embed(images).items():
            np.testing.assert_allclose(vectors[column], expected, rtol=1e-4, atol=1e-5)
    numbers.write_bytes(b"\0" * 100)
    with pytest.raises(ImagebeamError, match="is not the file that was staged"):
        staged.load()
    numbers.unlink()
    with pytest.raises(ImagebeamError, match="is missing"):
        staged.load()


def test_without_openvino_keras_runs_all_but_int8(vgg16, tmp_path, monkeypatch, caplog):
    engine = StagedEngine(Engine.OPENVINO, Engine.AUTO, "faster")
    staged = stage(LoadedModel(vgg16, engine, convert(vgg16)), str(tmp_path), {"source": "", "file_sha256": None})
    assert isinstance(staged.load(), OpenVinoEmbedder)
    monkeypatch.setattr("transforms.models.engines.openvino_model.is_installed", lambda: False)
    images = draw(2)
    np.testing.assert_array_equal(
        staged.load().embed(images)["embedding_block1_pool"], vgg16.embed(images)["embedding_block1_pool"]
    )
    assert "OpenVINO is missing here" in caplog.text
    spec = dataclasses.replace(staged.spec, precision=Precision.INT8)
    with pytest.raises(ImagebeamError, match=r"imagebeam\[openvino\]"):
        dataclasses.replace(staged, spec=spec).load()


@pytest.fixture
def broken_openvino(tmp_path):
    """The environment of a process in which OpenVINO is found and cannot be imported."""
    package = tmp_path / "broken" / "openvino"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), *sys.path])}


@pytest.mark.slow
def test_keras_runs_the_model_where_openvino_cannot_be_imported(vgg16, tmp_path, broken_openvino):
    engine = StagedEngine(Engine.OPENVINO, Engine.OPENVINO, "asked for")
    staged = stage(LoadedModel(vgg16, engine, convert(vgg16)), str(tmp_path), {"source": "", "file_sha256": None})
    images = draw(2)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, dataclasses, logging, numpy as np\n"
        "logging.basicConfig()\n"
        "from transforms.models.staged import read_staged\n"
        "from transforms.core.errors import ImagebeamError\n"
        "staged = read_staged(sys.argv[1])\n"
        "np.savez(sys.argv[1] + '/vectors.npz', **staged.load().embed(np.load(sys.argv[1] + '/images.npy')))\n"
        "try:\n"
        "    dataclasses.replace(staged, spec=dataclasses.replace(staged.spec, precision='int8')).load()\n"
        "except ImagebeamError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, staged.folder]
    run = subprocess.run(command, check=True, env=broken_openvino, capture_output=True, text=True)
    assert "Keras runs the model: it cannot be imported: libtbb.so.12" in run.stderr
    assert "An int8 model runs on OpenVINO, which is missing here: it cannot be imported: libtbb.so.12" in run.stdout
    with np.load(tmp_path / "vectors.npz") as vectors:
        for column, expected in vgg16.embed(images).items():
            np.testing.assert_allclose(vectors[column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_trial_goes_on_where_openvino_cannot_be_imported(broken_openvino):
    code = (
        "import numpy as np\n"
        "from transforms.models.config import EmbedderConfig\n"
        "from transforms.models.embedder import resolve\n"
        "from transforms.core.errors import ImagebeamError\n"
        "from transforms.models.engines.trial import choose\n"
        "embedder = resolve(EmbedderConfig('VGG16', 'random:0', layers=('block1_pool',), image_size=(32, 32)))\n"
        "images = [np.zeros((32, 32, 3), np.uint8)]\n"
        "print(choose(lambda _: embedder, 'auto', 'bfloat16', images).loaded.engine.name)\n"
        "try:\n"
        "    choose(lambda _: embedder, 'openvino', 'float32', images)\n"
        "except ImagebeamError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, env=broken_openvino, capture_output=True, text=True)
    chosen, refused = run.stdout.splitlines()
    assert chosen == "keras"
    assert refused.startswith("OpenVINO is missing: it cannot be imported: libtbb.so.12")


def test_keras_runs_what_openvino_cannot_compile_on_this_processor(vgg16, tmp_path, monkeypatch, caplog):
    """As it says of a model at bfloat16 where oneDNN is held to AVX2."""

    def refuse(*_):
        raise RuntimeError("Exception from core.cpp\nprimitive descriptors list is empty for node: MaxPool\n")

    engine = StagedEngine(Engine.OPENVINO, Engine.AUTO, "faster")
    staged = stage(LoadedModel(vgg16, engine, convert(vgg16)), str(tmp_path), {"source": "", "file_sha256": None})
    monkeypatch.setattr("transforms.models.staged.OpenVinoEmbedder", refuse)
    images = draw(2)
    np.testing.assert_array_equal(
        staged.load().embed(images)["embedding_block1_pool"], vgg16.embed(images)["embedding_block1_pool"]
    )
    assert "Keras runs the model" in caplog.text
    assert "primitive descriptors list is empty for node: MaxPool" in caplog.text
    int8 = dataclasses.replace(staged, spec=dataclasses.replace(staged.spec, precision=Precision.INT8))
    with pytest.raises(ImagebeamError, match=r"An int8 model runs on OpenVINO.*cannot run it here: .*MaxPool"):
        int8.load()


def test_another_processor_is_reported(vgg16, tmp_path, caplog):
    engine = StagedEngine(Engine.OPENVINO, Engine.OPENVINO, "", processor=("FP32", "amx_of_tomorrow"))
    stage(LoadedModel(vgg16, engine, convert(vgg16)), str(tmp_path), {"source": "", "file_sha256": None}).load()
    assert "This processor lacks amx_of_tomorrow" in caplog.text


def test_a_gpu_is_preferred_to_what_a_trial_chose_elsewhere(vgg16, tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.models.staged.has_nvidia_gpu", lambda: True)
    for asked, kind in ((Engine.AUTO, type(vgg16)), (Engine.OPENVINO, OpenVinoEmbedder)):
        loaded = LoadedModel(vgg16, StagedEngine(Engine.OPENVINO, asked, ""), convert(vgg16))
        assert isinstance(stage(loaded, str(tmp_path / asked), {"source": "", "file_sha256": None}).load(), kind)


def test_int8_stays_close_and_has_its_own_fingerprint(caplog):
    config = EmbedderConfig("VGG16", "random:0", layers=("block2_pool",), image_size=SIZE)
    float32 = resolve(config)
    spec = dataclasses.replace(float32.spec, precision=Precision.INT8)
    images = list(draw(60))
    verdict = calibrate(float32, spec, images, [f"{number:064x}" for number in range(60)], 0.99)
    fresh = draw(20, seed=1)
    ours, theirs = verdict.model.embed(fresh)["embedding"], float32.embed(fresh)["embedding"]
    assert np.median(int8.cosines(theirs, ours)) > 0.99
    assert not np.array_equal(ours, theirs)
    calibrated = verdict.loaded.embedder.spec
    assert calibrated.calibration is not None
    assert type(calibrated).from_json(calibrated.to_json()) == calibrated
    logging.getLogger("transforms").warning("still heard")
    assert "still heard" in caplog.text
    assert logging.getLoggerClass() is logging.Logger
    assert calibrated.fingerprint not in (float32.spec.fingerprint, spec.fingerprint)
    about = verdict.loaded.engine.trial["int8"]
    assert about["calibrated_on"] == about["images"] == 30
    assert about["lowest_cosine"] <= about["median_cosine"] <= 1
    with pytest.raises(ImagebeamError, match=r"--int8_min_cosine is 0\.99999999"):
        calibrate(float32, spec, images, ["0" * 64] * 60, 0.99999999)
    with pytest.raises(ImagebeamError, match=r"at least 24\. Received: 10 "):
        calibrate(float32, spec, images[:10], ["0" * 64] * 10, 0.9)


def test_int8_cost_equals_a_plain_computation():
    random = np.random.default_rng(3)
    exact = random.normal(size=(40, 7)).astype(np.float32)
    other = exact + random.normal(size=exact.shape).astype(np.float32) * 0.3
    cost = int8.measure({"a": exact}, {"a": other})
    cosine = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(exact, other, strict=True)]
    assert cost.median_cosine == pytest.approx(np.median(cosine), abs=1e-6)
    assert cost.lowest_cosine == pytest.approx(min(cosine), abs=1e-6)
    kept = []
    for index in range(40):
        near = [
            set(
                sorted(
                    (other for other in range(40) if other != index),
                    key=lambda j: -(matrix[index] @ matrix[j]) / np.linalg.norm(matrix[j]),
                )[:10]
            )
            for matrix in (exact.astype(np.float64), other.astype(np.float64))
        ]
        kept.append(len(near[0] & near[1]) / 10)
    assert cost.neighbours_kept == pytest.approx(np.mean(kept), abs=1e-9)


def test_real_trial_chooses_and_refuses_openvino(vgg16):
    verdict = choose(lambda _: vgg16, Engine.OPENVINO, Precision.FLOAT32, list(draw(4)))
    (tried,) = verdict.loaded.engine.trial["candidates"]
    assert tried["largest_difference"] < 1e-5
    assert isinstance(verdict.model, OpenVinoEmbedder)
    with pytest.raises(ImagebeamError, match=r"takes no arguments. Received: training"):
        verdict.model.embed(draw(1), training=False)


def test_import_sends_nothing_over_the_network():
    code = (
        "from transforms.models.engines.openvino_model import import_openvino\n"
        "import_openvino()\n"
        "import openvino.tools.ovc.telemetry_utils as told\n"
        "from nncf.telemetry import wrapper\n"
        "print(told.tm.__name__, hasattr(wrapper, 'Telemetry'))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
