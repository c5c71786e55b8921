"""Use a `.keras` file as the backbone: described without Keras, built in Keras' safe mode."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from transforms import storage
from transforms.core.errors import ImagebeamError, first_line
from transforms.core.spec import EmbedderSpec, Preprocessing
from transforms.core.text import size_text
from transforms.models.architectures import ARCHITECTURES, Architecture, get_architecture
from transforms.models.keras_import import pinned_keras

if TYPE_CHECKING:
    import keras

EXTENSION = ".keras"

_OTHER_FILES = (".h5", ".hdf5", ".npz", ".onnx", ".pb", ".pt", ".pth", ".safetensors", ".tflite", ".zip")

_IDENTITY = "file:"
"""What a spec calls such a model: this, and the file's SHA-256."""


def is_own_model(name: str) -> bool:
    """Whether `--model` names a file, or a spec's `model` was one."""
    return name.endswith(EXTENSION) or name.startswith(_IDENTITY)


@dataclass(frozen=True)
class OwnModel:
    """What can be known of a `.keras` file without loading it; stands where an `Architecture` does.

    Attributes:
        name: as `--model` gave it.
        sha256: of the file.
        input_size: (height, width) in pixels; each None where the model takes any; both where the file does not say.
    """

    name: str
    sha256: str
    input_size: tuple[int | None, int | None]

    normalizes_after_pooling = False
    rescales_for_imagenet = False
    min_size = 1

    @property
    def identity(self) -> str:
        """What the spec calls the model: the same wherever the file lies."""
        return f"{_IDENTITY}{self.sha256}"

    @property
    def default_image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the model's input.

        Raises:
            ImagebeamError: if it takes any size.
        """
        height, width = self.input_size
        if height is None or width is None:
            raise ImagebeamError(
                f"{self.name} does not say at which size it takes images. Give --image_size HEIGHTxWIDTH, or native."
            )
        return height, width

    @property
    def takes_any_size(self) -> bool:
        """Whether the model's input has no fixed size."""
        return self.input_size == (None, None)

    def check_size(self, image_size: tuple[int, int] | None) -> None:
        """Refuse a size that the model's input does not take.

        Raises:
            ImagebeamError: naming the size it takes.
        """
        wanted = image_size or (None, None)
        for side, fixed in zip(wanted, self.input_size, strict=True):
            if fixed is not None and side != fixed:
                text = "x".join("any" if one is None else str(one) for one in self.input_size)
                raise ImagebeamError(
                    f"{self.name} takes images of {text}. Received: image_size={size_text(image_size)}. Leave "
                    "--image_size out, or give this size."
                )

    def build(self, image_size: tuple[int, int] | None, **_: Any) -> keras.Model:
        """The model with the weights of its file, whole: rebuilt from its layers, some of KerasHub's cannot be loaded.

        Args:
            image_size: (height, width) in pixels, or None for any size; used for a subclassed model, which has no
                input of its own.

        Raises:
            ImagebeamError: if Keras cannot load it without running code of the file's, it has no weights, or its
                input is no image.
        """
        with pinned_keras():
            import keras

            model = self._load(keras)
            if not model.built:
                raise ImagebeamError(
                    f"The model was saved before it was built: its file holds no weights. Received: model="
                    f"{self.name!r}. Call it on images once, and save it again."
                )
            height, width = image_size or (None, None)
            if not getattr(model, "inputs", None):  # subclassed: its layers are called by its own code
                images = keras.Input((height, width, 3), name="pixels")
                return keras.Model(images, model(images), name=model.name)
            inputs = model.inputs
            if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[-1] != 3:
                shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
                raise ImagebeamError(
                    f"A backbone takes one batch of RGB images [n, height, width, 3]. Received: {self.name}, with "
                    f"inputs {shapes}."
                )
            # A Sequential knows its input only once it is called.
            return keras.Model(inputs[0], model.outputs[0]) if isinstance(model, keras.Sequential) else model

    def _load(self, keras: Any) -> keras.Model:
        try:
            with storage.local_file(storage.absolute(self.name)) as path:
                return keras.saving.load_model(path, compile=False, safe_mode=True)
        except OSError as error:
            raise ImagebeamError(f"The model file cannot be read: {error}. Received: model={self.name!r}.") from error
        except Exception as error:  # Keras lets whatever a layer's constructor raises through.
            raise ImagebeamError(
                f"Keras cannot load the model in safe mode: {first_line(error)} Received: model={self.name!r}. Layers "
                "must be Keras' own or of an installed package such as keras-hub; Lambda layers and pickled code are "
                "not loaded."
            ) from error


def load_weights(model: keras.Model, weights: str) -> None:
    """Fill a model with what its `save_weights` wrote.

    Raises:
        ImagebeamError: if the file is missing, or of another model.
    """
    try:
        with storage.local_file(storage.absolute(weights)) as path, warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras warns, and goes on, where a file lacks some of the weights.
            model.load_weights(path)
    except (OSError, ValueError, KeyError, Warning) as error:
        raise ImagebeamError(
            f"The weights do not fit the model: {first_line(error)} Received: weights={weights!r}."
        ) from error


def call(model: keras.Model, pixels: Any) -> Any:
    """Call a model with its one input, in the structure that it takes: KerasHub's take {"images": pixels}."""
    import keras

    return model(keras.tree.pack_sequence_as(model.input, [pixels]))


