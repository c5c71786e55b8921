"""Progress reporting for training: a bar on terminals, occasional lines in logs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.common.console import PLAIN_INTERVAL, is_interactive, say


class EpochBar:
    """A `transforms.training.fit.Watcher` that shows epochs, rows/s, losses and the time left if all epochs are done.

    Args:
        epochs: at most.
        batches: in an epoch.
        batch_size: rows in a batch.
        shown: whether anything is shown at all.
        each_epoch: whether every epoch has a line of its own, on a terminal too: for epochs of minutes.
    """

    def __init__(
        self, epochs: int, batches: int, batch_size: int, *, shown: bool = True, each_epoch: bool = False
    ) -> None:
        self._each_epoch = each_epoch and shown
        self._epochs = epochs
        self._batches = batches
        self._batch_size = batch_size
        self._began = self._said = time.monotonic()
        self._validation = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, quiet=not shown or not is_interactive()),
            transient=True,
        )
        self._lines = shown and not is_interactive()
        self._task = self._bar.add_task("training", total=epochs * batches, status="")

    def __enter__(self) -> Self:
        if is_interactive():
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
        self._bar.update(
            self._task,
            description=f"epoch {epoch + 1}/{self._epochs}",
            completed=epoch * self._batches + batches,
            status=f"{rate:,.0f} rows/s, loss {logs['loss']:.4f}{self._validation}",
        )

    def after_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Take note of the validation loss, or say how the epoch went."""
        self._began = time.monotonic()
        if "val_loss" in logs:
            self._validation = f", val_loss {logs['val_loss']:.4f}"
        due = epoch + 1 == self._epochs or self._began - self._said >= PLAIN_INTERVAL
        if self._each_epoch or (self._lines and due):
            self._say(epoch, logs)
            self._said = self._began

    def _say(self, epoch: int, logs: Mapping[str, float]) -> None:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
        line = f"epoch {epoch + 1} of at most {self._epochs}: {numbers}"
        if self._bar.live.is_started:
            self._bar.console.print(line, highlight=False, markup=False)  # above the bar
        else:
            say(line, {"epoch": epoch + 1, **logs})
