import numpy as np
import pytest

from transforms.core.errors import ImagebeamError
from transforms.training.checkpoint import Checkpoint

RUN = {"hidden_units": (4,), "seed": 0}


def test_run_is_claimed_once_and_resumed(tmp_path):
    checkpoint = Checkpoint(str(tmp_path))
    assert not checkpoint.exists()
    assert not checkpoint.claim(RUN, overwrite=False)
    assert checkpoint.exists()
    assert checkpoint.claim(RUN, overwrite=False)


def test_another_run_is_refused_naming_what_differs(tmp_path):
    checkpoint = Checkpoint(str(tmp_path))
    checkpoint.claim(RUN, overwrite=False)
    checkpoint.save_state({"epochs": 3}, [])
    with pytest.raises(ImagebeamError, match=r"hidden_units: 4 != 8") as caught:
        checkpoint.claim({**RUN, "hidden_units": (8,)}, overwrite=False)
    assert "seed" not in str(caught.value)
    assert checkpoint.load_state() is not None
    assert not checkpoint.claim({**RUN, "hidden_units": (8,)}, overwrite=True)
    assert checkpoint.load_state() is None


def test_state_round_trips_exactly(tmp_path):
    checkpoint = Checkpoint(str(tmp_path))
    arrays: list[np.ndarray] = [
        np.array([[0.1, np.pi]], np.float32),
        np.array(7, np.int64),
        np.arange(3, dtype=np.uint32),
    ]
    arrays += [np.full(2, number, np.float32) for number in range(20)]  # more than ten: not in order of their names
    checkpoint.save_state({"epochs": 2, "history": {"loss": [0.1]}}, arrays)
    state = checkpoint.load_state()
    assert state is not None
    values, found = state
    assert values == {"epochs": 2, "history": {"loss": [0.1]}}
    assert len(found) == len(arrays)
    for mine, theirs in zip(arrays, found, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)


def test_removing_leaves_other_files(tmp_path):
    (tmp_path / "classifier.keras").touch()
    checkpoint = Checkpoint(str(tmp_path))
    checkpoint.claim(RUN, overwrite=False)
    checkpoint.save_state({}, [])
    checkpoint.save_json("search.json", [1])
    assert checkpoint.load_json("search.json") == [1]
    checkpoint.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.keras"]
    assert checkpoint.load_json("search.json") is None
