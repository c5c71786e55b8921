"""Distinguish machine faults from bad records, and retry the former.

A failure is final only if it lies in the record's own bytes or in its proven absence. Permission, credentials, network,
time-outs, disks, memory and lost mounts are the machine's: they are tried again, and what still fails is marked so that
the next run works it again.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from transforms import storage
from transforms.core.errors import StopError
from transforms.storage import ReplacedError

T = TypeVar("T")

WAITS: tuple[float, ...] = (0.2, 0.8, 2.0, 4.0)
"""Seconds between the attempts at reading something."""

MOST_SECONDS = 10.0
"""No further attempt after so many seconds: a store's own client may have tried for minutes."""

BUDGET_SECONDS = 60.0
"""Waiting that never helps is given up after so many seconds of it in a process."""

STOP_AFTER = 32
"""Faults in a row, with nothing read in between, that stop the job."""

_RECORDS_OWN = frozenset(
    (errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.EILSEQ)
)
"""What the system answers to a wrong name; ENOENT is looked at more closely."""


class MachineError(StopError):
    """The machine cannot go on: nothing should be committed. The message says why."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether an error of reading a file is the machine's rather than the file's.

    Args:
        error: raised by `transforms.storage`, or a MemoryError from anywhere.
    """
    if isinstance(error, ReplacedError):
        return False
    if isinstance(error, FileNotFoundError):
        return not _is_absent(error)
    if isinstance(error, OSError):
        return error.errno not in _RECORDS_OWN
    return isinstance(error, MemoryError)


def is_retryable(error: BaseException) -> bool:
    """Whether a later run may succeed: a replaced file is planned again by then."""
    return isinstance(error, ReplacedError) or is_machine_fault(error)


def _is_absent(error: FileNotFoundError) -> bool:
    """Whether the file is known not to exist, rather than its folder or mount being away.

    An object store answers for itself. Of a local file the folder must be there and hold something else: a mount that
    is lost leaves an empty folder behind.
    """
    path = error.filename
    if not isinstance(path, str) or not storage.is_local(path):
        return True
    if os.path.islink(path):
        target = os.path.join(os.path.dirname(path), os.readlink(path))
        return not os.path.islink(target) and _has_entries(os.path.dirname(target))
    return _has_entries(os.path.dirname(path))


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder or ".") as entries:
            return next(entries, None) is not None
    except OSError:
        return False


class Patience:
    """The budget of this process for waiting on machine faults. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._budget = BUDGET_SECONDS
        self._in_a_row = 0

    def wait(self, seconds: float) -> bool:
        """Sleep before another attempt; False where waiting has not helped for too long."""
        with self._lock:
            if self._budget < seconds:
                return False
            self._budget -= seconds
        time.sleep(seconds)
        return True

    def went_well(self, waited: bool) -> None:
        """Something was read, or was proven not to be there."""
        if self._in_a_row or waited:
            with self._lock:
                self._in_a_row = 0
                if waited:
                    self._budget = BUDGET_SECONDS

    def failed(self, error: BaseException) -> None:
        """Count a fault.

        Raises:
            MachineError: if it is one too many in a row.
        """
        with self._lock:
            self._in_a_row += 1
            count = self._in_a_row
        if count >= STOP_AFTER:
            raise MachineError(
                f"{count} reads in a row failed because of the machine or the storage; the last one: {error}"
            ) from error


PATIENCE = Patience()
"""This process's own."""


def persist(action: Callable[[], T]) -> T:
    """Call `action`, again with back-off after faults of the machine.

    Raises:
        MachineError: if there were too many faults in a row.
        Exception: whatever the last attempt raised.
    """
    started = time.monotonic()
    waits = iter(WAITS)
    waited = False
    while True:
        try:
            result = action()
        except Exception as error:
            if not is_machine_fault(error):
                PATIENCE.went_well(waited)
                raise
            pause = next(waits, None)
            if pause is None or time.monotonic() - started > MOST_SECONDS or not PATIENCE.wait(pause):
                PATIENCE.failed(error)
                raise
            waited = True
        else:
            PATIENCE.went_well(waited)
            return result
