import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.embedding_sets import SPEC, blobs, write_output
from transforms.core.errors import ImagebeamError, JobError
from transforms.core.formats import EmbeddingType
from transforms.core.spec import Pooling
from transforms.training_data.embeddings import ahead, open_embeddings


def read_all(embeddings):
    return np.concatenate(
        [embeddings.vectors(group, table) for group, table in embeddings.read(embeddings.groups, [embeddings.column])]
    )


@pytest.mark.parametrize("embedding_type", ["fixed_size_list", "list"])
@pytest.mark.parametrize("embedding_dtype", ["float32", "float16"])
def test_vectors_come_back_as_they_were_written(tmp_path, embedding_type, embedding_dtype):
    vectors, labels = blobs(230, dimension=5)
    write_output(tmp_path, vectors, labels, embedding_type=embedding_type, embedding_dtype=embedding_dtype)
    embeddings = open_embeddings([str(tmp_path)])
    read = read_all(embeddings)
    assert embeddings.rows == 230
    assert embeddings.dimension == 5
    assert len(embeddings.groups) == 5  # parts of 100, 100 and 30 rows in groups of at most 64
    assert read.dtype == np.float32
    assert np.array_equal(read, vectors.astype(embedding_dtype).astype(np.float32))


def test_several_outputs_are_one_set(tmp_path):
    vectors, labels = blobs(50)
    write_output(tmp_path / "a", vectors[:30], labels[:30])
    write_output(tmp_path / "b", vectors[30:], labels[30:])
    embeddings = open_embeddings([str(tmp_path / "a"), str(tmp_path / "b")])
    assert np.array_equal(read_all(embeddings), vectors)
    assert [group.start for group in embeddings.groups] == [0, 30]


def test_empty_parts_are_passed_over(tmp_path):
    vectors, labels = blobs(20)
    write_output(tmp_path / "a", vectors[:0], labels[:0])
    write_output(tmp_path / "b", vectors, labels)
    assert open_embeddings([str(tmp_path / "a"), str(tmp_path / "b")]).rows == 20
    with pytest.raises(ImagebeamError, match=r"every part .* has 0 rows"):
        open_embeddings([str(tmp_path / "a")])


def test_mixed_specs_are_refused_naming_the_field(tmp_path):
    vectors, labels = blobs(20)
    write_output(tmp_path / "a", vectors, labels)
    write_output(tmp_path / "b", vectors, labels, spec=dataclasses.replace(SPEC, pooling=Pooling.MAX))
    with pytest.raises(ImagebeamError, match="pooling: avg != max") as caught:
        open_embeddings([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "image_size" not in str(caught.value)


def test_different_columns_are_refused(tmp_path):
    vectors, labels = blobs(20)
    write_output(tmp_path / "a", vectors, labels)
    write_output(tmp_path / "b", vectors, labels, keep={"camera": (pa.string(), ["x"] * 20)})
    with pytest.raises(ImagebeamError, match="different columns: camera"):
        open_embeddings([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(ImagebeamError, match="no embeddings in"):
        open_embeddings([str(tmp_path)])


def test_an_unfinished_run_is_refused_unless_it_is_allowed(tmp_path):
    vectors, labels = blobs(20)
    write_output(tmp_path, vectors, labels, finished=False)
    with pytest.raises(ImagebeamError, match="allow_unfinished"):
        open_embeddings([str(tmp_path)])
    assert open_embeddings([str(tmp_path)], allow_unfinished=True).rows == 20


def test_a_part_that_is_gone_is_refused_unless_it_is_allowed(tmp_path):
    vectors, labels = blobs(300)
    write_output(tmp_path, vectors, labels)
    (tmp_path / "embeddings" / f"part-{1:016x}.parquet").unlink()
    with pytest.raises(ImagebeamError, match=f"part-{1:016x}.parquet .*gone"):
        open_embeddings([str(tmp_path)])
    assert open_embeddings([str(tmp_path)], allow_unfinished=True).rows == 200


@pytest.mark.parametrize("allow_unfinished", [False, True])
def test_parts_that_no_manifest_names_are_left_out_aloud(tmp_path, caplog, allow_unfinished):
    vectors, labels = blobs(300)
    write_output(tmp_path, vectors, labels)
    part = tmp_path / "embeddings" / f"part-{1:016x}.parquet"
    part.with_name(f"part-{8:016x}.parquet").write_bytes(part.read_bytes())
    assert np.array_equal(read_all(open_embeddings([str(tmp_path)], allow_unfinished=allow_unfinished)), vectors)
    assert f"1 part is not in its manifest, and left out, such as part-{8:016x}.parquet" in caplog.text


def test_the_embedding_column_must_be_named_where_there_are_several(tmp_path):
    vectors, labels = blobs(20)
    second = pa.list_(pa.float32(), 8)
    write_output(
        tmp_path, vectors, labels, column="embedding.block4", keep={"embedding.block5": (second, list(2 * vectors))}
    )
    with pytest.raises(ImagebeamError, match=r"embedding\.block5, embedding\.block4"):
        open_embeddings([str(tmp_path)])
    with pytest.raises(ImagebeamError, match="no such embedding column"):
        open_embeddings([str(tmp_path)], "embedding")
    assert np.array_equal(read_all(open_embeddings([str(tmp_path)], "embedding.block5")), 2 * vectors)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_by_its_key(tmp_path, value):
    vectors, labels = blobs(150)
    vectors[130, 3] = value
    write_output(tmp_path, vectors, labels)
    with pytest.raises(ImagebeamError, match=r"key-130.*NaN or infinity"):
        read_all(open_embeddings([str(tmp_path)]))


def test_a_vector_of_another_length_is_refused(tmp_path):
    vectors, labels = blobs(40)
    write_output(tmp_path / "a", vectors[:20], labels[:20], embedding_type=EmbeddingType.LIST)
    write_output(tmp_path / "b", vectors[20:, :6], labels[20:], embedding_type=EmbeddingType.LIST)
    with pytest.raises(ImagebeamError, match="not of length 8"):
        read_all(open_embeddings([str(tmp_path / "a"), str(tmp_path / "b")]))


def test_a_damaged_page_is_noticed(tmp_path):
    vectors, labels = blobs(100, dimension=64)
    write_output(tmp_path, vectors, labels)
    (path,) = Path(tmp_path, "embeddings").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(JobError, match=path.name):
        read_all(open_embeddings([str(tmp_path)]))


def test_a_file_that_is_no_part_is_refused(tmp_path):
    vectors, labels = blobs(20)
    write_output(tmp_path, vectors, labels)
    (path,) = Path(tmp_path, "embeddings").iterdir()
    path.write_bytes(b"not Parquet at all")
    with pytest.raises(ImagebeamError, match="not a Parquet file"):
        open_embeddings([str(tmp_path)])


def test_ahead_keeps_the_order_and_is_bounded():
    running, most, lock = 0, 0, threading.Lock()
    started: list[int] = []

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            started.append(number)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number * 2

    results = ahead(work, range(30), workers=3)
    assert next(results) == 0
    assert max(started, default=0) <= 3
    assert list(results) == [2 * number for number in range(1, 30)]
    assert most <= 3


def test_ahead_passes_errors_on():
    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    results = ahead(work, range(10), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
