"""Distributed batch image embeddings: image shards in, Parquet out, on Apache Beam and Keras.

In a pipeline of your own, the same folder that `imagebeam extract` writes, and its rows:

    import apache_beam as beam
    import imagebeam

    with beam.Pipeline() as pipeline:
        patterns = pipeline | beam.Create(["gs://bucket/shards/*.tar"])
        patterns | imagebeam.EmbedImages("gs://bucket/out", model="VGG16", weights="imagenet")

    with beam.Pipeline() as pipeline:
        rows = pipeline | imagebeam.ReadEmbeddings("gs://bucket/out", columns=["key", "label", "embedding"])
        rows | beam.Map(print)

Images to a folder of Parquet:
    EmbedImages            patterns -> OUT/embeddings, failures and manifest; gives the URI of the manifest
    ReadEmbeddings         OUT -> one dict for each row of OUT/embeddings
    PlanUnits, EmbedUnits  the steps of `EmbedImages`: patterns -> work units -> committed parts, one report each
Images to vectors that your pipeline writes itself:
    EmbedRecords           (key, encoded bytes) -> one dict a row, as for BigQuery, Iceberg or a vector store
    EmbeddingModelHandler  uint8 RGB arrays -> `PredictionResult`, in Beam's RunInference
    KerasImageEmbeddings   columns of images -> columns of vectors, in Beam's MLTransform
    providers.yaml         a file in this folder: `EmbedImages` and `ReadEmbeddings` for Beam YAML
Models:
    EmbedderConfig         a request: model, weights, layers, pooling, image size, precision
    EmbedderSpec           what decides the vectors, with the digest of the weights; `.fingerprint`
    build_embedder         EmbedderConfig -> keras.Model: uint8 images in, float32 vectors out
    stage_model            EmbedderConfig -> a folder that workers load the model from
Images and errors:
    decode_image           encoded bytes -> `Image`: uint8 RGB pixels, resized by `ImageOptions`
    ImageOptions           size, filter, aspect policy and limits
    ImageError             why bytes give no image: `error_type`, as in OUT/failures, and a message
    ImagebeamError         a mistake that the user can correct: names the thing, the value and the remedy

`help(imagebeam.NAME)` explains each. `import imagebeam` alone is cheap: a name is imported when it is first used.

Stability: what this module lists is public. A minor version adds names, and keywords with defaults; it removes or
changes one only after a minor version in which using it gave a `DeprecationWarning`. The same holds for the columns of
OUT/embeddings and OUT/failures. An equal fingerprint means comparable vectors in every version. The packages
`transforms` and `pipelines` are the implementation, and change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.runtime.embed_images import EmbedImages as EmbedImages
    from transforms.core.errors import ImagebeamError as ImagebeamError
    from transforms.core.spec import EmbedderSpec as EmbedderSpec
    from transforms.embed.embed_records import EmbedRecords as EmbedRecords
    from transforms.embed.embed_units import EmbedUnits as EmbedUnits
    from transforms.embed.ml_transform import KerasImageEmbeddings as KerasImageEmbeddings
    from transforms.embed.model_handler import EmbeddingModelHandler as EmbeddingModelHandler
    from transforms.images.decode import ImageOptions as ImageOptions
    from transforms.images.decode import decode_image as decode_image
    from transforms.images.errors import ImageError as ImageError
    from transforms.inputs.plan_units import PlanUnits as PlanUnits
    from transforms.models.config import EmbedderConfig as EmbedderConfig
    from transforms.models.embedder import build_embedder as build_embedder
    from transforms.models.staged import stage_model as stage_model
    from transforms.runs.read_embeddings import ReadEmbeddings as ReadEmbeddings

_MODULES = {
    "EmbedImages": "pipelines.runtime.embed_images",
    "EmbedRecords": "transforms.embed.embed_records",
    "EmbedUnits": "transforms.embed.embed_units",
    "EmbedderConfig": "transforms.models.config",
    "EmbedderSpec": "transforms.core.spec",
    "EmbeddingModelHandler": "transforms.embed.model_handler",
    "ImageError": "transforms.images.errors",
    "ImageOptions": "transforms.images.decode",
    "ImagebeamError": "transforms.core.errors",
    "KerasImageEmbeddings": "transforms.embed.ml_transform",
    "PlanUnits": "transforms.inputs.plan_units",
    "ReadEmbeddings": "transforms.runs.read_embeddings",
    "build_embedder": "transforms.models.embedder",
    "decode_image": "transforms.images.decode",
    "stage_model": "transforms.models.staged",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The public names. With `__all__`, help() would add 2,000 lines of members inherited from Beam's classes."""
    return sorted(_MODULES)
