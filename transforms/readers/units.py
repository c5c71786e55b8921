"""Shards, slices and work units.

Nothing here does I/O, and nothing here knows of Keras or Beam.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from transforms.core.formats import InputFormat
from transforms.core.spec import canonical_json
from transforms.core.types import Failure, Unread
from transforms.storage.files import FileInfo, UriRange


class Content(Protocol):
    """The decompressed content of a shard."""

    def open(self) -> BinaryIO:
        """As a stream, whose offsets are those from the shard's start."""


class PlanItem:
    """What planning passes on: a part of a listing, a shard still to be cut, or a work unit."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Shard(PlanItem):
    """One input file.

    Attributes:
        file: where it lies.
        format: how it stores its records.
        root: folder of the input that it lies below; None where it was named itself.
    """

    file: FileInfo
    format: InputFormat
    root: str | None = None


@dataclass(frozen=True, slots=True)
class ListingPart(PlanItem):
    """A part of a long listing, still to be listed: those of the patterns' files that are within a range."""

    patterns: tuple[str, ...]
    input_format: InputFormat | None
    within: UriRange
    follow_links: bool = False


@dataclass(frozen=True, slots=True)
class RecordRef:
    """One record of a file list or a manifest: an image file of its own, not opened yet.

    Attributes:
        key: unique in the run.
        uri: where the encoded image lies.
        version: as `FileInfo.version`, None where the list did not say (manifests).
        size: bytes, likewise.
        label: None where unknown.
        extras: the kept columns that the list gives, as (name, value) pairs.
    """

    key: str
    uri: str
    version: str | None = None
    label: str | None = None
    extras: tuple[tuple[str, Any], ...] = ()
    size: int | None = None


@dataclass(frozen=True, slots=True)
class ShardGroup(PlanItem):
    """Small shards of one format that share work units, or manifests that share a space of keys; still to be cut."""

    shards: tuple[Shard, ...]

    @property
    def format(self) -> InputFormat:
        """Of all of them."""
        return self.shards[0].format


@dataclass(frozen=True, slots=True)
class ShardSlice:
    """Consecutive records of one shard.

    Attributes:
        shard: the shard.
        start: index of the first record in the shard.
        count: records; each ends as one row or one failure.
        offset: byte offset of the first record in the (decompressed) shard; 0 where the format needs none.
        errors: (index in the shard, "error_type: message") of records that planning found to be of no use.
        unread: set where the rest of the shard could not be read; the slice is then one record that stands for it.
        retryable: whether `unread` is the machine's fault.
        entry: index of the record at which reading has to begin to get to the first: of its row group, or of a
            compressed shard.
        goes_on: whether the slice that follows is read next, in the same process.
        content: what the compressed shard holds, from this slice on, where it is at hand; it is not sent anywhere.
    """

    shard: Shard
    start: int
    count: int
    offset: int = 0
    errors: tuple[tuple[int, str], ...] = ()
    unread: Unread | None = None
    retryable: bool = False
    entry: int = 0
    goes_on: bool = False
    content: Content | None = field(default=None, compare=False, repr=False)

    @property
    def end(self) -> int:
        """Index of the record behind the last."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Note(PlanItem):
    """What a run says of its input beside its records: what was left out, and where.

    Attributes:
        kind: what was left out, in the plural.
        uri: of the shard or folder; empty where several were listed.
        count: how many.
        names: the first few.
    """

    kind: str
    uri: str
    count: int
    names: tuple[str, ...] = ()


class WorkUnit(PlanItem, ABC):
    """A bounded slice of the input, read, embedded and committed as one part: a `ShardUnit` or a `ListUnit`."""

    __slots__ = ()

    @property
    @abstractmethod
    def count(self) -> int:
        """Records in the unit; each ends as one row or one failure."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What the unit covers, in canonical JSON terms, versions left out: its identity."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Changes whenever any input of the unit may have changed: a committed part of another version is stale."""

    @property
    @abstractmethod
    def format(self) -> InputFormat:
        """How the input is stored."""

    @property
    def file_versions(self) -> Mapping[str, str]:
        """Key -> version of the record's own file, where it has one and its version is known."""
        return {}

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of `inputs`: the same slice has the same part name in every run."""
        return _digest(canonical_json({"format": self.format, **self.inputs}))[:16]


@dataclass(frozen=True, slots=True)
class ShardUnit(WorkUnit):
    """Slices of shards of one format: one of a large shard, or those of several small ones."""

    slices: tuple[ShardSlice, ...]

    @property
    def format(self) -> InputFormat:
        """Of the shards."""
        return self.slices[0].shard.format

    @property
    def count(self) -> int:
        """Records of all slices."""
        return sum(one.count for one in self.slices)

    @property
    def inputs(self) -> dict[str, Any]:
        """The slice, or a digest of all of them."""
        first, last = self.slices[0], self.slices[-1]
        if len(self.slices) == 1:
            return {"uri": first.shard.file.uri, "start": first.start, "count": first.count}
        ranges = "\0".join(f"{one.shard.file.uri}\0{one.start}\0{one.count}" for one in self.slices)
        return {
            "first": first.shard.file.uri,
            "last": last.shard.file.uri,
            "count": self.count,
            "slices_sha256": _digest(ranges),
        }

    @property
    def version(self) -> str:
        """Of the shard, or of all of them."""
        if len(self.slices) == 1:
            return self.slices[0].shard.file.version
        return _digest("\0".join(one.shard.file.version for one in self.slices))[:16]


@dataclass(frozen=True, slots=True)
class UnitChain(PlanItem):
    """Units that are consecutive slices of one shard, which one worker reads in one go."""

    units: tuple[ShardUnit, ...]

    @property
    def count(self) -> int:
        """Records of all units."""
        return sum(unit.count for unit in self.units)


@dataclass(frozen=True, slots=True)
class ListUnit(WorkUnit):
    """A slice of a file list or of a manifest.

    Attributes:
        source: FILES or MANIFEST.
        refs: the records, and the failures of a manifest's rows that cannot be used.
        start: index of the first in its list.
    """

    source: InputFormat
    refs: tuple[RecordRef | Failure, ...]
    start: int = 0

    @property
    def format(self) -> InputFormat:
        """FILES or MANIFEST."""
        return self.source

    @property
    def count(self) -> int:
        """How many records."""
        return len(self.refs)

    @property
    def inputs(self) -> dict[str, Any]:
        """A digest of the keys."""
        keys = _digest("\0".join(ref.key for ref in self.refs))
        return {"first": self.refs[0].key, "last": self.refs[-1].key, "count": self.count, "keys_sha256": keys}

    @property
    def version(self) -> str:
        """A digest of all that the list says of the records."""
        return _digest("\0".join(map(_version, self.refs)))[:16]

    @property
    def file_versions(self) -> Mapping[str, str]:
        """Of the files that a listing gave."""
        return {ref.key: ref.version for ref in self.refs if isinstance(ref, RecordRef) and ref.version is not None}


def _version(ref: RecordRef | Failure) -> str:
    if isinstance(ref, Failure):
        return f"{ref.error_type}\0{ref.message}"
    return f"{ref.uri}\0{ref.version}\0{ref.label}\0{ref.extras!r}"


def _digest(text: str) -> str:
    """SHA-256 of text that may hold anything, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
