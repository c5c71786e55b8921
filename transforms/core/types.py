"""The frozen records that flow between stages, and the Arrow schemas of what is written.

Names follow the vocabulary of ``docs/design.md``: shard, record, work unit, image, batch, embedding, part, failure.
Nothing here does I/O, and nothing here knows of Keras or Beam.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.core.errors import ImagebeamError as ImagebeamError
from transforms.core.formats import EmbeddingDtype, EmbeddingType
from transforms.core.formats import InputFormat as InputFormat
from transforms.core.spec import canonical_json as canonical_json


class Stage(enum.StrEnum):
    """Where a record failed."""

    READ = "read"
    DECODE = "decode"
    EMBED = "embed"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One stored file as it was when listed.

    Attributes:
        uri: absolute local path, or a URL such as ``gs://bucket/name``.
        size: bytes.
        version: changes whenever the content may have changed: an object generation on gs://, size and
            modification time elsewhere.
    """

    uri: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class UriRange:
    """Uris from `start` on and before `end`, in lexicographic order; without an end where it is None."""

    start: str = ""
    end: str | None = None

    def __contains__(self, uri: str) -> bool:
        return self.start <= uri and (self.end is None or uri < self.end)

    def overlaps(self, folder: str) -> bool:
        """Whether uris below `folder` (with its trailing slash) may be within."""
        return (self.start <= folder or self.start.startswith(folder)) and (self.end is None or folder < self.end)


EVERYWHERE = UriRange()


class PlanItem:
    """What planning passes on: a part of a listing, a shard still to be cut, or a work unit."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Shard(PlanItem):
    """One input file that holds many records."""

    file: FileInfo
    format: InputFormat


@dataclass(frozen=True, slots=True)
class ListingPart(PlanItem):
    """A part of a long listing, still to be listed: those of the patterns' files that are within a range."""

    patterns: tuple[str, ...]
    input_format: InputFormat | None
    within: UriRange


@dataclass(frozen=True, slots=True)
class RecordRef:
    """One record of a file list or a manifest: an image file of its own, not opened yet.

    Attributes:
        key: unique in the run.
        uri: where the encoded image lies.
        version: as `FileInfo.version`, None where the list did not say (manifests).
        label: None where unknown.
        extras: the kept columns that the list gives, as (name, value) pairs.
    """

    key: str
    uri: str
    version: str | None = None
    label: str | None = None
    extras: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkUnit(PlanItem):
    """A bounded slice of the input, read, embedded and committed as one part.

    Either a record range of one shard (`shard` is set) or a slice of a file list (`refs` is set).

    Attributes:
        format: of the shard, or FILES / MANIFEST for a slice of a list.
        count: records in the unit; each ends as one row or one failure.
        shard: the shard, or None for a slice of a list.
        start: index of the unit's first record in its shard or list.
        offset: byte offset of that record in the (decompressed) shard; 0 where the format needs none.
        refs: the records of a slice of a list.
        error: set where the rest of a shard could not be read when planning; the unit is then that one failure.
    """

    format: InputFormat
    count: int
    shard: Shard | None = None
    start: int = 0
    offset: int = 0
    refs: tuple[RecordRef, ...] = ()
    error: str | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """What the unit covers, in canonical JSON terms, versions left out: its identity."""
        if self.shard is not None:
            return {"uri": self.shard.file.uri, "start": self.start, "count": self.count}
        keys = hashlib.sha256("\0".join(ref.key for ref in self.refs).encode()).hexdigest()
        return {"first": self.refs[0].key, "last": self.refs[-1].key, "count": self.count, "keys_sha256": keys}

    @property
    def version(self) -> str:
        """Changes whenever any input of the unit may have changed: a committed part of another version is stale."""
        if self.shard is not None:
            return self.shard.file.version
        versions = "\0".join(f"{ref.uri}\0{ref.version}\0{ref.label}\0{ref.extras!r}" for ref in self.refs)
        return hashlib.sha256(versions.encode()).hexdigest()[:16]

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of `inputs`: the same slice has the same part name in every run."""
        return hashlib.sha256(canonical_json({"format": self.format, **self.inputs}).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Record:
    """One encoded image with its key, label and kept columns."""

    key: str
    uri: str
    data: bytes
    label: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One record that could not become an embedding, and why. `sha256` is of the encoded bytes where they were read."""

    key: str
    uri: str
    stage: Stage
    error_type: str
    message: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image.

    Attributes:
        pixels: uint8 RGB array [height, width, 3], resized as the spec says.
        width: as stored in the file, in pixels, before orientation and resizing.
        height: likewise.
        icc_profile_ignored: whether the file carried an ICC colour profile, which is not applied.
    """

    pixels: np.ndarray
    width: int
    height: int
    icc_profile_ignored: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One embedded record, its bytes and pixels let go: what a part's row holds.

    Attributes:
        width: as stored in the file, in pixels.
        height: likewise.
        sha256: of the encoded bytes, 64 hex digits.
        vectors: embedding column name -> float32 [dimension].
    """

    key: str
    uri: str
    label: str | None
    width: int
    height: int
    sha256: str
    vectors: Mapping[str, np.ndarray]
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records are read from shards: the names of the columns (TFRecord features, tar extensions)."""

    image_column: str = "image"
    label_column: str = "label"
    keep_columns: tuple[tuple[str, pa.DataType], ...] = ()


FAILURES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error_type", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
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
    value = pa.float16() if embedding_dtype == EmbeddingDtype.FLOAT16 else pa.float32()
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
