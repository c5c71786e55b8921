"""Sources of the model for workers: a staged folder, or a request that each worker resolves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.core.errors import ImagebeamError
from transforms.core.limits import MAX_IMAGE_PIXELS
from transforms.core.spec import EmbedderSpec
from transforms.images.decode import ImageOptions
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, refuse_int8, resolve
from transforms.models.own_model import find_model
from transforms.models.staged import StagedModel, read_staged

if TYPE_CHECKING:
    from transforms.embed.embed_units import ModelSource


@dataclass(frozen=True)
class ConfiguredModel:
    """A `ModelSource` that builds the embedder where it is loaded; the weights must be in reach of every worker."""

    config: EmbedderConfig

    def __post_init__(self) -> None:
        refuse_int8(self.config)
        if self.config.weights == "none":
            raise ImagebeamError(
                "Every worker would draw other weights. Received: weights='none'. Use weights='random:0', or "
                "stage_model."
            )

    def load(self) -> Embedder:
        """Resolve the weights, and build."""
        return resolve(self.config)


def model_source(model: EmbedderConfig | StagedModel | ModelSource | str) -> ModelSource:
    """What workers load.

    Args:
        model: a request, which each worker resolves itself; what `stage_model` gave; or the folder it was given.

    Raises:
        ImagebeamError: if the folder holds no model, or for a request of weights "none" or of precision int8, or for
            anything else.
    """
    if isinstance(model, EmbedderConfig):
        return ConfiguredModel(model)
    if not isinstance(model, str):
        if not callable(getattr(model, "load", None)):
            raise ImagebeamError(
                "model is an EmbedderConfig, what stage_model returned, or the folder that it was given, as a str. "
                f"Received: {model!r}."
            )
        return model
    if (staged := read_staged(model)) is None:
        raise ImagebeamError(f"There is no staged model. Received: {model!r}. Make one with imagebeam.stage_model.")
    return staged


def image_options(
    spec: EmbedderSpec, max_image_pixels: int = MAX_IMAGE_PIXELS, *, accept_truncated: bool = False
) -> ImageOptions:
    """How images are decoded for an embedder of `spec`."""
    smallest = find_model(spec.model).min_size
    return ImageOptions.from_spec(
        spec,
        max_image_pixels=max_image_pixels,
        min_size=(smallest, smallest),
        accept_truncated=accept_truncated,
    )


def spec_of(model: EmbedderConfig | StagedModel) -> EmbedderSpec:
    """What is known of a model's spec; the weights of a request are not resolved yet."""
    return model.spec if isinstance(model, StagedModel) else model.spec("")
