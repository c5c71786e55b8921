"""What Beam expects of a model handler, and of an embedding manager."""

import dataclasses
import io
import pickle

import apache_beam as beam
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.testing.util import assert_that, equal_to

from tests.support.fakes import ChannelMeans, FakeModel
from transforms.core.errors import ImagebeamError
from transforms.embed.ml_transform import KerasImageEmbeddings, to_pixels
from transforms.embed.model_handler import EmbeddingModelHandler
from transforms.images.decode import ImageOptions, decode_image
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.staged import stage_model

CONFIG = EmbedderConfig("VGG16", "random:0", layers=("block1_pool",), image_size=(32, 32))


class Shifted(ChannelMeans):
    """Takes an argument with its call."""

    def embed(self, images, shift=0.0):
        return {"embedding": super().embed(images)["embedding"] + shift}


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return stage_model(CONFIG, str(tmp_path_factory.mktemp("model")))


def images(count=9):
    return {f"k{index}": np.full((4 + index % 2, 6, 3), index, np.uint8) for index in range(count)}


def png(array):
    data = io.BytesIO()
    PIL.Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("large_model", [False, True])
def test_run_inference_gives_prediction_results_by_key(large_model):
    handler = EmbeddingModelHandler(FakeModel(Shifted()), batch_size=4, large_model=large_model)
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = (
            pipeline
            | beam.Create(list(images().items()))
            | RunInference(KeyedModelHandler(handler), inference_args={"shift": 0.5})
            | beam.MapTuple(lambda key, result: (key, type(result).__name__, result.inference["embedding"].tolist()))
        )
        expected = [(key, "PredictionResult", [image[0, 0, 0] + 0.5] * 3) for key, image in images().items()]
        assert_that(results, equal_to(expected))


def test_results_keep_order_examples_and_fingerprint(staged):
    handler = EmbeddingModelHandler(staged.folder)
    assert pickle.loads(pickle.dumps(handler)).load_model().spec == staged.spec
    batch = [np.full((32 + index % 2, 32, 3), 9 * index, np.uint8) for index in range(5)]
    fake = ChannelMeans()
    results = list(handler.run_inference(batch, fake))
    assert all(isinstance(result, PredictionResult) for result in results)
    for image, result in zip(batch, results, strict=True):
        assert result.example is image
        np.testing.assert_array_equal(result.inference["embedding"], fake.embed(image[None])["embedding"][0])
        assert result.model_id == staged.spec.fingerprint


def test_another_model_is_loaded_when_beam_names_it(staged, tmp_path):
    """As of a side input: https://beam.apache.org/documentation/ml/about-ml/#automatic-model-refresh."""
    other = stage_model(dataclasses.replace(CONFIG, weights="random:1"), str(tmp_path / "other"))
    handler = EmbeddingModelHandler(staged)
    for given, expected in ((None, staged), ("", staged), (other.folder, other), ("", other)):
        handler.update_model_path(given)
        assert handler.load_model().spec == expected.spec
        (result,) = handler.run_inference([np.zeros((32, 32, 3), np.uint8)], ChannelMeans())
        assert result.model_id == expected.spec.fingerprint
    with pytest.raises(ImagebeamError, match="no staged model"):
        handler.update_model_path(str(tmp_path))


def test_inference_args_reach_the_keras_call(staged):
    batch = [np.full((32, 32, 3), 90, np.uint8)]
    handler = EmbeddingModelHandler(staged)
    model = handler.load_model()
    plain, trained = (list(handler.run_inference(batch, model, args)) for args in (None, {"training": False}))
    np.testing.assert_allclose(plain[0].inference["embedding"], trained[0].inference["embedding"], rtol=1e-5)


def test_takes_the_settings_of_beams_handlers():
    handler = EmbeddingModelHandler(FakeModel(), min_batch_size=2, max_batch_size=7, max_batch_duration_secs=3)
    assert handler.batch_elements_kwargs() == {"min_batch_size": 2, "max_batch_size": 7, "max_batch_duration_secs": 3}
    assert not handler.share_model_across_processes()
    assert EmbeddingModelHandler(FakeModel(), large_model=True).share_model_across_processes()
    copies = EmbeddingModelHandler(FakeModel(), model_copies=2)
    assert copies.share_model_across_processes()
    assert copies.model_copies() == 2
    assert EmbeddingModelHandler(FakeModel()).batch_elements_kwargs() == {"min_batch_size": 1, "max_batch_size": 32}
    assert handler.get_num_bytes([np.zeros((4, 4, 3), np.uint8)] * 2) == 2 * 48
    assert handler.get_metrics_namespace() == "imagebeam"


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), b"bytes", np.zeros((4, 4, 4), np.uint8)]
)
def test_non_images_are_refused(image):
    with pytest.raises(TypeError, match="Received"):
        list(EmbeddingModelHandler(FakeModel()).run_inference([image], ChannelMeans()))


def test_models_that_workers_cannot_load_are_refused(tmp_path):
    with pytest.raises(ImagebeamError, match="no staged model"):
        EmbeddingModelHandler(str(tmp_path))
    with pytest.raises(ImagebeamError, match="other weights"):
        EmbeddingModelHandler(EmbedderConfig("VGG16", "none"))


