"""The frozen dataclasses passed between stages.

Names follow the vocabulary of ``docs/design.md``: shard, record, work unit, image, batch, embedding, part, failure.
Nothing here does I/O, and nothing here knows of Keras or Beam.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Stage(enum.StrEnum):
    """Where a record failed."""

    READ = "read"
    DECODE = "decode"
    EMBED = "embed"


@dataclass(frozen=True, slots=True)
class Record:
    """One encoded image with its key, label and kept columns."""

    key: str
    uri: str
    data: bytes
    label: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unread:
    """What of a shard or manifest could not be read.

    Attributes:
        uri: of the file.
        reason: why.
        bytes: not read; None where unknown.
        records: in those bytes, as an index or the records before them tell; None where unknown.
    """

    uri: str
    reason: str
    bytes: int | None = None
    records: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One record that could not become an embedding, and why.

    Attributes:
        sha256: of the encoded bytes where they were read.
        retryable: whether the machine is at fault: the next run works the record again.
        unread: set on the first failure of a file's rest that could not be read.
    """

    key: str
    uri: str
    stage: Stage
    error_type: str
    message: str
    sha256: str | None = None
    retryable: bool = False
    unread: Unread | None = None


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
    """One embedded record, without its bytes and pixels: a row of a part.

    Attributes:
        width: as stored in the file, in pixels.
        height: likewise.
        sha256: of the encoded bytes, 64 hex digits.
        vectors: embedding column name -> float32 [dimension].
        icc_profile_ignored: whether the image carried an ICC profile, which was not applied.
    """

    key: str
    uri: str
    label: str | None
    width: int
    height: int
    sha256: str
    vectors: Mapping[str, np.ndarray]
    extras: Mapping[str, Any] = field(default_factory=dict)
    icc_profile_ignored: bool = False
