"""Store the cuts of large shards beside the output.

To find the records of a TFRecord or a tar is to walk it from its start, which on gs:// means to fetch it whole. A run
that goes on after a crash, or that comes every night, need not do that again for shards that are what they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from transforms import storage
from transforms.core.formats import InputFormat
from transforms.core.sealed_json import seal, unseal
from transforms.core.spec import canonical_json
from transforms.readers.options import ReadOptions
from transforms.readers.units import Note, Shard, ShardSlice

LEAST_BYTES = 8 << 20
"""Smaller shards are walked faster than a file beside them is kept."""

WALKED = (InputFormat.TFRECORD, InputFormat.WEBDATASET)
"""Formats without an index of their records."""

_RULES = 3
"""Changes with the way shards are cut, so that older files are not used."""

_FILES = f"{'[0-9a-f]' * 16}.json"

_FIELDS = ("start", "count", "offset", "errors", "entry")


def forget_cuts(folder: str) -> None:
    """Delete the stored cuts of the folder, and nothing else."""
    for info in list(storage.list_below(folder, _FILES)):
        storage.delete(info.uri)
    storage.remove_empty_folder(folder)


def damaged_cuts(folder: str) -> Iterator[str]:
    """URIs of remembered cuts whose bytes are not those that were written."""
    for info in storage.list_below(folder, _FILES):
        try:
            unseal(storage.read_bytes(info.uri))
        except ValueError:
            yield info.uri


@dataclass(frozen=True)
class CutMemory:
    """One small JSON file a shard.

    Attributes:
        folder: uri of the folder that holds them.
        rows_per_unit: records in a unit at most.
        image_column: what decides which members of a tar are samples.
    """

    folder: str
    rows_per_unit: int
    image_column: str = ReadOptions().image_column

    def is_worthwhile(self, shard: Shard) -> bool:
        """Whether cutting the shard takes longer than looking here."""
        return shard.format in WALKED and shard.file.size >= LEAST_BYTES

    def recall(self, shard: Shard) -> list[ShardSlice | Note] | None:
        """The stored cuts of a shard. None if there are none, or the shard has changed.

        Raises:
            OSError: if the storage cannot be read.
        """
        try:
            found = unseal(storage.read_bytes(self._uri(shard)))
            if found["of"] != self._identity(shard):
                return None
            slices = [_slice(shard, *cut) for cut in found["cuts"]]
            return [
                *slices,
                *(Note(kind, shard.file.uri, count, tuple(names)) for kind, count, names in found["notes"]),
            ]
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # Missing or of another version: made anew.
            return None

    def keep(self, shard: Shard, slices: Iterable[ShardSlice | Note]) -> Iterator[ShardSlice | Note]:
        """Pass on what cutting the shard gives, and remember it once all has come, if all of the shard could be read.

        Raises:
            OSError: if the storage refuses.
        """
        cuts: list[list[Any]] = []
        notes: list[list[Any]] = []
        readable = True
        for part in slices:
            if isinstance(part, Note):
                notes.append([part.kind, part.count, part.names])
            else:
                readable &= part.unread is None
                cuts.append([getattr(part, name) for name in _FIELDS])
            yield part
        if readable:
            content = {"of": self._identity(shard), "cuts": cuts, "notes": notes}
            storage.publish(self._uri(shard), seal(content))

    def _uri(self, shard: Shard) -> str:
        """The same for every version of the shard: a new one takes the place of the old."""
        name = hashlib.sha256(canonical_json(self._name(shard)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return storage.join(self.folder, f"{name}.json")

    def _name(self, shard: Shard) -> dict[str, Any]:
        return {
            "uri": shard.file.uri,
            "format": shard.format,
            "rows_per_unit": self.rows_per_unit,
            "image_column": self.image_column,
        }

    def _identity(self, shard: Shard) -> dict[str, Any]:
        return {**self._name(shard), "version": shard.file.version, "rules": _RULES}


def _slice(shard: Shard, start: int, count: int, offset: int, errors: list[list[Any]], entry: int) -> ShardSlice:
    told = tuple((int(index), str(error)) for index, error in errors)
    return ShardSlice(shard, start, count, offset, told, entry=entry)
