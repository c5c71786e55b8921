import numpy as np
import pytest

from transforms.models.engines.prediction import predict_rows


class Sums:
    """A model that gives each row's sum and keeps the sizes of its batches."""

    def __init__(self):
        self.sizes = []

    def predict_on_batch(self, batch):
        self.sizes.append(len(batch))
        return batch.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("backend", "sizes"), [("tensorflow", [32, 32, 9]), ("torch", [32, 32, 9]), ("jax", [32, 32, 16])]
)
def test_batches_have_few_sizes_where_each_is_compiled(monkeypatch, backend, sizes):
    monkeypatch.setattr("keras.backend.backend", lambda: backend)
    rows, model = np.arange(73 * 3, dtype=np.float32).reshape(73, 3), Sums()
    assert np.array_equal(predict_rows(model, rows, 32), rows.sum(axis=1, keepdims=True))
    assert model.sizes == sizes


def test_any_number_of_rows_gives_at_most_three_sizes(monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    model = Sums()
    for count in range(1, 101):
        assert predict_rows(model, np.ones((count, 2), np.float32), 32).shape == (count, 1)
    assert set(model.sizes) == {8, 16, 32}
    assert predict_rows(model, np.ones((3, 2), np.float32), 4).shape == (3, 1)
    assert model.sizes[-1] == 4
