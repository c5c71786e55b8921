"""`Embedder`: the Keras model of a spec, from uint8 RGB images to float32 vectors."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.core.errors import ImagebeamError, first_line, last_line
from transforms.core.field_types import typed
from transforms.core.spec import EmbedderSpec, Pooling, Precision, Preprocessing
from transforms.models.architectures import Architecture, get_architecture, nearest
from transforms.models.config import EmbedderConfig
from transforms.models.engines.compiled import CompiledModel
from transforms.models.graph_digest import graph_sha256
from transforms.models.keras_import import import_keras, pinned_keras
from transforms.models.keras_internals import is_channels_first, outputs_in, own_name_scopes
from transforms.models.own_model import OwnModel, call, load_weights, preprocess
from transforms.models.weights import load as weights_module

if TYPE_CHECKING:
    import keras


_SAME_IMAGE = 0.1
"""How far the vectors of one image may be apart, as a share of their length; bfloat16 rounds by less."""


class Embedder:
    """A loaded model and the spec it was built from; safe to call from several threads.

    Attributes:
        spec: what the numbers are a function of.
        model: Keras model, uint8 RGB [n, height, width, 3] in 0..255 -> float32 vectors [n, dimension]; a dict of
            them by column name where the spec has several layers.
        dimensions: embedding column name -> vector length.
    """

    def __init__(self, spec: EmbedderSpec, model: keras.Model) -> None:
        self.spec = spec
        self.model = model
        names = columns(spec.layers)
        shapes = {name: output.shape for name, output in zip(sorted(names), model.outputs, strict=True)}
        self.dimensions: dict[str, int] = {name: shapes[name][-1] for name in names}  # Keras sorts a dict's outputs
        self._call = CompiledModel(model, spec.precision)
        self._lock = threading.Lock()

    def embed(self, images: np.ndarray, **arguments: Any) -> dict[str, np.ndarray]:
        """Embed one batch.

        Args:
            images: uint8 [n, height, width, 3], RGB.
            **arguments: for the Keras model's call, such as training=False; without any, it is the compiled call.

        Returns:
            Column name -> float32 [n, dimension].
        """
        if not arguments:
            return self._call(images)
        import keras

        with self._lock, pinned_keras():  # Beam's harness threads share one embedder, and Keras' call is not re-entrant
            vectors = keras.tree.map_structure(keras.ops.convert_to_numpy, self.model(images, **arguments))
        return vectors if isinstance(vectors, dict) else {"embedding": vectors}

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in memory, in bytes."""
        return sum(
            math.prod(variable.shape) * np.dtype(_numpy_name(variable.dtype)).itemsize
            for variable in self.model.weights
        )


