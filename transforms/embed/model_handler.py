"""Use the embedder in Beam's RunInference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from transforms.core.batching import batch_by_shape, positive
from transforms.core.errors import ImagebeamError
from transforms.embed.embed_units import ImageModel, ModelSource
from transforms.embed.model_sources import model_source
from transforms.runs.commit_units import METRICS_NAMESPACE

if TYPE_CHECKING:
    from transforms.models.config import EmbedderConfig
    from transforms.models.staged import StagedModel


class EmbeddingModelHandler(ModelHandler[np.ndarray, PredictionResult, ImageModel]):  # type: ignore[misc]
    """For Beam's `RunInference`: uint8 RGB images [height, width, 3] in, `PredictionResult` out.

        images | RunInference(imagebeam.EmbeddingModelHandler("gs://bucket/model"))

    `inference` of a result is {column: float32 [dimension]}, "embedding" for a model of one layer; `example` is the
    image, as with Beam's other handlers; `model_id` is the fingerprint of a staged model. Wrap it in
    `KeyedModelHandler` to keep keys, and drop `example` early where pixels would cross a shuffle.

    Images of one batch may differ in shape; each shape is one call of the model. `decode_image` makes such images of
    encoded bytes. Nothing is written and nothing is resumed here: for that see `EmbedImages`.

    Args:
        model: a folder that `stage_model` filled, or what it returned: workers must see the folder. Or an
            `EmbedderConfig`, whose weights each worker resolves itself.
        batch_size: images in a batch at most; `max_batch_size` under the name that the flags have.
        min_batch_size: images in a batch at least, where there are so many.
        max_batch_size: likewise at most; wins over `batch_size`.
        large_model: load one model for all processes of a worker, not one for each.
        model_copies: load so many for all processes of a worker.
        **settings: as for any `ModelHandler`: max_batch_duration_secs, env_vars, ...

    Raises:
        ImagebeamError: if the folder holds no model, for a model of another type, or for a batch size below 1 or a
            least one above the largest.
    """

    def __init__(
        self,
        model: EmbedderConfig | StagedModel | ModelSource | str,
        *,
        batch_size: int = 32,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        large_model: bool = False,
        model_copies: int | None = None,
        **settings: Any,
    ) -> None:
        size = positive("batch_size", batch_size)
        least = 1 if min_batch_size is None else positive("min_batch_size", min_batch_size)
        most = max(size, least) if max_batch_size is None else positive("max_batch_size", max_batch_size)
        if least > most:
            raise ImagebeamError(
                f"min_batch_size is at most max_batch_size. Received: min_batch_size={least}, max_batch_size={most}."
            )
        super().__init__(
            min_batch_size=least,
            max_batch_size=most,
            large_model=large_model,
            model_copies=model_copies,
            **settings,
        )
        self._model = model_source(model)

    def load_model(self) -> ImageModel:
        """Load the embedder; Beam calls it once a process, or once a worker where the model is shared."""
        return self._model.load()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Load another staged model from now on; Beam gives what `RunInference(model_metadata_pcoll=...)` names.

        Args:
            model_path: a folder that `stage_model` filled; None or "" for the model that is there.

        Raises:
            ImagebeamError: if the folder holds no model.
        """
        if model_path:
            self._model = model_source(model_path)

    def run_inference(
        self, batch: Sequence[np.ndarray], model: ImageModel, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Embed one batch, in its order.

        Args:
            batch: uint8 RGB images [height, width, 3].
            model: what `load_model` gave, or Beam's proxy of it.
            inference_args: handed to the Keras model's call, such as {"training": False}.

        Raises:
            TypeError: for an element that is no such image.
        """
        for image in batch:
            _check_image(image)
        embed: Any = model.embed  # Fakes and classifiers take no arguments.
        results: dict[int, PredictionResult] = {}
        spec = getattr(self._model, "spec", None)
        fingerprint = None if spec is None else spec.fingerprint
        for group in batch_by_shape(enumerate(batch), lambda item: item[1].shape, len(batch), 1 << 62):
            vectors = embed(np.stack([image for _, image in group]), **(inference_args or {}))
            for position, (index, image) in enumerate(group):
                inference = {column: matrix[position] for column, matrix in vectors.items()}
                results[index] = PredictionResult(image, inference, fingerprint)
        return [results[index] for index in range(len(batch))]

    def get_num_bytes(self, batch: Sequence[np.ndarray]) -> int:
        """Bytes of the batch's pixels; Beam would pickle them to count."""
        return sum(image.nbytes for image in batch)

    def get_metrics_namespace(self) -> str:
        """Where Beam's inference metrics are counted."""
        return METRICS_NAMESPACE


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(
            f"EmbeddingModelHandler takes uint8 RGB arrays [height, width, 3]. Received: {kind}. "
            "imagebeam.decode_image makes them of encoded bytes."
        )
