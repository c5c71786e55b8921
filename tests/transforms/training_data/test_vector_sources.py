from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.embedding_sets import blobs, write_output
from transforms.core.errors import ImagebeamError
from transforms.training_data.embeddings import open_embeddings
from transforms.training_data.row_index import LabelRules, SplitRules, index_rows
from transforms.training_data.row_stores import LocalCopy, ParquetRows
from transforms.training_data.splits import Split
from transforms.training_data.vector_sources import EpochOrder, MatrixSource, StreamSource, open_sources

ROWS, DIMENSION = 900, 512
MEGABYTES = ROWS * DIMENSION * 4 / 2**20  # 1.8: a budget of 1 holds the validation rows, of 2 all


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    vectors, labels = blobs(ROWS, dimension=DIMENSION)
    vectors[:, 5] = 0.25  # a value that never changes
    folder = write_output(tmp_path_factory.mktemp("set"), vectors, labels)
    embeddings = open_embeddings([folder])
    return vectors, embeddings, index_rows(embeddings, LabelRules(), SplitRules(validation=0.15, test=0.2))


def gather(source, order=None):
    vectors, rows = zip(*source.blocks(order), strict=True)
    return np.concatenate(vectors), np.concatenate(rows)


@pytest.fixture(params=["held", "copied", "Parquet"])
def sources(request, opened):
    """The ways of reading: all rows in memory, or only the validation rows."""
    _, embeddings, index = opened
    return open_sources(embeddings, index, 2 if request.param == "held" else 1, local_copy=request.param != "Parquet")


@pytest.mark.parametrize(
    ("budget", "local_copy", "store"), [(2, True, None), (1, True, LocalCopy), (1, False, ParquetRows)]
)
def test_vectors_are_held_in_memory_if_they_fit(opened, budget, local_copy, store):
    _, embeddings, index = opened
    sources = open_sources(embeddings, index, budget, local_copy=local_copy)
    assert isinstance(sources.validation, MatrixSource)
    assert type(getattr(sources.train, "store", None)) is (store or type(None))


def test_a_source_has_the_rows_of_its_split(opened, sources):
    vectors, _, index = opened
    for source, split in ((sources.train, Split.TRAIN), (sources.validation, Split.VALIDATION)):
        found, rows = gather(source)
        assert rows.tolist() == index.rows(split).tolist()
        assert np.array_equal(found, vectors[rows])
        assert source.rows == len(rows)
        assert source.dimension == DIMENSION


def test_validation_rows_larger_than_memory_are_streamed(tmp_path):
    vectors, labels = blobs(900, dimension=512)
    embeddings = open_embeddings([write_output(tmp_path, vectors, labels)])
    index = index_rows(embeddings, LabelRules(), SplitRules(validation=0.6, test=0.0))
    found, rows = gather(open_sources(embeddings, index, 1).validation)
    assert rows.tolist() == index.rows(Split.VALIDATION).tolist()
    assert np.array_equal(found, vectors[rows])


def test_mean_and_deviation_are_those_of_the_training_rows(opened, sources):
    vectors, _, index = opened
    train = vectors[index.rows(Split.TRAIN)].astype(np.float64)
    assert sources.mean == pytest.approx(train.mean(axis=0), rel=1e-4, abs=1e-6)
    assert sources.deviation[5] == 1
    assert np.delete(sources.deviation, 5) == pytest.approx(np.delete(train.std(axis=0), 5), rel=1e-4)


def test_every_epoch_has_each_row_once_in_an_order_of_its_own(opened, sources):
    vectors, _, index = opened
    orders = []
    for seed, epoch in ((3, 0), (3, 0), (3, 1), (4, 0)):
        order = EpochOrder(seed)
        order.begin_epoch(epoch)
        found, rows = gather(sources.train, order.generator())
        assert np.array_equal(np.sort(rows), index.rows(Split.TRAIN))
        assert np.array_equal(found, vectors[rows])
        orders.append(rows.tolist())
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("local_copy", [True, False])
def test_a_stream_mixes_rows_that_lie_far_apart(opened, local_copy):
    _, embeddings, index = opened
    source = open_sources(embeddings, index, 1, local_copy=local_copy).train
    assert isinstance(source, StreamSource)
    assert source.pool_rows == 64
    _, rows = gather(source, np.random.default_rng(0))
    for start in range(0, len(rows) - 64, 64):
        pool = rows[start : start + 64]
        assert np.ptp(pool) > 64
        # The rows of a piece are shuffled among the others: neighbours are neighbours by chance only.
        assert (np.abs(np.diff(pool)) == 1).mean() < 0.15


def test_local_copy_larger_than_the_disk_is_refused(opened, monkeypatch):
    _, embeddings, index = opened
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**5))
    with pytest.raises(ImagebeamError, match=r"0\.0 GB free.*TMPDIR.*--no_local_copy"):
        open_sources(embeddings, index, 1)
    open_sources(embeddings, index, 1, local_copy=False)
    open_sources(embeddings, index, 2)


def test_nan_is_found_before_training(tmp_path):
    for row in range(0, 40, 13):  # whatever its split
        vectors, labels = blobs(40, dimension=4, classes=2)
        vectors[row, 0] = np.nan
        folder = write_output(tmp_path / str(row), vectors, labels)
        embeddings = open_embeddings([folder])
        index = index_rows(embeddings, LabelRules(), SplitRules(0.3, 0.3))
        with pytest.raises(ImagebeamError, match=f"key-{row}"):
            open_sources(embeddings, index, 1)


def test_tensorflow_gets_a_copy():
    held = np.ones((64, 16), np.float32)
    blocks = list(MatrixSource(held, np.arange(64)).blocks(None))
    assert [vectors.shape for vectors, _ in blocks] == [(64, 16)]
    assert not any(np.shares_memory(vectors, held) for vectors, _ in blocks)
