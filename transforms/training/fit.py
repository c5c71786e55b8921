"""Run Keras' `fit` with early stopping, best weights and resumable state."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transforms.core.errors import ImagebeamError
from transforms.core.text import counted, spelled
from transforms.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    import keras


class Watcher(Protocol):
    """Is told how a run goes. Epochs count from 0; logs are Keras'."""

    def after_batches(self, epoch: int, batches: int, logs: Mapping[str, float]) -> None:
        """So many batches of the epoch are done."""

    def after_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """The epoch is done, validation too."""


@dataclass
class FitState:
    """How far a run has come; in JSON terms, so that it can be saved.

    Attributes:
        epochs: done.
        history: Keras' logs, a value an epoch: loss, accuracy, val_loss, val_accuracy.
        best_epoch: epochs that were done when the validation loss was lowest; 0 before any.
        best_loss: that loss; None before any.
        stopped: whether the run has ended, by early stopping or because all epochs are done.
    """

    epochs: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: int = 0
    best_loss: float | None = None
    stopped: bool = False

    def add(self, logs: Mapping[str, float]) -> bool:
        """Take an epoch's logs.

        Returns:
            Whether it is the best so far; without validation the last always is.
        """
        self.epochs += 1
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        loss = logs.get("val_loss")
        if loss is not None and self.best_loss is not None and loss >= self.best_loss:
            return False
        self.best_epoch = self.epochs
        self.best_loss = None if loss is None else float(loss)
        return True


class DivergedError(ImagebeamError):
    """Training gave numbers that are not finite.

    Args:
        what: one sentence.
        flag: what to lower.
    """

    def __init__(self, what: str, flag: str = "--learning_rate") -> None:
        super().__init__(f"{what} Lower {flag}.")
        self.what = what


def fit(
    model: keras.Model,
    train: Any,
    validation: Any | None,
    *,
    epochs: int,
    patience: int = 0,
    patient_until: int = 0,
    begin_epoch: Callable[[int], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
    checkpoint_seconds: float = 30.0,
    watcher: Watcher | None = None,
) -> FitState:
    """Train a compiled model; it ends with the weights of the epoch with the lowest validation loss.

    A run that was killed and is called again with the same arguments goes on from its last checkpoint: weights,
    optimizer, random states, history and early stopping are all restored, and epochs since are done again.

    Args:
        model: compiled.
        train: batches of (inputs, targets); iterated once an epoch.
        validation: likewise; None to keep the last epoch's weights.
        epochs: at most.
        patience: stop after so many epochs without a lower validation loss; 0 to do all epochs.
        patient_until: epochs that do not count for that: it begins behind them.
        begin_epoch: told the number of each epoch, from 0, before `train` is iterated.
        checkpoint: where to keep the state; None not to.
        checkpoint_seconds: how much work a kill may cost: the least time between two saves.
        watcher: told how it goes.

    Raises:
        DivergedError: if a loss or metric is not finite.
    """
    import keras

    run = _Run(model, epochs, patience if validation is not None else 0, patient_until, checkpoint, checkpoint_seconds)
    run.restore()
    if not run.state.stopped:

        def on_epoch_begin(epoch: int, logs: Mapping[str, float]) -> None:  # noqa: ARG001
            begin_epoch(epoch)

        def on_train_batch_end(batch: int, logs: Mapping[str, float]) -> None:
            if watcher is not None:
                watcher.after_batches(run.state.epochs, min(batch + 1, len(train)), logs)

        def on_epoch_end(epoch: int, logs: Mapping[str, float]) -> None:
            run.end_epoch(logs)
            if watcher is not None:
                watcher.after_epoch(epoch, logs)

        model.fit(
            train,
            validation_data=validation,
            initial_epoch=run.state.epochs,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=on_epoch_begin, on_train_batch_end=on_train_batch_end, on_epoch_end=on_epoch_end
                )
            ],
        )
    run.use_best()
    return run.state


class _Run:
    """A model in training, and what must be known of it to go on after a kill."""

    def __init__(
        self,
        model: keras.Model,
        epochs: int,
        patience: int,
        patient_until: int,
        checkpoint: Checkpoint | None,
        interval: float,
    ) -> None:
        self.state = FitState()
        self._model = model
        self._epochs = epochs
        self._patience = patience
        self._patient_until = patient_until
        self._checkpoint = checkpoint
        self._interval = interval
        self._saved = time.monotonic()
        self._best: list[np.ndarray] = []
        model.optimizer.build(model.trainable_variables)

    @property
    def _variables(self) -> list[Any]:
        """Everything that training changes: weights, moving averages, states of random generators, the optimizer's."""
        return [*self._model.variables, *self._model.optimizer.variables]

    def restore(self) -> None:
        """Take up the state of the last checkpoint, if there is one."""
        saved = self._checkpoint.load_state() if self._checkpoint is not None else None
        if saved is None:
            return
        values, arrays = saved
        self.state = FitState(**values)
        variables = self._variables
        for variable, array in zip(variables, arrays[: len(variables)], strict=True):
            variable.assign(array)
        self._best = arrays[len(variables) :]

    def end_epoch(self, logs: Mapping[str, float]) -> None:
        """Keep what must be kept, and decide whether to stop."""
        state = self.state
        if not all(math.isfinite(value) for value in logs.values()):
            if self._checkpoint is not None:
                self._checkpoint.remove()  # there is no way on from here, and the next run will have other options
            raise DivergedError(f"Training diverged after {counted(state.epochs + 1, 'epoch')}: {spelled(logs)}.")
        if state.add(logs):
            self._best = self._model.get_weights()
        waited = state.epochs - max(state.best_epoch, self._patient_until)
        out_of_patience = bool(self._patience) and waited >= self._patience
        state.stopped = out_of_patience or state.epochs >= self._epochs
        self._model.stop_training = state.stopped
        if self._checkpoint is not None and (state.stopped or time.monotonic() - self._saved >= self._interval):
            arrays = [np.asarray(variable) for variable in self._variables]
            self._checkpoint.save_state(dataclasses.asdict(state), [*arrays, *self._best])
            self._saved = time.monotonic()

    def use_best(self) -> None:
        """Give the model the best epoch's weights."""
        self._model.set_weights(self._best)
