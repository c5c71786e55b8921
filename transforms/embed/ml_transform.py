"""Use the embedder in Beam's MLTransform."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import PIL.Image
from apache_beam.ml.inference.base import RunInference
from apache_beam.ml.transforms.base import EmbeddingsManager, _ImageEmbeddingHandler
from PIL import ExifTags

from transforms.core.errors import ImagebeamError
from transforms.core.field_types import plain, typed
from transforms.embed.embed_units import ImageModel
from transforms.embed.model_handler import EmbeddingModelHandler
from transforms.embed.model_sources import image_options, spec_of
from transforms.images.decode import ImageOptions, decode_image
from transforms.images.orientation import turn_upright
from transforms.models.config import EmbedderConfig
from transforms.models.staged import StagedModel, read_staged


class KerasImageEmbeddings(EmbeddingsManager):  # type: ignore[misc]
    """Embed image columns in Beam's `MLTransform`.

        rows | MLTransform(write_artifact_location=folder).with_transform(
            imagebeam.KerasImageEmbeddings(columns=["image"], model="VGG16", weights="imagenet"))

    A column holds encoded bytes, PIL images, or uint8 RGB arrays [height, width, 3]; it becomes the vector, a list of
    floats. Images are decoded and resized as everywhere in Imagebeam.

    Args:
        columns: of the rows (dicts or `beam.Row`), each with one image.
        staged: a folder that `stage_model` filled, which workers must see; its model is used. Without it each worker
            resolves the weights itself.
        min_batch_size: rows in a batch at least, where there are so many.
        max_batch_size: rows in a batch at most.
        large_model: load one model for all processes of a worker.
        inference_args: handed to the Keras model's call.
        **config: the fields of `EmbedderConfig`, where no folder is given: model, weights, image_size, ...

    Raises:
        ImagebeamError: for a bad field, a model of several layers, a folder without a model, or batch sizes that
            cannot be.
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        staged: str | None = None,
        min_batch_size: int | None = None,
        max_batch_size: int | None = 32,
        large_model: bool = False,
        inference_args: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        typed("staged", staged, str | None)
        if not (names := typed("columns", columns, tuple[str, ...])):
            raise ImagebeamError(f"columns names those with images. Received: {columns!r}.")
        super().__init__(
            columns=list(names),
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            large_model=large_model,
            inference_args=dict(inference_args or {}),
        )
        if staged is not None and config:
            raise ImagebeamError(f"A staged model says all of itself. Received: staged, and {', '.join(config)}.")
        known = {field.name for field in dataclasses.fields(EmbedderConfig)}
        if unknown := sorted(set(config) - known):
            raise ImagebeamError(f"EmbedderConfig has no {unknown[0]!r}. It has {', '.join(sorted(known))}.")
        # Plain values: MLTransform writes them as JSON, and reads them in another process.
        self.staged = staged
        self.config: dict[str, Any] = {
            name: list(map(plain, value)) if isinstance(value, tuple) else plain(value)
            for name, value in config.items()
        }
        layers = self._model().spec.layers if staged else EmbedderConfig(**config).layers
        if len(layers) > 1:
            raise ImagebeamError(f"A column becomes one vector. Received: layers={', '.join(layers)}. Give one layer.")
        self.get_model_handler()

    def _model(self) -> Any:
        if self.staged is None:
            return EmbedderConfig(**self.config)
        if (staged := read_staged(self.staged)) is None:
            raise ImagebeamError(f"There is no staged model. Received: {self.staged!r}.")
        return staged

    def get_model_handler(self) -> EmbeddingModelHandler:
        """The handler that embeds the values of a column."""
        return _ColumnHandler(
            self._model(),
            min_batch_size=self.min_batch_size,
            max_batch_size=self.max_batch_size,
            large_model=self.large_model,
        )

    def get_ptransform_for_processing(self, **_: Any) -> beam.PTransform:
        """What MLTransform applies."""
        return RunInference(model_handler=_RowHandler(self), inference_args=self.inference_args)


class _RowHandler(_ImageEmbeddingHandler):  # type: ignore[misc]
    """Beam's handler of rows, with what it does not ask the handler of a column."""

    def share_model_across_processes(self) -> bool:
        return bool(self._underlying.share_model_across_processes())

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return int(self._underlying.get_num_bytes(batch))


class _ColumnHandler(EmbeddingModelHandler):
    """Images of any kind in, lists of floats out."""

    def __init__(self, model: EmbedderConfig | StagedModel, **settings: Any) -> None:
        super().__init__(model, **settings)
        self._images = image_options(spec_of(model))

    def run_inference(
        self, batch: Sequence[Any], model: ImageModel, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[list[float]]:
        pixels = [to_pixels(image, self._images) for image in batch]
        return [
            result.inference["embedding"].tolist() for result in super().run_inference(pixels, model, inference_args)
        ]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return sum(_size(value) for row in batch for value in _values(row))


def _values(row: Any) -> Iterable[Any]:
    return row._asdict().values() if hasattr(row, "_asdict") else row.values() if isinstance(row, dict) else [row]


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, PIL.Image.Image):
        return value.width * value.height * 3
    return int(getattr(value, "nbytes", 8))


def to_pixels(image: bytes | PIL.Image.Image | np.ndarray, options: ImageOptions) -> np.ndarray:
    """Convert an image to uint8 RGB [height, width, 3] of the requested size.

    Raises:
        ImageError: for bytes that cannot be decoded.
        TypeError: for anything that is no image, or a PIL image of floats.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(f"An array is uint8 RGB [height, width, 3]. Received: {image.dtype} {image.shape}.")
        if options.image_size is None or image.shape[:2] == options.image_size:
            return image
        image = PIL.Image.fromarray(image)
    if isinstance(image, PIL.Image.Image):
        encoded = io.BytesIO()
        # So that transparency, palettes and sizes follow one policy.
        turn_upright(_as_png_has_it(image), _orientation(image)).save(encoded, "PNG", compress_level=0)
        image = encoded.getvalue()
    if not isinstance(image, bytes):
        raise TypeError(f"An image is bytes, a PIL image or an array. Received: {type(image).__name__}.")
    return decode_image(image, options).pixels


_PNG_MODES = ("1", "I;16", "I;16B", "L", "LA", "P", "RGB", "RGBA")
_NEAREST_MODES = {
    "CMYK": "RGB",
    "HSV": "RGB",
    "I": "I;16",
    "LAB": "RGB",
    "La": "LA",
    "PA": "RGBA",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "YCbCr": "RGB",
}
"""Pillow's modes that PNG does not have -> what they are converted to."""


def _as_png_has_it(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in _NEAREST_MODES:
        return image.convert(_NEAREST_MODES[image.mode])
    if image.mode not in _PNG_MODES:
        raise TypeError(f"A PIL image of mode {image.mode} is no picture of 8 or 16 bits. Convert it to RGB.")
    return image


def _orientation(image: PIL.Image.Image) -> int:
    """What the EXIF of an image that Pillow opened says; `PIL.ImageOps.exif_transpose` applies it and removes it."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's reader raises a dozen kinds for damaged EXIF.
        return 1
