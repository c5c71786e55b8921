"""Which committed units are worked again, for the records that failed in them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from transforms import storage
from transforms.core.types import Stage
from transforms.parts import part_files
from transforms.parts.part_files import Commit
from transforms.readers.base import MISSING
from transforms.readers.units import ListUnit, RecordRef, WorkUnit
from transforms.reuse.known_rows import Conditions

_LOOKED_FOR_AT_ONCE = 16
"""Files that were missing: each is a request to an object store."""


@dataclass(frozen=True)
class Retries:
    """When the failed records of a committed unit are tried again.

    Attributes:
        output: the run's folder.
        conditions: under which records become rows now; None where they do not matter.
        retry_failed: whether all failures are tried again.
    """

    output: str
    conditions: Conditions | None
    retry_failed: bool

    def are_due(self, done: Commit, unit: WorkUnit) -> bool:
        """Whether a unit's failures are tried again: they are asked for, may succeed now, or are not stored.

        Args:
            done: the unit's commit, with what identifies its failures.
            unit: of the same version.
        """
        if done.failed and (self.retry_failed or done.failures_file is None):
            return True
        is_laxer = self.conditions is not None and self.conditions.readmit(done.conditions, done.failures)
        return done.retryable > 0 or is_laxer or self._has_come_back(done, unit)

    def _has_come_back(self, done: Commit, unit: WorkUnit) -> bool:
        """Whether a file that was missing when a unit was committed is there now.

        The version of a unit tells that of no remote file that a manifest names, nor of one that is back as it was. A
        file that a Parquet shard names by its path is not looked for: nothing but the shard says which it is.
        """
        gone = {unread["uri"] for unread in done.unread if unread["reason"].startswith(f"{MISSING}: ")}
        if isinstance(unit, ListUnit) and f"{Stage.READ}/{MISSING}" in done.failures:
            try:
                keys = part_files.read_failed_keys(self.output, unit.id, MISSING)
            except (pa.ArrowException, OSError):  # They are damaged, and made anew.
                return True
            gone |= {ref.uri for ref in unit.refs if isinstance(ref, RecordRef) and ref.key in keys}
        with ThreadPoolExecutor(_LOOKED_FOR_AT_ONCE) as pool:
            return any(pool.map(_may_be_there, gone))


def _may_be_there(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except OSError:  # Reading it will tell.
        return True
