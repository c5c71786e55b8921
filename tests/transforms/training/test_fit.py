import keras
import numpy as np
import pytest

from tests.support.embedding_sets import blobs
from transforms.core.errors import ImagebeamError
from transforms.training.checkpoint import Checkpoint
from transforms.training.fit import FitState, fit
from transforms.training.head import Normalization, Schedule, build_head, compile_head
from transforms.training_data.batches import vector_batches
from transforms.training_data.numpy_dataset import NumpyDataset
from transforms.training_data.vector_sources import EpochOrder, MatrixSource

VECTORS, LABELS = blobs(300, spread=3.0)
CLASSES = np.array([int(label[-1]) for label in LABELS], np.int32)
WRONG = (CLASSES + 1) % 3
"""The more of these is learned, the worse the validation on the others."""


class KilledError(Exception):
    pass


class Killer:
    """Ends a run after so many epochs, or in the middle of the next."""

    def __init__(self, epochs, in_the_middle=False):
        self.epochs, self.in_the_middle = epochs, in_the_middle

    def after_batches(self, epoch, batches, logs):
        if self.in_the_middle and epoch == self.epochs:
            raise KilledError

    def after_epoch(self, epoch, logs):
        if not self.in_the_middle and epoch + 1 == self.epochs:
            raise KilledError


def train(
    checkpoint=None,
    watcher=None,
    epochs=8,
    patience=0,
    patient_until=0,
    validated=True,
    learning_rate=0.02,
    taught=CLASSES,
    normalization=Normalization.BATCH,
):
    """Everything that has a state: dropout, batch normalisation, a schedule, momentum, early stopping."""
    head = build_head(8, 3, hidden_units=(16,), dropout=0.3, normalization=normalization, seed=5)
    model = compile_head(
        head, steps=7 * epochs, learning_rate=learning_rate, schedule=Schedule.COSINE, weight_decay=0.01
    )
    order = EpochOrder(5)
    source, held_out = (MatrixSource(VECTORS[rows], np.arange(300)[rows]) for rows in (slice(200), slice(200, 300)))
    state = fit(
        model,
        vector_batches(source, lambda rows: taught[rows], 32, order),
        vector_batches(held_out, lambda rows: CLASSES[rows], 32) if validated else None,
        epochs=epochs,
        patience=patience,
        patient_until=patient_until,
        begin_epoch=order.begin_epoch,
        checkpoint=checkpoint,
        checkpoint_seconds=0,
        watcher=watcher,
    )
    return head, state


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def test_the_same_run_gives_the_same_weights_to_the_last_bit():
    (one, state), (other, other_state) = train(), train()
    assert same(one, other)
    assert state == other_state


def test_numpy_dataset_gives_the_same_weights(monkeypatch):
    one, state = train()
    monkeypatch.setattr(
        "transforms.training_data.batches._tensorflow_dataset", lambda blocks, _, *a: NumpyDataset(blocks, *a[:2])
    )
    other, other_state = train()
    assert same(one, other)
    assert state == other_state


@pytest.mark.parametrize("in_the_middle", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, in_the_middle):
    undisturbed, state = train(patience=6)
    checkpoint = Checkpoint(str(tmp_path))
    for epochs in (1, 4):
        with pytest.raises(KilledError):
            train(checkpoint, Killer(epochs, in_the_middle), patience=6)
        saved = checkpoint.load_state()
        assert saved is not None
        assert saved[0]["epochs"] == epochs
    resumed, resumed_state = train(checkpoint, patience=6)
    assert resumed_state == state
    assert same(resumed, undisturbed)


def test_finished_run_is_not_trained_again(tmp_path):
    checkpoint = Checkpoint(str(tmp_path))
    first, state = train(checkpoint, epochs=3)
    again, again_state = train(checkpoint, Killer(1), epochs=3)
    assert again_state == state
    assert same(first, again)


def test_checkpoints_are_no_more_frequent_than_asked(tmp_path, monkeypatch):
    saved = []
    checkpoint = Checkpoint(str(tmp_path))
    monkeypatch.setattr(checkpoint, "save_state", lambda values, arrays: saved.append(values["epochs"]))
    head = compile_head(build_head(8, 3, normalization=Normalization.NONE), steps=9)
    data = vector_batches(MatrixSource(VECTORS, np.arange(300)), lambda rows: CLASSES[rows], 100)
    fit(head, data, None, epochs=3, checkpoint=checkpoint, checkpoint_seconds=1000)
    assert saved == [3]  # the end is always kept, so that a kill while evaluating costs no training


def test_the_weights_of_the_best_epoch_are_kept():
    head, state = train(epochs=4, taught=WRONG, normalization=Normalization.NONE)
    losses = state.history["val_loss"]
    assert state.best_epoch == 1 + int(np.argmin(losses))
    assert state.best_epoch < state.epochs  # or this test shows nothing
    rows = slice(200, 300)
    found = compile_head(head, steps=1).evaluate(VECTORS[rows], CLASSES[rows], verbose=0)
    assert found[0] == pytest.approx(min(losses), rel=1e-5)


def test_patience_ends_a_run_early():
    _, state = train(epochs=30, patience=2, taught=WRONG, normalization=Normalization.NONE)
    assert state.stopped
    assert state.epochs == state.best_epoch + 2 < 30
    assert len(state.history["loss"]) == state.epochs


def test_patience_may_begin_later():
    _, state = train(epochs=30, patience=2, patient_until=9, taught=WRONG, normalization=Normalization.NONE)
    assert state.epochs == max(9, state.best_epoch) + 2


def test_without_validation_the_last_epoch_counts():
    _, state = train(epochs=2, patience=1, validated=False)
    assert (state.epochs, state.best_epoch, state.best_loss) == (2, 2, None)
    assert state.history.keys() == {"loss", "accuracy"}


def test_diverged_run_is_reported_and_does_not_block_the_next(tmp_path):
    checkpoint = Checkpoint(str(tmp_path))
    checkpoint.claim({"learning_rate": 1e38}, overwrite=False)
    with pytest.raises(ImagebeamError, match="Lower --learning_rate"):
        train(checkpoint, learning_rate=1e38)
    assert not checkpoint.claim({"learning_rate": 0.1}, overwrite=False)


def test_the_watcher_sees_every_epoch():
    seen = []

    class Watcher:
        def after_batches(self, epoch, batches, logs):
            assert 0 < batches <= 7
            assert "loss" in logs

        def after_epoch(self, epoch, logs):
            seen.append((epoch, sorted(logs)))

    train(epochs=2, watcher=Watcher())
    names = ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert seen == [(0, names), (1, names)]


def test_best_epoch_has_the_lowest_loss():
    state = FitState()
    assert [state.add({"val_loss": loss}) for loss in (3.0, 2.0, 2.0, 1.0, 4.0)] == [True, True, False, True, False]
    assert (state.best_epoch, state.best_loss, state.epochs) == (4, 1.0, 5)


def test_training_keeps_the_global_random_state():
    """Training must neither read nor move the global random state: a caller's own numbers stay what they were."""

    def draw():
        return float(np.random.random()), float(keras.random.uniform(()))

    keras.utils.set_random_seed(1)
    draw()  # makes Keras' generator, seeded from `random`, which threads of other tests may draw from later
    expected = draw()
    keras.utils.set_random_seed(1)
    draw()
    train(epochs=1)
    assert draw() == expected
