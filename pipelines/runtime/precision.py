"""Whether a lower precision is worth it on this machine: a trial, since no flag of a processor tells."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from pipelines.common.console import say
from transforms.core.spec import Precision
from transforms.models.compiled import has_gpu
from transforms.models.embedder import Embedder, resolve

if TYPE_CHECKING:
    from transforms.models.config import EmbedderConfig

_BATCH = 4

_NATIVE = (224, 224)
"""Height and width of the images, where they keep their own sizes."""

_ROUNDS = 3


def warn_if_slower(config: EmbedderConfig, embedder: Embedder) -> None:
    """Say so where a model computes in less than float32 and is no faster for it, on this machine's CPU.

    On a GPU lower precisions are faster, and nothing is tried.

    Args:
        config: of the embedder.
        embedder: which it made.
    """
    if config.precision == Precision.FLOAT32 or has_gpu():
        return
    exact = resolve(dataclasses.replace(config, precision=Precision.FLOAT32))
    chosen, float32 = _rates(embedder, exact)
    if chosen < float32:
        say(
            f"WARNING: on this machine {config.precision} is slower than float32: {chosen:.1f} against {float32:.1f} "
            "images a second. Leave --precision out, unless other machines do the work."
        )


def _rates(*embedders: Embedder) -> list[float]:
    """Images a second of each, in turns, the best of a few: others may use the machine too."""
    import numpy as np

    height, width = embedders[0].spec.image_size or _NATIVE
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, height, width, 3), dtype=np.uint8)
    best = [float("inf")] * len(embedders)
    for embedder in embedders:
        embedder.embed(images)  # compiles
    for _ in range(_ROUNDS):
        for number, embedder in enumerate(embedders):
            started = time.perf_counter()
            embedder.embed(images)
            best[number] = min(best[number], time.perf_counter() - started)
    return [_BATCH / seconds for seconds in best]