def find_model(name: str) -> Architecture | OwnModel:
    """What is known of a model before it is built: one of `keras.applications`, or a file.

    Raises:
        ImagebeamError: for an unknown name, or a file that is missing or none of Keras'.
    """
    if is_own_model(name):
        return describe(name)
    suffix = PurePosixPath(name).suffix.lower()
    is_file = suffix in _OTHER_FILES or "/" in name or (name not in ARCHITECTURES and Path(name).exists())
    if not is_file:
        return get_architecture(name)
    remedy = "Weights alone go to --weights, beside --model with the architecture's name."
    if suffix in (".h5", ".hdf5"):
        remedy = f"Of a whole model keras.saving.load_model({name!r}).save('model{EXTENSION}') writes one. {remedy}"
    raise ImagebeamError(f"A model of one's own is a Keras 3 file, *{EXTENSION}. Received: model={name!r}. {remedy}")


def preprocess(spec: EmbedderSpec, pixels: Any) -> Any:
    """Preprocess float RGB pixels in 0..255 as the spec says."""
    if spec.preprocessing is None:
        return get_architecture(spec.model).preprocess(pixels)
    return _preprocess(pixels, spec.preprocessing)


def _preprocess(pixels: Any, mode: Preprocessing) -> Any:
    from keras.applications import imagenet_utils

    if mode == Preprocessing.NONE:
        return pixels
    if mode == Preprocessing.UNIT:
        return pixels / 255.0
    return imagenet_utils.preprocess_input(pixels, data_format="channels_last", mode=str(mode))


def describe(name: str) -> OwnModel:
    """Look at a `.keras` file: its digest, and the size of its input.

    Args:
        name: path or URL of the file; or what a spec calls it, of which nothing but the digest is known.

    Raises:
        ImagebeamError: if it is missing, or no Keras 3 file.
    """
    if name.startswith(_IDENTITY):
        return OwnModel(name, name.removeprefix(_IDENTITY), (None, None))
    try:
        uri = storage.absolute(name)
        with storage.local_file(uri) as path:
            status = path.stat()
            return _describe(name, str(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ImagebeamError(f"The model file cannot be read: {error}. Received: model={name!r}.") from error


@functools.lru_cache(16)
def _describe(name: str, path: str, size: int, modified: int) -> OwnModel:
    del size, modified  # Only to tell another version of the file.
    import hashlib

    config, version = _read_config(name, path)
    if not version.startswith("3"):
        raise ImagebeamError(
            f"Not a Keras 3 model file: Keras {version} wrote it. Received: model={name!r}. Of an architecture of "
            "keras.applications, give it to --weights. Else save the model as .h5 with that Keras, and in Keras 3 call "
            "keras.saving.load_model('x.h5').save('x.keras')."
        )
    _check_channels(name, config)
    with open(path, "rb") as file:
        return OwnModel(name, hashlib.file_digest(file, "sha256").hexdigest(), _input_size(config))


def _read_config(name: str, path: str) -> tuple[dict[str, Any], str]:
    """The configuration in a `.keras` file, and the version of Keras that wrote it; "3" where it does not say.

    Raises:
        ImagebeamError: if it is no such file, or damaged.
    """
    from transforms.models.weights.files import WeightsFileError, open_archive

    try:
        with open_archive(Path(path)) as archive:
            config = json.loads(archive.read("config.json"))
            about = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
        if not isinstance(config, dict) or not isinstance(about, dict):
            raise TypeError("its config.json describes no model")
    except (WeightsFileError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ImagebeamError(
            f"Not a Keras 3 model file: {error}. Received: model={name!r}. Save it with model.save('x.keras')."
        ) from error
    return config, str(about.get("keras_version", "3"))


def _check_channels(name: str, config: Any) -> None:
    """Refuse a model of images that are not RGB with the channels last, before it is loaded.

    Raises:
        ImagebeamError: naming the shape, and what turns RGB images into such.
    """
    found = [shape for shape in _shapes(config) if isinstance(shape, list) and len(shape) == 4]
    if not found or any(shape[-1] == 3 for shape in found):
        return
    shape = found[0]
    if shape[1] == 3:
        given = "keras.layers.Permute((3, 1, 2))(images)"
    else:
        given = "keras.ops.image.rgb_to_grayscale(images)" if shape[-1] == 1 else "..."
    raise ImagebeamError(
        f"A backbone takes RGB images [n, height, width, 3]. Received: {name}, which takes "
        f"[{', '.join('n' if side is None else str(side) for side in shape)}]. Save a model around it: images = "
        f"keras.Input((None, None, 3)); keras.Model(images, model({given}))."
    )


def _input_size(config: Any) -> tuple[int | None, int | None]:
    for shape in _shapes(config):
        if isinstance(shape, list) and len(shape) in (3, 4) and shape[-1] == 3:
            height, width = shape[-3:-1]
            return height, width
    return None, None


def _shapes(config: Any) -> Iterator[Any]:
    """The shapes that a model's configuration gives for its input, the likeliest first."""
    settings = _mapping(config.get("config"))
    layers = settings.get("layers")
    for layer in map(_mapping, layers if isinstance(layers, list) else ()):
        if layer.get("class_name") == "InputLayer":
            yield _mapping(layer.get("config")).get("batch_shape")
    yield settings.get("image_shape")  # KerasHub's backbones
    yield _mapping(config.get("build_config")).get("input_shape")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
