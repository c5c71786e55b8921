"""Progress counters of this process, which the local launcher shows while Beam's `run()` blocks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace


@dataclass
class Progress:
    """Records counted in this process since the last `reset`; thread-safe.

    Attributes:
        planned: records in the units planned so far.
        done: records of those that ended, one way or another.
        failures: records that ended as failures.
        images: images the model embedded.
        model_seconds: seconds spent in the model.
    """

    planned: int = 0
    done: int = 0
    failures: int = 0
    images: int = 0
    model_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def reset(self) -> None:
        """Start again from zero."""
        with self._lock:
            self.planned = self.done = self.failures = self.images = 0
            self.model_seconds = 0.0

    def planned_more(self, records: int) -> None:
        """A unit of so many records was planned."""
        with self._lock:
            self.planned += records

    def skipped(self, records: int) -> None:
        """So many records had been committed before."""
        with self._lock:
            self.done += records

    def failed(self, records: int) -> None:
        """So many records failed."""
        with self._lock:
            self.done += records
            self.failures += records

    def embedded(self, images: int, seconds: float) -> None:
        """So many images went through the model, in so many seconds."""
        with self._lock:
            self.done += images
            self.images += images
            self.model_seconds += seconds

    def snapshot(self) -> Progress:
        """A copy that no longer changes."""
        with self._lock:
            return replace(self, _lock=threading.Lock())


PROGRESS = Progress()
"""This process's own."""
