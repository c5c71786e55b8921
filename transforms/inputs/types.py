"""What planning passes on: shards, parts of a listing, work units; and how records are read.

Nothing here does I/O, and nothing here knows of Keras or Beam.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from transforms.core.formats import InputFormat
from transforms.core.spec import canonical_json
from transforms.storage.files import FileInfo, UriRange


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
class ReadOptions:
    """How records are read from shards: the names of the columns (TFRecord features, tar extensions)."""

    image_column: str = "image"
    label_column: str = "label"
    keep_columns: tuple[tuple[str, pa.DataType], ...] = ()
