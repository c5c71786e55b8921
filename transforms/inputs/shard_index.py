"""Where large shards were cut, remembered beside the output.

To find the records of a TFRecord or a tar is to walk it from its start, which on gs:// means to fetch it whole. A run
that goes on after a crash, or that comes every night, need not do that again for shards that are what they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from transforms import storage
from transforms.core.formats import InputFormat
from transforms.core.spec import canonical_json
from transforms.inputs.types import Shard, WorkUnit

LEAST_BYTES = 8 << 20
"""Smaller shards are walked faster than a file beside them is kept."""

_WALKED = (InputFormat.TFRECORD, InputFormat.WEBDATASET)
"""Formats without an index of their records."""

_RULES = 1
"""Changes with the way shards are cut, so that older files are not used."""

_FIELDS = ("count", "start", "offset", "error")

_OF_THE_CONTENT = "repeated_key: "
"""How the errors begin that a shard will always have; others may be the network's."""


def forget_cuts(folder: str) -> None:
    """Delete what was remembered in the folder, and nothing else."""
    for info in list(storage.list_below(folder, f"{'[0-9a-f]' * 16}.json")):
        storage.delete(info.uri)
    storage.remove_empty_folder(folder)


@dataclass(frozen=True)
class CutMemory:
    """One small JSON file a shard.

    Attributes:
        folder: uri of the folder that holds them.
        rows_per_unit: records in a unit at most.
    """

    folder: str
    rows_per_unit: int

    def is_worthwhile(self, shard: Shard) -> bool:
        """Whether cutting the shard takes longer than looking here."""
        return shard.format in _WALKED and shard.file.size >= LEAST_BYTES

    def recall(self, shard: Shard) -> list[WorkUnit] | None:
        """The shard's units, as they were cut before; None where it was not cut, or is not what it was.

        Raises:
            OSError: if the storage cannot be read.
        """
        try:
            found = json.loads(storage.read_bytes(self._uri(shard)))
            if found["of"] != self._identity(shard):
                return None
            return [
                WorkUnit(shard.format, shard=shard, **dict(zip(_FIELDS, cut, strict=True))) for cut in found["cuts"]
            ]
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # None there, or none of ours: it is made anew.
            return None

    def keep(self, shard: Shard, units: Iterable[WorkUnit]) -> Iterator[WorkUnit]:
        """Pass the units on, and remember them once all have come, if all of the shard could be read.

        Raises:
            OSError: if the storage refuses.
        """
        cuts: list[list[Any]] = []
        readable = True
        for unit in units:
            readable &= unit.error is None or unit.error.startswith(_OF_THE_CONTENT)
            cuts.append([getattr(unit, name) for name in _FIELDS])
            yield unit
        if readable:
            content = {"of": self._identity(shard), "cuts": cuts}
            storage.publish(self._uri(shard), json.dumps(content).encode())

    def _uri(self, shard: Shard) -> str:
        """The same for every version of the shard: a new one takes the place of the old."""
        name = hashlib.sha256(canonical_json(self._name(shard)).encode()).hexdigest()[:16]
        return storage.join(self.folder, f"{name}.json")

    def _name(self, shard: Shard) -> dict[str, Any]:
        return {"uri": shard.file.uri, "format": shard.format, "rows_per_unit": self.rows_per_unit}

    def _identity(self, shard: Shard) -> dict[str, Any]:
        return {**self._name(shard), "version": shard.file.version, "rules": _RULES}
