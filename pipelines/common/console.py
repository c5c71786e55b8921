"""Progress reporting: a bar on terminals, plain lines in logs."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from pipelines.common import log
from transforms.core.errors import ImagebeamError
from transforms.core.progress import PROGRESS
from transforms.core.progress import Progress as Counts
from transforms.core.text import counted

PLAIN_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""

ELSEWHERE_INTERVAL = 60.0
"""Seconds between two looks at what workers elsewhere have committed."""

_TERMINAL_INTERVAL = 0.5

_CLOSING_SECONDS = 2.0
"""How long the end of a job waits for the bar, which may be listing the output."""

_WIDEST = 10_000

_console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(message: str, fields: Mapping[str, Any] | None = None) -> None:
    """One line for the person who started the job, on stderr: stdout is for results.

    Args:
        message: the line; one that begins with WARNING or PROBLEM is shown to who asked for quiet too.
        fields: counts, for the JSON line.
    """
    severity = "ERROR" if message.startswith("PROBLEM") else "WARNING" if message.startswith("WARNING") else "INFO"
    log.emit(message, severity=severity, **(fields or {}))


def print_table(table: Table) -> None:
    """Print a table on stdout, as wide as a terminal; a file or a pipe has no columns, and gets its cells whole."""
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    Console(width=None if console.is_terminal else _WIDEST).print(table)


def is_interactive() -> bool:
    """Whether progress is drawn on a terminal."""
    return _console.is_terminal and not log.SETTINGS.json and not log.SETTINGS.quiet


class ProgressBar:
    """Shows `PROGRESS` until it is closed: records done, images/s, failures, time left.

    Args:
        count_committed: gives the units committed so far. It is asked from time to time while nothing is counted in
            this process, because the workers are elsewhere; the runner's own pages tell more.
    """

    def __init__(self, count_committed: Callable[[], int]) -> None:
        self._count_committed = count_committed
        self._asked = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(_CLOSING_SECONDS)

    def _show(self) -> None:
        if is_interactive():
            self._show_bar()
        elif not log.SETTINGS.quiet:
            self._show_lines()

    def _show_bar(self) -> None:
        bar = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=_console,
            expand=True,
            transient=True,
        )
        meter = _Meter()
        with bar:
            task = bar.add_task("starting", total=None)
            while not self._closed.wait(_TERMINAL_INTERVAL):
                counts = PROGRESS.snapshot()
                if counts.planned:
                    description = progress_line(counts, meter.rate(counts))
                else:
                    description = self._look_elsewhere() or bar.tasks[task].description
                bar.update(task, completed=counts.done, total=counts.planned or None, description=description)

    def _show_lines(self) -> None:
        meter = _Meter()
        while not self._closed.wait(PLAIN_INTERVAL):
            counts = PROGRESS.snapshot()
            rate = meter.rate(counts)
            if counts.planned:
                fields = {"planned": counts.planned, "done": counts.done, "failed": counts.failures}
                say(progress_line(counts, rate), {**fields, "images_per_second": round(rate, 3)})
            elif line := self._look_elsewhere():
                say(line)

    def _look_elsewhere(self) -> str | None:
        """How far workers elsewhere are, now and then: counting lists the output."""
        if time.monotonic() - self._asked < ELSEWHERE_INTERVAL:
            return None
        try:
            return f"{counted(self._count_committed(), 'unit is', 'units are')} committed"
        except (OSError, ImagebeamError):  # The job goes on; its end will say what is wrong.
            return None
        finally:
            self._asked = time.monotonic()


class _Meter:
    """Images per second over the last half minute or so; the time before the first image does not count."""

    _WINDOW = 30.0

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def rate(self, counts: Counts) -> float:
        if not counts.images:
            return 0.0
        now = time.monotonic()
        self._seen.append((now, counts.images))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._WINDOW:
            self._seen.pop(0)
        since, images = self._seen[0]
        return (counts.images - images) / max(now - since, 1e-9)


def progress_line(counts: Counts, rate: float) -> str:
    """How far a run is, in words.

    Args:
        counts: of the records.
        rate: images per second of late; 0 where it is not known yet.
    """
    facts = [f"{counts.done:,} of {counts.planned:,} records", f"{counts.failures:,} failed"]
    if rate:
        left = datetime.timedelta(seconds=round((counts.planned - counts.done) / rate))
        facts += [f"{rate:,.1f} images/s", f"{left} left"]
    return ", ".join(facts)
