"""Distributed batch image embeddings: image shards in, Parquet out, on Apache Beam and Keras.

In a pipeline of your own, the same folder that `imagebeam extract` writes:

    import apache_beam as beam, imagebeam

    with beam.Pipeline() as pipeline:
        patterns = pipeline | beam.Create(["gs://bucket/shards/*.tar"])
        patterns | imagebeam.EmbedImages("gs://bucket/out", model="VGG16", weights="imagenet")

Images to a folder of Parquet:
    EmbedImages             patterns -> OUT/embeddings, failures and manifest; the URI of the manifest comes out
    ReadEmbeddings          OUT -> one dict for each row of OUT/embeddings
    PlanUnits, EmbedUnits   the steps of `EmbedImages`: patterns -> work units -> committed parts, one report each

The model:
    EmbedderConfig          a request: model, weights, layers, pooling, image size, precision
    EmbedderSpec            a resolved identity: what decides the numbers, with the weights' digest; `.fingerprint`
    build_embedder          EmbedderConfig -> keras.Model: uint8 images in, float32 vectors out
    stage_model             EmbedderConfig -> a folder that workers load the model from

Images to vectors, for pipelines that write them somewhere of their own:
    EmbedRecords            (key, encoded bytes) -> one dict a row, as for BigQuery, Iceberg or a vector store
    EmbeddingModelHandler   uint8 RGB arrays -> `PredictionResult`, in Beam's RunInference
    KerasImageEmbeddings    columns of images -> columns of vectors, in Beam's MLTransform
    providers.yaml          beside this file: `EmbedImages` and `ReadEmbeddings` for Beam YAML

Images:
    decode_image            encoded bytes -> `Image`: uint8 RGB pixels, resized as `ImageOptions` say
    ImageOptions            size, filter, aspect policy and limits

Errors:
    ImagebeamError          a mistake the user can mend: the message names the thing, the value and the remedy

`help(imagebeam.NAME)` explains each. A name is imported when it is first used: `import imagebeam` alone is cheap.

Stability: what this module lists is public. A minor version adds names, and keywords with defaults; it removes or
changes one only after a minor version in which its use gave a `DeprecationWarning`. The same holds for the columns of
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
    "ImageOptions": "transforms.images.decode",
    "ImagebeamError": "transforms.core.errors",
    "KerasImageEmbeddings": "transforms.embed.ml_transform",
    "PlanUnits": "transforms.inputs.plan_units",
    "ReadEmbeddings": "transforms.runs.read_embeddings",
    "build_embedder": "transforms.models.embedder",
    "decode_image": "transforms.images.decode",
    "stage_model": "transforms.models.staged",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