@pytest.mark.filterwarnings("ignore:keys will default to True in jsonpickle:DeprecationWarning")  # Beam's call
@pytest.mark.parametrize("where", ["staged", "config"])
def test_ml_transform_writes_and_reads_its_artifacts(tmp_path, staged, where):
    settings = {"staged": staged.folder} if where == "staged" else {**CONFIG.__dict__}
    photo = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    pixels = decode_image(png(photo), ImageOptions(image_size=(32, 32))).pixels
    expected = resolve(CONFIG).embed(pixels[None])["embedding"][0]
    rows = [
        {"id": index, "image": image} for index, image in enumerate((png(photo), photo, PIL.Image.fromarray(photo)))
    ]

    def check(found):
        assert sorted(row["id"] for row in found) == [0, 1, 2]
        for row in found:
            assert isinstance(row["image"], list)
            np.testing.assert_allclose(row["image"], expected, rtol=1e-5, atol=1e-6)

    manager = KerasImageEmbeddings(columns=["image"], **settings)
    write = MLTransform(write_artifact_location=str(tmp_path)).with_transform(manager)
    for transform in (write, MLTransform(read_artifact_location=str(tmp_path))):
        with beam.Pipeline("FnApiRunner") as pipeline:
            assert_that(pipeline | beam.Create(rows) | transform, check)


def test_settings_of_ml_transform_reach_the_handler_that_beam_asks():
    for large_model in (False, True):
        manager = KerasImageEmbeddings(["image"], **CONFIG.__dict__, large_model=large_model)
        handler = manager.get_ptransform_for_processing()._model_handler
        assert handler.share_model_across_processes() is large_model
        rows = [{"id": 1, "image": np.zeros((4, 6, 3), np.uint8)}, {"id": 2, "image": b"12345"}]
        assert handler.get_num_bytes(rows) == 2 * 8 + 4 * 6 * 3 + 5


def turned(mode, orientation):
    """A picture whose pixels tell how it lies, as Pillow writes it."""
    pixels = np.random.default_rng(1).integers(256, size=(24, 40, 3), dtype=np.uint8)
    image, exif = PIL.Image.fromarray(pixels).convert(mode), PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_that_pillow_opened_are_embedded_as_their_bytes_are(mode, orientation):
    data = turned(mode, orientation)
    for size in (None, (32, 32)):
        options = ImageOptions(image_size=size)
        expected = decode_image(data, options).pixels
        opened = PIL.Image.open(io.BytesIO(data))
        for image in (opened, pickle.loads(pickle.dumps(opened)), PIL.ImageOps.exif_transpose(opened)):
            np.testing.assert_array_equal(to_pixels(image, options), expected)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "RGBX", "RGBa", "YCbCr", "HSV", "I", "I;16"])
def test_images_of_every_mode_of_pillow_are_taken(mode):
    image = PIL.Image.new("RGB", (5, 4), (255, 255, 255)).convert("L" if mode.startswith("I") else "RGB")
    image = image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)
    if mode.startswith("I"):
        image = PIL.Image.fromarray(np.full((4, 5), 65_535, {"I": np.int32, "I;16": np.uint16}[mode]))
    assert image.mode == mode
    np.testing.assert_array_equal(to_pixels(image, ImageOptions(image_size=None)), np.full((4, 5, 3), 255, np.uint8))


def test_images_of_floats_are_refused():
    with pytest.raises(TypeError, match="mode F"):
        to_pixels(PIL.Image.new("F", (5, 4)), ImageOptions())


def test_bad_embeddings_managers_are_refused(tmp_path):
    with pytest.raises(ImagebeamError, match="modle"):
        KerasImageEmbeddings(columns=["image"], modle="VGG16")
    with pytest.raises(ImagebeamError, match="one vector"):
        KerasImageEmbeddings(columns=["image"], layers=("block1_pool", "block2_pool"))
    with pytest.raises(ImagebeamError, match="no staged model"):
        KerasImageEmbeddings(columns=["image"], staged=str(tmp_path))
    with pytest.raises(TypeError, match="str"):
        to_pixels("a.jpg", ImageOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["batch_size", "min_batch_size", "max_batch_size"])
@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_impossible_batch_sizes_are_refused(name, size):
    with pytest.raises(ImagebeamError, match=f"{name} is .*at least 1"):
        EmbeddingModelHandler(FakeModel(), **{name: size})
    if name != "batch_size":
        with pytest.raises(ImagebeamError, match=f"{name} is .*at least 1"):
            KerasImageEmbeddings(["image"], weights="random:0", **{name: size})


def test_a_least_batch_above_the_largest_is_refused():
    with pytest.raises(ImagebeamError, match=r"min_batch_size.*9.*max_batch_size.*8"):
        EmbeddingModelHandler(FakeModel(), min_batch_size=9, max_batch_size=8)
    with pytest.raises(ImagebeamError, match=r"min_batch_size.*64.*max_batch_size.*32"):
        KerasImageEmbeddings(["image"], weights="random:0", min_batch_size=64)
