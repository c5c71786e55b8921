"""Datasets for Keras, on its TensorFlow backend and on the others, held against a plain loop."""

import gc
import itertools
import threading
import weakref

import keras
import numpy as np
import pytest

from transforms.training_data.batches import to_dataset, vector_batches
from transforms.training_data.numpy_dataset import NumpyDataset, rebatch
from transforms.training_data.vector_sources import EpochOrder, MatrixSource, StreamSource

ROWS = 203
VECTORS = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
CLASSES = np.arange(ROWS, dtype=np.int32) % 7
NUMBERS = np.arange(ROWS)


@pytest.fixture(params=["tensorflow", "jax", "torch"])
def backend(request, monkeypatch):
    """What Keras says it computes with; a dataset needs no more of it."""
    if request.param == "tensorflow":
        pytest.importorskip("tensorflow")
    monkeypatch.setattr("keras.backend.backend", lambda: request.param)
    return request.param


def blocks_of(*sizes):
    """VECTORS and CLASSES in blocks of these sizes and a last one."""
    edges = [0, *np.cumsum(sizes), ROWS]
    for start, stop in itertools.pairwise(edges):
        yield VECTORS[start:stop].copy(), CLASSES[start:stop].copy()


def batches_of(dataset):
    return [tuple(np.array(array) for array in batch) for batch in dataset]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert [array.dtype for array in mine] == [array.dtype for array in theirs]
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def cut(batch_size, rows=NUMBERS):
    """The plain loop."""
    pieces = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [(VECTORS[piece], CLASSES[piece]) for piece in pieces]


def test_vectors_go_with_their_dataset():
    """TensorFlow keeps what gave them as long as the process is there."""
    source = MatrixSource(VECTORS.copy(), NUMBERS)
    dataset = vector_batches(source, lambda numbers: CLASSES[numbers], 29)
    model = keras.Sequential([keras.layers.Dense(7)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset, validation_data=dataset, epochs=2, shuffle=False, verbose=0)
    held = weakref.ref(source.vectors)
    del source, dataset
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("sizes", [(), (203,), (64, 64), (1, 1, 1), (5, 0, 100, 3), (29,) * 6])
@pytest.mark.parametrize("batch_size", [1, 29, 64, 203, 1000])
def test_blocks_of_any_size_make_the_batches_of_a_plain_loop(backend, sizes, batch_size):
    example = VECTORS[:0], CLASSES[:0]
    dataset = to_dataset(lambda: blocks_of(*sizes), example, ROWS, batch_size, 4)
    assert len(dataset) == len(cut(batch_size))
    for _ in range(2):
        assert_equal(batches_of(dataset), cut(batch_size))


def test_each_backend_gets_its_kind_of_dataset(backend):
    dataset = vector_batches(MatrixSource(VECTORS, NUMBERS), lambda rows: CLASSES[rows], 32)
    assert isinstance(dataset, keras.utils.PyDataset) == (backend != "tensorflow")


class Store:
    """Pieces of eleven rows."""

    dimension = 6
    piece_rows = (11,) * 18 + (5,)

    def read(self, pieces):
        rows = np.concatenate([NUMBERS[piece * 11 : piece * 11 + 11] for piece in pieces])
        return VECTORS[rows], rows


@pytest.mark.parametrize("source", [MatrixSource(VECTORS, NUMBERS), StreamSource(Store(), 50)], ids=["held", "stream"])
def test_epochs_have_their_own_reproducible_order(backend, source):
    order = EpochOrder(3)
    dataset = vector_batches(source, lambda rows: CLASSES[rows], 32, order)
    epochs = []
    for epoch in (0, 1, 0):
        order.begin_epoch(epoch)
        found = batches_of(dataset)
        rows = np.concatenate([rows for _, rows in source.blocks(order.generator())])
        assert_equal(found, cut(32, rows))
        epochs.append(np.concatenate([vectors for vectors, _ in found]))
    assert np.array_equal(epochs[0], epochs[2])
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(np.sort(epochs[0], axis=0), np.sort(VECTORS, axis=0))


def test_an_error_while_reading_is_raised(backend):
    def broken():
        yield VECTORS[:50], CLASSES[:50]
        raise OSError("the disk is gone")

    dataset = to_dataset(broken, (VECTORS[:0], CLASSES[:0]), ROWS, 32, 4)
    with pytest.raises(Exception, match="the disk is gone"):
        batches_of(dataset)


@pytest.mark.parametrize("rows", [ROWS - 32, ROWS + 32])
def test_wrong_number_of_rows_is_an_error(backend, rows):
    dataset = to_dataset(lambda: blocks_of(50), (VECTORS[:0], CLASSES[:0]), rows, 32, 4)
    with pytest.raises(Exception, match=r"batches|expected to contain"):
        batches_of(dataset)


class TestNumpyDataset:
    def make(self, batch_size=32):
        return NumpyDataset(lambda: blocks_of(50, 50), ROWS, batch_size)

    def test_restarts_at_batch_0(self):
        """Keras looks at the first batch to build a model, and a run may end in the middle of an epoch."""
        dataset = self.make()
        assert_equal([dataset[0]], cut(32)[:1])
        assert_equal([dataset[0], dataset[1]], cut(32)[:2])
        assert_equal(batches_of(dataset), cut(32))

    @pytest.mark.parametrize("indices", [(1,), (0, 0, 2), (0, 1, 1), (0, -1)])
    def test_refuses_batches_out_of_order(self, indices):
        dataset = self.make()
        for index in indices[:-1]:
            dataset[index]
        with pytest.raises(ValueError, match="in sequence"):
            dataset[indices[-1]]

    def test_leaves_no_thread_behind(self):
        def reading():
            return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]

        before = len(reading())
        dataset = self.make()
        dataset[0]
        del dataset
        batches_of(self.make())
        assert len(reading()) == before

    def test_a_batch_within_a_block_is_not_copied(self):
        block = VECTORS.copy(), CLASSES.copy()
        first, *_ = rebatch([block], 32)
        assert np.shares_memory(first[0], block[0])
