"""Measure how busy each stage of a work unit is, to name the bottleneck of a run."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


class Busy(enum.StrEnum):
    """What a worker does with a unit, beside waiting."""

    READING = "reading"
    DECODING = "decoding"
    MODEL = "model"
    WRITING = "writing"


ALL = "all"
"""Key of the seconds that a unit took from its start to its end."""


class Stopwatch:
    """Seconds by stage; threads add to it without waiting for each other."""

    def __init__(self) -> None:
        self._laps: dict[Busy, list[float]] = {stage: [] for stage in Busy}

    def add(self, stage: Busy, seconds: float) -> None:
        """Count seconds of a stage; of one with several threads, the share of one."""
        self._laps[stage].append(seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, so far."""
        return {str(stage): math.fsum(laps) for stage, laps in self._laps.items()}


def shares(units: Iterable[Mapping[str, float] | None]) -> dict[str, float] | None:
    """The share of the time, 0 to 1, in which each stage was busy; None where it is not known of every unit.

    Args:
        units: seconds by stage and of `ALL`, unit by unit.
    """
    total: Counter[str] = Counter()
    for seconds in units:
        if seconds is None:
            return None
        total.update(seconds)
    if not total[ALL]:
        return None
    return {stage: round(min(1.0, total[stage] / total[ALL]), 4) for stage in Busy}


def describe(found: Mapping[str, Any]) -> str:
    """Describe the share of each stage and the bottleneck, in one line."""
    line = ", ".join(f"{stage} {found[stage]:.0%}" for stage in Busy)
    slowest = max(Busy, key=lambda stage: found[stage])
    return f"busy: {line}; the others waited for {'the ' if slowest == Busy.MODEL else ''}{slowest}"