def columns(layers: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the embedding columns: one is "embedding", several are "embedding_<layer>".

    Letters, digits and underscores alone, different without regard to case: what every reader of Parquet takes.
    """
    if len(layers) <= 1:
        return ("embedding",)
    names: list[str] = []
    for layer in layers:
        plain = "embedding_" + re.sub(r"\W", "_", layer, flags=re.ASCII)
        taken = {name.casefold() for name in names}
        further = (f"{plain}_{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([plain], further) if name.casefold() not in taken))
    return tuple(names)


def refuse_int8(config: EmbedderConfig) -> None:
    """Refuse a request that Keras would answer with float32 vectors: an int8 model is more than its request says.

    Raises:
        ImagebeamError: for precision int8, with or without a calibration.
    """
    if config.precision == Precision.INT8:
        raise ImagebeamError(
            "Keras has no int8 models, and an int8 model is calibrated on images. Received: precision=int8. Make one "
            "with `imagebeam extract --precision int8 --output OUT` and give the folder OUT/model, or choose another "
            "precision."
        )


def resolve(config: EmbedderConfig) -> Embedder:
    """Load the weights and build the embedder; its spec carries the digests of weights and graph.

    Raises:
        ImagebeamError: for an unknown layer, weights that cannot be had or do not fit, or precision int8.
    """
    refuse_int8(config)
    backbone = load_backbone(config)
    return make_embedder(config, identify(config, backbone), backbone)


def make_embedder(config: EmbedderConfig, spec: EmbedderSpec, backbone: keras.Model) -> Embedder:
    """The embedder of a loaded backbone; with a model of one's own it is tried on two images.

    Args:
        config: what was asked for.
        spec: of the embedder, which may compute in another precision than `config` says.
        backbone: as `load_backbone` gives it.

    Raises:
        ImagebeamError: if the layers' output cannot be pooled, or the model does not embed each image for itself.
    """
    embedder = Embedder(spec, assemble(spec, backbone))
    if spec.preprocessing is not None and spec.image_size is not None:
        _check_each_for_itself(embedder, config.model)
    return embedder


def _check_each_for_itself(embedder: Embedder, name: str) -> None:
    """Refuse a model that cannot run, or gives an image another vector in company than alone.

    Raises:
        ImagebeamError: naming the model.
    """
    assert embedder.spec.image_size is not None
    height, width = embedder.spec.image_size
    pair = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    pair[1] //= 4  # or both would have the same statistics
    try:
        with own_name_scopes():
            alone, together = embedder.embed(pair[:1]), embedder.embed(pair)
    except Exception as error:  # whatever the model's layers and the backend raise
        raise ImagebeamError(
            f"The model does not run on batches of one and two images: {last_line(error).rstrip('.')}. Received: "
            f"model={name!r}. Save a model whose predict() takes both; its input is keras.Input((height, width, 3)), "
            "without a size of the batch."
        ) from error
    for column, vectors in alone.items():
        apart = np.linalg.norm(np.subtract(together[column][0], vectors[0]))
        if apart > _SAME_IMAGE * np.linalg.norm(vectors[0]):
            raise ImagebeamError(
                f"The model gives one image different vectors, alone and beside another. Received: model={name!r}. An "
                "operation in it takes the whole batch together (such as keras.ops.mean(x) without an axis) or is "
                "random. Save a model without it."
            )


def build_embedder(config: EmbedderConfig, *, input_tensor: Any = None) -> keras.Model:
    """The embedder as a plain Keras model, to save, serve or compose.

    Args:
        config: what to build.
        input_tensor: Keras tensor of RGB values in 0..255, [n, height, width, 3], uint8 or float, to read images
            from instead of an own uint8 input, for instance the output of augmentation layers.

    Returns:
        Keras model from images to float32 vectors [n, dimension], a dict of them where the spec has several layers.
        Preprocessing and pooling are inside it.

    Raises:
        ImagebeamError: for a layer that the model does not have, weights that cannot be had or do not fit, or
            precision int8, which Keras does not have; or for what is no config.
    """
    typed("config", config, EmbedderConfig)
    refuse_int8(config)
    backbone = load_backbone(config)
    return assemble(identify(config, backbone), backbone, input_tensor)


def needs_top(architecture: Architecture, layers: tuple[str, ...], image_size: tuple[int, int] | None) -> bool:
    """Whether a wanted layer belongs to the ImageNet classifier above the backbone (such as VGG16's fc1).

    Raises:
        ImagebeamError: for a layer that neither has, with the nearest names.
    """
    if not layers:
        return False
    names = _layer_names(architecture, image_size)
    unknown = [layer for layer in layers if layer not in names]
    if not unknown:
        return False
    full_size = (architecture.default_size, architecture.default_size)
    full_names = _layer_names(architecture, full_size, include_top=True)
    for layer in unknown:
        if layer not in full_names:
            raise ImagebeamError(
                f"{architecture.name} has no such layer. Received: layer={layer!r}. {nearest(layer, full_names)} "
                f"'imagebeam layers --model {architecture.name}' lists them all."
            )
    return True


def _layer_names(
    architecture: Architecture, image_size: tuple[int, int] | None, *, include_top: bool = False
) -> list[str]:
    import_keras()
    import keras

    with keras.StatelessScope(initialize_variables=False):  # names need no weights
        return [layer.name for layer in architecture.build(image_size, include_top=include_top).layers]


@contextlib.contextmanager
def _dtype_policy(precision: Precision) -> Iterator[None]:
    """Layers made inside compute in `precision`; keras.applications takes no dtype argument."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(str(precision))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def load_backbone(config: EmbedderConfig) -> keras.Model:
    """The float32 backbone with its weights: what `assemble` takes.

    Its output is a feature map, except where the architecture does its own pooling (ConvNeXt).

    Raises:
        ImagebeamError: for a layer that the model does not have, or weights that cannot be had or do not fit.
    """
    architecture, size = config.architecture, config.size
    if isinstance(architecture, OwnModel):
        return _load_own_model(config, architecture)
    include_top = needs_top(architecture, config.layers, size)
    return weights_module.load_backbone(
        architecture, config.weights, size, include_top=include_top, pooling=_own_pooling(config.spec(""))
    )


_ONE_OUTPUT = "Save a model that gives one of them (keras.Model(images, keras.tree.flatten(model(images))[0]))"


def _load_own_model(config: EmbedderConfig, model: OwnModel) -> keras.Model:
    import keras

    backbone = model.build(config.size)
    dtype = backbone.inputs[0].dtype
    if config.preprocessing != Preprocessing.NONE and not keras.backend.is_float_dtype(dtype):
        raise ImagebeamError(
            f"{model.name} takes {dtype}, which has no place for the fractions of its preprocessing. Received: "
            f"preprocessing={config.preprocessing}. Leave it out, or save a model that takes float32."
        )
    if not config.has_own_weights:
        load_weights(backbone, config.weights)
    names = [layer.name for layer in backbone.layers]
    for layer in config.layers:
        if layer not in names:
            raise ImagebeamError(
                f"{model.name} has no such layer. Received: layer={layer!r}. {nearest(layer, names)} "
                f"'imagebeam layers --model {model.name}' lists them all."
            )
    if not config.layers and len(backbone.outputs) > 1:
        remedy = f"{_ONE_OUTPUT}, or choose a layer by --layer; 'imagebeam layers --model {model.name}' lists them."
        raise ImagebeamError(f"{model.name} has {len(backbone.outputs)} outputs, and one is pooled. {remedy}")
    return backbone


def _own_pooling(spec: EmbedderSpec) -> str | None:
    """Keras' `pooling` argument where it is more than pooling the last feature map."""
    if spec.preprocessing is not None or spec.layers or spec.pooling == Pooling.FLATTEN:
        return None
    if not get_architecture(spec.model).normalizes_after_pooling:
        return None
    return str(spec.pooling)


def identify(config: EmbedderConfig, backbone: keras.Model) -> EmbedderSpec:
    """The spec of the embedder that `assemble` makes of this backbone: with the digests of its weights and graph."""
    return config.spec(weights_module.digest(backbone), _graph_digest(config, backbone))


def _graph_digest(config: EmbedderConfig, backbone: keras.Model) -> str:
    """Over preprocessing and backbone; layers and pooling have fields of their own in the spec."""
    import keras

    with pinned_keras():
        pixels = keras.Input((*(config.size or (None, None)), 3))
        return graph_sha256(keras.Model(pixels, call(backbone, preprocess(config.spec(""), pixels))))


def _in_precision(backbone: keras.Model, precision: Precision, own_pooling: str | None) -> keras.Model:
    """The same layers and weights, computing in `precision`.

    Where the backbone ends in vectors instead of a feature map (ConvNeXt's own pooling), pooling and what follows it
    stay in float32, as `_pool` does.
    """
    import keras

    if precision in (Precision.FLOAT32, Precision.INT8):  # An int8 model is made of the float32 one.
        return backbone

    copies: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # The dtype of an operation such as a cast is what it does.
            config.pop("dtype", None)  # The serialised layers name their policy; without it they take the one in force.
        if own_pooling is not None and len(layer.output.shape) == 2:
            config["dtype"] = "float32"
        copies.append((layer, layer.__class__.from_config(config)))
        return copies[-1][1]

    with _dtype_policy(precision):
        clone = keras.models.clone_model(backbone, clone_function=clone_layer, recursive=True)
    for layer, copy in copies:  # A clone may hold its layers in another order, and under other names.
        if isinstance(layer, keras.layers.Layer) and layer.weights:  # Operations such as a slice have none.
            copy.set_weights(layer.get_weights())
    weights_module.finalize(clone)
    return clone


def assemble(spec: EmbedderSpec, backbone: keras.Model, input_tensor: Any = None) -> keras.Model:
    """Input, preprocessing, the backbone up to the wanted layers, pooling: one functional model.

    At float32 it shares the backbone's layers, so that training the one trains the other.

    Args:
        spec: of the embedder.
        backbone: as `load_backbone` gives it.
        input_tensor: see `build_embedder`.
    """
    with pinned_keras():
        return _assemble(spec, backbone, input_tensor)


def _assemble(spec: EmbedderSpec, backbone: keras.Model, input_tensor: Any) -> keras.Model:
    import keras

    try:
        backbone = _in_precision(backbone, spec.precision, _own_pooling(spec))
    except Exception as error:  # whatever the model's layers and the backend raise
        if spec.preprocessing is None:
            raise
        raise ImagebeamError(
            f"The model cannot be rebuilt to compute in another precision: {first_line(error).rstrip('.')}. Received: "
            f"precision={spec.precision}. Use float32, or save the model in this precision."
        ) from error
    if spec.preprocessing is not None and not spec.layers:
        features = backbone
    else:
        wanted = [_layer_output(backbone, name) for name in spec.layers] or [backbone.output]
        features = keras.Model(backbone.input, wanted, name=backbone.name)

    height, width = spec.image_size or (None, None)
    images = keras.Input((height, width, 3), dtype="uint8", name="image") if input_tensor is None else input_tensor
    inputs = images if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
    maps = call(features, preprocess(spec, keras.ops.cast(images, "float32")))
    vectors = {
        column: _pool(feature_map, spec.pooling)
        for column, feature_map in zip(columns(spec.layers), keras.tree.flatten(maps), strict=True)
    }
    return keras.Model(inputs, vectors if len(vectors) > 1 else vectors["embedding"], name="embedder")


def _layer_output(backbone: keras.Model, name: str) -> Any:
    outputs, *others = outputs_in(backbone, name)
    if others:
        raise ImagebeamError(
            f"The model calls the layer {1 + len(others)} times, and a name does not tell which output is meant. "
            f"Received: layer={name!r}. Choose a layer behind it, or save a model that ends where you want it."
        )
    if len(outputs) > 1:
        raise ImagebeamError(
            f"The layer gives {len(outputs)} outputs, and one is pooled. Received: layer={name!r}. Choose a layer "
            f"behind it. If there is none: {_ONE_OUTPUT}."
        )
    return outputs[0]


def _pool(feature_map: Any, pooling: Pooling) -> Any:
    """Feature map [n, height, width, channels] or tokens [n, m, channels] -> float32 [n, dimension].

    Vectors pass as they are. Where a layer's data format says so, the channels are the second axis.

    Pooling computes in float32 whatever the backbone computes in: a mean over thousands of bfloat16 values in
    bfloat16 would lose most of its digits.
    """
    import keras

    rank = len(feature_map.shape)
    if rank not in (2, 3, 4) or 0 in feature_map.shape:
        raise ImagebeamError(
            "Only layers with a feature map, a row of tokens or a vector can be pooled. Received: output shape "
            f"{feature_map.shape}. Choose another layer with --layer."
        )
    places_last = rank > 2 and is_channels_first(feature_map)
    if feature_map.shape[1 if places_last else -1] is None:
        raise ImagebeamError(
            "The length of the vectors depends on the size of the image or of the batch. Received: output shape "
            f"{feature_map.shape}. Give a fixed image_size, choose another layer, or save the model without a size of "
            "the batch."
        )
    if not keras.backend.is_float_dtype(feature_map.dtype):
        feature_map = keras.ops.cast(feature_map, "float32")
    if rank == 2:
        return keras.layers.Activation("linear", dtype="float32")(feature_map)
    average, maximum = (
        (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalMaxPooling1D)
        if rank == 3
        else (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
    )
    layer = {Pooling.AVG: average, Pooling.MAX: maximum, Pooling.FLATTEN: keras.layers.Flatten}[pooling]
    data_format = "channels_first" if places_last else "channels_last"
    return layer(data_format=data_format, dtype="float32")(feature_map)


def _numpy_name(dtype: str) -> str:
    """NumPy has no bfloat16; float16 is as wide."""
    return "float16" if dtype == "bfloat16" else dtype
