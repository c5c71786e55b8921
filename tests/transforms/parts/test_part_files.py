import hashlib
import json
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.core.formats import EmbeddingDtype, EmbeddingType, InputFormat
from transforms.core.spec import EmbedderSpec
from transforms.core.types import Failure, Row, Stage, Unread
from transforms.parts import part_files
from transforms.parts.part_files import PartOptions, read_commit, rows_to_table, write_unit
from transforms.readers.units import Shard, ShardSlice, ShardUnit
from transforms.storage.files import FileInfo

SPEC = EmbedderSpec("VGG16", "ab" * 32)
SHARD = Shard(FileInfo("/in/a.tfrecord", 99, "v1"), InputFormat.TFRECORD)
UNIT = ShardUnit((ShardSlice(SHARD, 10, 5),))
KEEP = (("camera", pa.string()), ("tags", pa.list_(pa.string())))


def make_rows(count, dimension=4):
    vectors = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    return [
        Row(
            key=f"a#{index}",
            uri="/in/a.tfrecord",
            label=None if index == 1 else f"class {index % 2}",
            width=100 + index,
            height=50,
            sha256=hashlib.sha256(b"%d" % index).hexdigest(),
            vectors={"embedding": vectors[index]},
            extras={"camera": "left", "tags": ["x", "y"][: index % 3]},
        )
        for index in range(count)
    ]


FAILURES = [
    Failure("a#3", "/in/a.tfrecord", Stage.DECODE, "truncated", "image file is truncated", "cd" * 32),
    Failure("a#4", "/in/a.tfrecord", Stage.READ, "corrupt", "bad CRC"),
]


def write(tmp_path, rows, failures=(), options=None, dimension=4):
    options = options or PartOptions(keep_columns=KEEP)
    table = rows_to_table(rows, {"embedding": dimension}, options)
    return write_unit(str(tmp_path), UNIT, table, failures, SPEC, icc_profiles_ignored=2)


def test_part_holds_rows_and_metadata(tmp_path):
    rows = make_rows(3)
    commit = write(tmp_path, rows, FAILURES)
    path = tmp_path / "embeddings" / f"part-{UNIT.id}.parquet"
    assert commit.part_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert commit.part_bytes == path.stat().st_size
    table = pq.read_table(path, page_checksum_verification=True)
    assert table.column_names == ["key", "uri", "label", "width", "height", "sha256", "camera", "tags", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
    assert table["label"].to_pylist() == ["class 0", None, "class 0"]
    assert table["tags"].to_pylist() == [[], ["x"], ["x", "y"]]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), [row.vectors["embedding"] for row in rows])
    metadata = table.schema.metadata
    assert metadata[b"imagebeam.fingerprint"].decode() == SPEC.fingerprint
    assert EmbedderSpec.from_json(metadata[b"imagebeam.spec"]) == SPEC
    about = json.loads(metadata[b"imagebeam.unit"])
    assert (about["id"], about["embedded"], about["failed"]) == (UNIT.id, 3, 2)
    assert about["inputs"] == {"uri": "/in/a.tfrecord", "start": 10, "count": 5}


def test_a_commit_is_read_back_as_it_was_written(tmp_path):
    commit = write(tmp_path, make_rows(3), FAILURES)
    assert read_commit(part_files.embeddings_uri(str(tmp_path), UNIT.id)) == commit
    assert commit.failures == {"decode/truncated": 1, "read/corrupt": 1}
    assert read_commit(part_files.embeddings_uri(str(tmp_path), "0" * 16)) is None


def test_failures_file_exists_only_with_failures(tmp_path):
    write(tmp_path, make_rows(3), FAILURES)
    path = tmp_path / "failures" / f"part-{UNIT.id}.parquet"
    assert pq.read_table(path).to_pylist()[1] == {
        "key": "a#4",
        "uri": "/in/a.tfrecord",
        "stage": "read",
        "error_type": "corrupt",
        "message": "bad CRC",
        "sha256": None,
        "retryable": False,
    }
    write(tmp_path, make_rows(5))
    assert not path.exists()


def test_the_same_rows_make_the_same_bytes(tmp_path):
    commits = [write(tmp_path / name, make_rows(50), FAILURES) for name in "ab"]
    assert commits[0].part_sha256 == commits[1].part_sha256
    files = [sorted((tmp_path / name).rglob("*.parquet")) for name in "ab"]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_no_rows_still_make_a_part(tmp_path):
    write(tmp_path, [], FAILURES)
    table = pq.read_table(tmp_path / "embeddings")
    assert table.num_rows == 0
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 4)


