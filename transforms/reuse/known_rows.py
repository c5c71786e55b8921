"""Look up vectors in committed parts by an image's digest or its file's version.

Only the vector is taken over, with what the image itself says (its size and digest): key, uri, label and kept columns
are the new record's. Nothing is taken from a part of another spec or layout, nor from one whose images were read under
looser rules. What is read of a part is checked against its page checksums; of a part that is damaged nothing is taken.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.limits import MAX_RECORD_BYTES
from transforms.core.types import Row
from transforms.images.decode import ImageOptions
from transforms.parts.part_files import FINGERPRINT_KEY, UNIT_KEY
from transforms.parts.row_notes import NOTES_KEY, decode_notes, has_icc_profile, is_version

COLUMNS = ["uri", "width", "height", "sha256"]
"""Of a part, beside its vectors, that taking a row over needs."""

_CACHE_BYTES = 256 << 20
"""Of the parts that a process keeps for its next units."""

_RECENT_BYTES = 64 << 20
"""Of the rows that a process has made last: 28,000 with 512 floats."""

_ROW_BYTES = 400
"""Of a row, beside its vectors."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownRow:
    """What is taken over.

    Attributes:
        width: of the image as stored, in pixels.
        height: likewise.
        sha256: of the encoded bytes, 64 hex digits.
        vectors: embedding column name -> [dimension], float32, or float16 where parts hold that.
        icc_profile_ignored: whether the image carried an ICC profile, which was not applied.
        is_recent: whether this process made it, a moment ago.
    """

    width: int
    height: int
    sha256: str
    vectors: Mapping[str, np.ndarray]
    icc_profile_ignored: bool = False
    is_recent: bool = False


class KnownRows(Protocol):
    """Where rows are looked for; decode threads ask at once."""

    def by_digest(self, sha256: str) -> KnownRow | None:
        """A row of an image with these bytes."""

    def by_file(self, uri: str, version: str) -> KnownRow | None:
        """A row of this version of a file."""


class NothingKnown:
    """Knows no row."""

    def by_digest(self, sha256: str) -> KnownRow | None:
        """None."""
        del sha256
        return None

    def by_file(self, uri: str, version: str) -> KnownRow | None:
        """None."""
        del uri, version
        return None


@dataclass(frozen=True)
class Conditions:
    """The options beside the spec that decide which images become rows. Stored in the footers of parts.

    Attributes:
        max_image_pixels: images of more pixels are failures.
        accept_truncated: whether a JPEG whose data stops early is a row.
        max_record_bytes: records of more bytes are failures. A row that was made from one stays when this is lowered:
            the limit is for what a machine can hold, and is no rule for images.
    """

    max_image_pixels: int
    accept_truncated: bool
    max_record_bytes: int = MAX_RECORD_BYTES

    def to_dict(self) -> dict[str, Any]:
        """In JSON terms."""
        return dataclasses.asdict(self)

    def allow(self, found: Mapping[str, Any] | None) -> bool:
        """Whether each row made under the conditions `found`, in JSON terms, would be one under these too."""
        return not self.describe(found)

    def rule_out(self, found: Mapping[str, Any] | None) -> bool:
        """Whether a part under the conditions `found` may hold a row that would be none under these.

        A part of an earlier version, which does not say its conditions, is taken for one that holds none.
        """
        return found is not None and not self.allow(found)

    def readmit(self, found: Mapping[str, Any] | None, failures: Mapping[str, int]) -> bool:
        """Whether some `failures`, by "stage/error_type", under the conditions `found` may be rows under these."""
        if found is None:
            return False
        laxer = {
            "decode/too_many_pixels": self.max_image_pixels > found["max_image_pixels"],
            "decode/truncated": self.accept_truncated and not found["accept_truncated"],
            "read/too_large": self.max_record_bytes > found.get("max_record_bytes", self.max_record_bytes),
        }
        return any(failures.get(kind) for kind, is_laxer in laxer.items() if is_laxer)

    @classmethod
    def of(cls, images: ImageOptions, max_record_bytes: int = MAX_RECORD_BYTES) -> Conditions:
        """Those of an image policy, and of a record's size."""
        return cls(images.max_image_pixels, images.accept_truncated, max_record_bytes)

    def describe(self, found: Mapping[str, Any] | None) -> str:
        """What is looser in the conditions `found`, in JSON terms, than in these; empty where they `allow` them."""
        if found is None:
            return "its version did not say how images were read"
        looser = []
        if found["max_image_pixels"] > self.max_image_pixels:
            looser.append(f"max_image_pixels: {found['max_image_pixels']} > {self.max_image_pixels}")
        if found["accept_truncated"] and not self.accept_truncated:
            looser.append("truncated_images: accept != refuse")
        return "; ".join(looser)


