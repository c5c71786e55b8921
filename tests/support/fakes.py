"""A model that costs nothing: the mean of each colour channel. Tests can compute what it must give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from transforms.core.spec import EmbedderSpec

if TYPE_CHECKING:
    from transforms.embed.embed_units import ImageModel


@dataclass
class ChannelMeans:
    """Stands in for `transforms.models.embedder.Embedder`: float32 [3], the mean of red, green and blue."""

    spec: EmbedderSpec = field(default_factory=lambda: EmbedderSpec("ChannelMeans", "0" * 64, image_size=(8, 8)))
    dimensions: dict[str, int] = field(default_factory=lambda: {"embedding": 3})
    batches: list[tuple[int, ...]] = field(default_factory=list)

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert images.dtype == np.uint8
        self.batches.append(images.shape)
        return {"embedding": images.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)}


@dataclass
class FakeModel:
    """A `ModelSource` that gives `ChannelMeans`."""

    embedder: ImageModel = field(default_factory=ChannelMeans)

    @property
    def spec(self) -> EmbedderSpec:
        return self.embedder.spec

    @property
    def dimensions(self) -> dict[str, int]:
        return self.embedder.dimensions

    def load(self) -> ImageModel:
        return self.embedder
