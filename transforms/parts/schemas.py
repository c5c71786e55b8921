"""The Arrow schemas of parts and of failures."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from transforms.core.formats import EmbeddingDtype, EmbeddingType

PREDICTION_COLUMNS = ("predicted", "probability", "top_labels", "top_probabilities")
"""Columns of a part of predictions beside those that a part of embeddings has."""

FAILURES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error_type", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("retryable", pa.bool_(), nullable=False),
    ]
)


def embeddings_schema(
    dimensions: Mapping[str, int],
    *,
    embedding_type: EmbeddingType = EmbeddingType.FIXED_SIZE_LIST,
    embedding_dtype: EmbeddingDtype = EmbeddingDtype.FLOAT32,
    keep_columns: tuple[tuple[str, pa.DataType], ...] = (),
) -> pa.Schema:
    """Schema of a part.

    Args:
        dimensions: embedding column name -> vector length.
        embedding_type: Arrow type of the embedding columns.
        embedding_dtype: what their values are stored as.
        keep_columns: kept input columns with their types.
    """
    kind = pa.float16() if embedding_dtype == EmbeddingDtype.FLOAT16 else pa.float32()
    value = pa.field("element", kind, nullable=False)
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
    fields += [pa.field(name, kind) for name, kind in keep_columns]
    for name, size in dimensions.items():
        kind = pa.list_(value, size) if embedding_type == EmbeddingType.FIXED_SIZE_LIST else pa.list_(value)
        fields.append(pa.field(name, kind, nullable=False))
    return pa.schema(fields)