@dataclass(frozen=True)
class Terms:
    """What a part must be, so that rows may be taken from it.

    Attributes:
        fingerprint: of its spec.
        generation: of its run.
        conditions: that its images must have met.
        dimensions: embedding column name -> vector length.
        dtype: Arrow type of a vector's values.
    """

    fingerprint: str
    generation: str
    conditions: Conditions
    dimensions: Mapping[str, int]
    dtype: pa.DataType

    def accept(self, schema: pa.Schema, metadata: Mapping[bytes, bytes]) -> bool:
        """Whether a part with this schema and footer is such."""
        about = json.loads(metadata[UNIT_KEY])
        return (
            metadata[FINGERPRINT_KEY].decode() == self.fingerprint
            and about.get("generation", "") == self.generation
            and self.conditions.allow(about.get("conditions"))
            and all(self._fits(schema.field(name).type, size) for name, size in self.dimensions.items())
        )

    def _fits(self, kind: pa.DataType, size: int) -> bool:
        is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)
        return bool(
            is_list
            and kind.value_type == self.dtype
            and (not pa.types.is_fixed_size_list(kind) or kind.list_size == size)
        )


class PartRows:
    """The rows of one part: digests and sizes at once, vectors when the first is asked for; thread-safe.

    Attributes:
        uri: of the part.
        count: rows.
        digests: of their images' bytes.
        is_gone: whether its vectors cannot be read, or another part took its place.
    """

    def __init__(self, uri: str, file: pq.ParquetFile, dimensions: Mapping[str, int]) -> None:
        table = file.read(COLUMNS)
        self.uri = uri
        self.count: int = table.num_rows
        self._dimensions = dimensions
        self._widths, self._heights = table["width"].to_pylist(), table["height"].to_pylist()
        self.digests: list[str] = table["sha256"].to_pylist()
        self._uris: list[str] = table["uri"].to_pylist()
        self._notes = decode_notes((file.metadata.metadata or {}).get(NOTES_KEY), self.count)
        self._by_digest = {sha256: row for row, sha256 in enumerate(self.digests)}
        self._by_uri = {uri: row for row, uri in enumerate(self._uris)}
        self._vectors: dict[str, np.ndarray] | None = None
        self._is_damaged = False
        self.is_gone = False
        self._lock = threading.Lock()

    @classmethod
    def read(cls, uri: str, terms: Terms) -> PartRows | None:
        """A part that rows may be taken from; None where there is none, or it is not as `terms` say.

        Raises:
            OSError: if it is damaged, or cannot be read; or ArrowException, KeyError, TypeError or ValueError.
        """
        try:
            with storage.open_read(uri) as source:
                file = _open(source)
                fits = terms.accept(file.schema_arrow, file.metadata.metadata or {})
                return cls(uri, file, terms.dimensions) if fits else None
        except FileNotFoundError:
            return None

    @property
    def bytes(self) -> int:
        """About how much memory it takes, with its vectors."""
        return self.count * (_ROW_BYTES + 4 * sum(self._dimensions.values()))

    def by_digest(self, sha256: str) -> KnownRow | None:
        """A row of an image with these bytes."""
        row = self._by_digest.get(sha256)
        return None if row is None else self._row(row)

    def by_file(self, uri: str, version: str) -> KnownRow | None:
        """A row of this version of a file."""
        row = self._by_uri.get(uri)
        return None if row is None or not is_version(self._notes[row], version) else self._row(row)

    def _row(self, row: int) -> KnownRow | None:
        vectors = self._read_vectors()
        if vectors is None:
            return None
        return KnownRow(
            self._widths[row],
            self._heights[row],
            self.digests[row],
            {name: matrix[row].copy() for name, matrix in vectors.items()},
            has_icc_profile(self._notes[row]),
        )

    def _read_vectors(self) -> dict[str, np.ndarray] | None:
        """Column name -> [rows, dimension]; None where they cannot be read, or the part is another one by now."""
        with self._lock:
            if self._vectors is None and not self.is_gone and not self._is_damaged:
                try:
                    self._vectors = self._load()
                    self.is_gone = self._vectors is None
                except FileNotFoundError:
                    self.is_gone = True
                except (OSError, pa.ArrowException, KeyError, ValueError) as error:
                    self._is_damaged = True
                    _warn(self.uri, error)
            return self._vectors

    def _load(self) -> dict[str, np.ndarray] | None:
        """The vectors; None where the part was written again."""
        with storage.open_read(self.uri) as source:
            table = _open(source).read(["sha256", *self._dimensions])
        if table["sha256"].to_pylist() != self.digests:
            return None
        return {
            name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(self.count, size)
            for name, size in self._dimensions.items()
        }


