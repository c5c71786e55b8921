"""What a person sees while a job runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from transforms.progress import PROGRESS
from transforms.progress import Progress as Counts

PLAIN_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""

_TERMINAL_INTERVAL = 0.5

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the person who started the job, on stderr: stdout is for results."""
    _console.print(message, markup=False)


class ProgressBar:
    """Shows `PROGRESS` until it is closed: records done, images/s, failures, time left.

    The counts are of this process: with workers elsewhere the runner's own pages tell more.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def _show(self) -> None:
        if _console.is_terminal:
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[failures]} failed"),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
        )
        meter = _Meter()
        with bar:
            task = bar.add_task("embedding", total=None, rate="", failures=0)
            while not self._closed.wait(_TERMINAL_INTERVAL):
                counts = PROGRESS.snapshot()
                bar.update(
                    task,
                    completed=counts.done,
                    total=counts.planned or None,
                    rate=f"{meter.rate(counts):.1f} images/s",
                    failures=f"{counts.failures:,}",
                )

    def _show_lines(self) -> None:
        meter = _Meter()
        while not self._closed.wait(PLAIN_INTERVAL):
            counts = PROGRESS.snapshot()
            print(_line(counts, meter.rate(counts)), file=sys.stderr, flush=True)  # noqa: T201


class _Meter:
    """Images per second over the last half minute or so."""

    _WINDOW = 30.0

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def rate(self, counts: Counts) -> float:
        now = time.monotonic()
        self._seen.append((now, counts.images))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._WINDOW:
            self._seen.pop(0)
        since, images = self._seen[0]
        return (counts.images - images) / max(now - since, 1e-9)


def _line(counts: Counts, rate: float) -> str:
    left = (counts.planned - counts.done) / rate if rate else 0.0
    return (
        f"{counts.done:,} of {counts.planned:,} records, {rate:.1f} images/s, {counts.failures:,} failed, "
        f"about {left:,.0f} s left"
    )
