"""Extract outputs made by hand: parts with pyarrow, a manifest, and a small embedder where one is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.formats import EmbeddingDtype, EmbeddingType
from transforms.core.spec import EmbedderSpec
from transforms.parts.schemas import embeddings_schema

SPEC = EmbedderSpec("ByHand", "0" * 64, image_size=(8, 8))


def write_output(
    folder: Path,
    vectors: np.ndarray,
    labels: Sequence[Any],
    *,
    rows_per_part: int = 100,
    row_group_size: int = 64,
    spec: EmbedderSpec = SPEC,
    images: Sequence[str] | None = None,
    embedding_type: EmbeddingType = EmbeddingType.FIXED_SIZE_LIST,
    embedding_dtype: EmbeddingDtype = EmbeddingDtype.FLOAT32,
    column: str = "embedding",
    keep: Mapping[str, tuple[pa.DataType, Sequence[Any]]] | None = None,
    finished: bool = True,
) -> str:
    """Write parts of `rows_per_part` rows, and the manifest if the run is to be a finished one.

    Args:
        images: a text for each row's image, equal for equal images; all different by default.
        keep: kept columns: name -> (type, values).
    """
    keep = keep or {}
    images = images if images is not None else [f"image {number}" for number in range(len(vectors))]
    schema = embeddings_schema(
        {column: vectors.shape[1]},
        embedding_type=embedding_type,
        embedding_dtype=embedding_dtype,
        keep_columns=tuple((name, kind) for name, (kind, _) in keep.items()),
    )
    parts = []
    (folder / "embeddings").mkdir(parents=True)
    for number, start in enumerate(range(0, max(1, len(vectors)), rows_per_part)):
        rows = slice(start, start + rows_per_part)
        value = schema.field(column).type.value_type
        columns = {
            "key": [f"key-{row}" for row in range(len(vectors))[rows]],
            "uri": [f"/images/{row}.png" for row in range(len(vectors))[rows]],
            "label": list(labels[rows]),
            "width": [8] * len(vectors[rows]),
            "height": [8] * len(vectors[rows]),
            "sha256": [hashlib.sha256(image.encode()).hexdigest() for image in images[rows]],
            **{name: pa.array(list(values[rows]), _plain(kind)).cast(kind) for name, (kind, values) in keep.items()},
            column: pa.array(list(vectors[rows].astype(value.to_pandas_dtype())), schema.field(column).type),
        }
        metadata = {b"imagebeam.fingerprint": spec.fingerprint.encode(), b"imagebeam.spec": spec.to_json().encode()}
        table = pa.table(columns, schema=schema).replace_schema_metadata(metadata)
        path = folder / "embeddings" / f"part-{number:016x}.parquet"
        pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True)
        parts.append({"path": f"embeddings/{path.name}", "rows": table.num_rows})
    if finished:
        (folder / "manifest.json").write_text(json.dumps({"parts": parts}))
    return str(folder)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries: pyarrow before 24 makes none of large_string from Python values."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def blobs(
    rows: int, classes: int = 3, dimension: int = 8, *, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, list[str]]:
    """Vectors in one cloud a class, and their labels as text."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(classes, dimension)) * 3
    numbers = random.integers(classes, size=rows)
    vectors = centers[numbers] + random.normal(size=(rows, dimension)) * spread
    return vectors.astype(np.float32), [f"class-{number}" for number in numbers]