def _warn(uri: str, error: Exception) -> None:
    """Say that nothing is taken from a part: its images go through the model again, which takes time."""
    reason = " ".join(str(error).split())
    _log.warning("%s cannot be read, and its images are embedded again: %s. See imagebeam verify", uri, reason)


def _open(source: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(source, page_checksum_verification=True)


class PartCache:
    """The parts that were looked into last, up to `_CACHE_BYTES`; thread-safe."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, PartRows] = OrderedDict()
        self._damaged: set[str] = set()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, uri: str, terms: Terms) -> PartRows | None:
        """`PartRows.read`, unless the part is here; None for one that is damaged, which is told once."""
        with self._lock:
            if uri in self._damaged:
                return None
            part = self._parts.get(uri)
            if part is not None and not part.is_gone:
                self._parts.move_to_end(uri)
                return part
        try:
            part = PartRows.read(uri, terms)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            with self._lock:
                is_news = uri not in self._damaged
                self._damaged.add(uri)
            if is_news:
                _warn(uri, error)
            return None
        if part is not None:
            self._keep(uri, part)
        return part

    def forget(self, uri: str) -> None:
        """Read a part anew when it is next wanted: it is another one by now."""
        with self._lock:
            if (part := self._parts.pop(uri, None)) is not None:
                self._bytes -= part.bytes

    def _keep(self, uri: str, part: PartRows) -> None:
        with self._lock:
            before = self._parts.pop(uri, None)
            self._parts[uri] = part
            self._bytes += part.bytes - (before.bytes if before else 0)
            while self._bytes > _CACHE_BYTES and len(self._parts) > 1:
                _, oldest = self._parts.popitem(last=False)
                self._bytes -= oldest.bytes


class RecentRows:
    """The most recent rows of this process, up to `_RECENT_BYTES`, for equal images in other units. Thread-safe."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, KnownRow] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, rows: Iterable[Row]) -> None:
        """Remember rows."""
        for row in rows:
            vectors = {name: vector.copy() for name, vector in row.vectors.items()}
            known = KnownRow(row.width, row.height, row.sha256, vectors, row.icc_profile_ignored, is_recent=True)
            with self._lock:
                before = self._rows.pop(row.sha256, None)
                self._rows[row.sha256] = known
                self._bytes += _size(known) - (_size(before) if before else 0)
                while self._bytes > _RECENT_BYTES:
                    self._bytes -= _size(self._rows.popitem(last=False)[1])

    def by_digest(self, sha256: str) -> KnownRow | None:
        """A row of an image with these bytes."""
        with self._lock:
            if sha256 in self._rows:
                self._rows.move_to_end(sha256)
            return self._rows.get(sha256)


def _size(row: KnownRow) -> int:
    return _ROW_BYTES + sum(vector.nbytes for vector in row.vectors.values())