@pytest.mark.parametrize("embedding_type", list(EmbeddingType))
def test_a_part_without_rows_has_no_row_group_and_vectors_no_nulls(tmp_path, embedding_type):
    from datasets import load_dataset

    options = PartOptions(embedding_type)
    write(tmp_path / "some", make_rows(3), options=options)
    write(tmp_path / "none", [], FAILURES, options=options)
    paths = [str(tmp_path / name / "embeddings" / f"part-{UNIT.id}.parquet") for name in ("some", "none")]
    assert [pq.ParquetFile(path).num_row_groups for path in paths] == [1, 0]
    assert all(not pq.read_schema(path).field("embedding").type.value_field.nullable for path in paths)
    loaded = load_dataset("parquet", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == pl.read_parquet(paths).height == 3
    commit = read_commit(paths[1])
    assert commit is not None
    assert commit.embedded == 0


def test_values_beyond_float16_are_failures():
    rows = make_rows(5)
    for row, value in zip(rows, (65_504, 65_519, 65_520, -1e6, 1e-9), strict=True):
        row.vectors["embedding"][1] = value
    kept, failed = PartOptions(embedding_dtype=EmbeddingDtype.FLOAT16).refuse(rows)
    assert [row.key for row in kept] == ["a#0", "a#1", "a#4"]
    assert [(one.key, one.error_type, one.stage) for one in failed] == [
        (f"a#{index}", "float16_overflow", Stage.EMBED) for index in (2, 3)
    ]
    table = rows_to_table(kept, {"embedding": 4}, PartOptions(embedding_dtype=EmbeddingDtype.FLOAT16))
    assert np.isfinite(np.stack(table["embedding"].to_numpy()).astype(np.float32)).all()
    assert PartOptions().refuse(rows) == (rows, [])


def test_page_checksums_find_a_flipped_bit(tmp_path):
    write(tmp_path, make_rows(500, 64), options=PartOptions(), dimension=64)
    path = tmp_path / "embeddings" / f"part-{UNIT.id}.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(6)
    assert column.path_in_schema.startswith("embedding")
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"CRC|checksum"):
        part_files.read_table(str(path))


def test_large_units_are_cut_into_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "ROW_GROUP_BYTES", 10_000)
    write(tmp_path, make_rows(200, 64), options=PartOptions(), dimension=64)
    metadata = pq.ParquetFile(tmp_path / "embeddings" / f"part-{UNIT.id}.parquet").metadata
    assert metadata.num_row_groups > 5
    assert metadata.num_rows == 200


@pytest.mark.parametrize("embedding_type", list(EmbeddingType))
@pytest.mark.parametrize("dtype", list(EmbeddingDtype))
def test_other_parquet_readers_agree(tmp_path, embedding_type, dtype):
    rows = make_rows(20)
    write(tmp_path, rows, options=PartOptions(embedding_type, dtype))
    expected = np.stack([row.vectors["embedding"] for row in rows]).astype(dtype.value)
    glob = str(tmp_path / "embeddings" / "*.parquet")

    keys, vectors, widths = zip(
        *duckdb.execute(f"select key, embedding, width from '{glob}' order by width").fetchall(), strict=True
    )
    assert list(keys) == [row.key for row in rows]
    np.testing.assert_array_equal(np.array(vectors, dtype.value), expected)
    assert list(widths) == [row.width for row in rows]

    frame = pl.read_parquet(glob).sort("width")
    assert frame["key"].to_list() == list(keys)
    np.testing.assert_array_equal(np.array(frame["embedding"].to_list(), dtype.value), expected)


def test_pandas_and_hugging_face_read_a_part(tmp_path):
    import pandas as pd
    from datasets import load_dataset

    rows = make_rows(20)
    write(tmp_path, rows, options=PartOptions())
    expected = np.stack([row.vectors["embedding"] for row in rows])
    path = str(tmp_path / "embeddings" / f"part-{UNIT.id}.parquet")
    np.testing.assert_array_equal(np.stack(pd.read_parquet(path)["embedding"].tolist()), expected)
    loaded = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.array(loaded["embedding"], np.float32), expected)
    assert loaded["key"][0] == "a#0"


def test_foreign_file_in_place_of_a_part_is_named(tmp_path):
    path = Path(part_files.embeddings_uri(str(tmp_path), UNIT.id))
    path.parent.mkdir()
    path.write_bytes(b"not parquet")
    with pytest.raises(OSError, match=r"is not a part of an Imagebeam run"):
        read_commit(str(path))


def test_unit_identity_and_version():
    def unit(version="v1", start=10, count=5):
        shard = Shard(FileInfo("/in/a.tfrecord", 99, version), InputFormat.TFRECORD)
        return ShardUnit((ShardSlice(shard, start, count),))

    assert unit() == UNIT
    assert unit("v2").id == UNIT.id
    assert unit("v2").version != UNIT.version
    assert unit(start=15).id != UNIT.id
    assert unit(count=4).id != UNIT.id


def test_reduced_part_does_not_count_removed_records(tmp_path):
    away = Unread("/in/a.tfrecord", "the mount was away", records=2)
    gone = Failure("a#5", "/in/a.tfrecord", Stage.READ, "unread", "away", retryable=True, unread=away)
    whole = write(tmp_path, make_rows(3), [*FAILURES, gone])
    assert (whole.failed, whole.retryable, len(whole.unread)) == (3, 1, 1)
    reduced = part_files.keep_rows(str(tmp_path), "embeddings", UNIT.id, {"a#0", "a#2"})
    assert (reduced.embedded, reduced.failed, reduced.retryable, reduced.unread) == (2, 0, 0, [])
    part = pq.read_table(tmp_path / "embeddings" / f"part-{UNIT.id}.parquet")
    assert part["key"].to_pylist() == ["a#0", "a#2"]
    assert read_commit(str(tmp_path / "embeddings" / f"part-{UNIT.id}.parquet")) == reduced
    assert not list((tmp_path / "failures").iterdir())
