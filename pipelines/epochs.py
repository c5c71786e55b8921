"""What a person sees while a model trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.console import PLAIN_INTERVAL, say


class EpochBar:
    """A `transforms.fitting.Watcher` that shows epochs, rows/s and losses.

    Args:
        epochs: at most.
        batches: in an epoch.
        batch_size: rows in a batch.
        shown: whether anything is shown at all.
    """

    def __init__(self, epochs: int, batches: int, batch_size: int, *, shown: bool = True) -> None:
        self._epochs = epochs
        self._batch_size = batch_size
        self._began = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True, quiet=not shown),
            transient=True,
        )
        self._lines = shown and not self._bar.console.is_terminal
        self._task = self._bar.add_task("training", total=batches, status="")

    def __enter__(self) -> Self:
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def after_batches(self, epoch: int, batches: int, logs: Mapping[str, float]) -> None:
        """Move the bar."""
        rate = batches * self._batch_size / max(time.monotonic() - self._began, 1e-9)
        status = f"{rate:,.0f} rows/s, {_format(logs)}"
        self._bar.update(self._task, description=self._name(epoch), completed=batches, status=status)

    def after_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Start the bar anew, or say how the epoch went."""
        self._began = time.monotonic()
        self._bar.update(self._task, description=self._name(epoch), status=_format(logs))
        last = epoch + 1 == self._epochs
        if self._lines and (last or self._began - self._said >= PLAIN_INTERVAL):
            say(f"{self._name(epoch)}: {_format(logs)}")
            self._said = self._began

    def _name(self, epoch: int) -> str:
        return f"epoch {epoch + 1} (at most {self._epochs})"


def _format(logs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
