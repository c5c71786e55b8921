"""Inputs that cost far more than they weigh: bounded, as failures of their own records, and no neighbour is lost."""

import ast
import base64
import gzip
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from tests.support.planned import all_of, shard_at, units_in
from tests.support.shard_files import write_parquet
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record
from transforms.inputs.plan import cut_shard
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records

ROOT = Path(__file__).parents[3]


def outcomes(path, input_format, options=None):
    """The error type of each record; None where there is none."""
    options = options or ReadOptions()
    units = units_in(cut_shard(shard_at(path, input_format), 100, options))
    items = [item for unit in units for item in read_records(unit, options)]
    return [None if isinstance(item, Record) else item.error_type for item in items]


def member(name, data, **pax_headers):
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), pax_headers
    return info.tobuf(tarfile.PAX_FORMAT) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def write_archive(path, *members):
    path.write_bytes(b"".join(members) + bytes(1024))
    return path


HOLES = {
    "of 7 GB": ({"GNU.sparse.realsize": str(7 << 30)}, b"1\n0\n0\n", "too_large"),
    "without their number": ({}, b"nothing", "corrupt"),
    "that are not there": ({}, b"999999999\n0\n0\n", "corrupt"),
}


@pytest.mark.parametrize("what", list(HOLES))
def test_sparse_member_is_one_failure(tmp_path, what):
    headers, data, error = HOLES[what]
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.jpg", **headers}
    path = write_archive(
        tmp_path / "x.tar", member("a.jpg", b"1"), member("b.jpg", data, **sparse), member("c.jpg", b"3")
    )
    assert outcomes(path, "webdataset") == [None, error, None]


@pytest.mark.parametrize("text", ["0,x", "x,0"])
def test_damaged_sparse_map_is_one_failure(tmp_path, text):
    sparse = {"GNU.sparse.map": text, "GNU.sparse.size": "1"}
    path = write_archive(
        tmp_path / "x.tar", member("a.jpg", b"1"), member("b.jpg", b"2", **sparse), member("c.jpg", b"3")
    )
    assert outcomes(path, "webdataset") == [None, "corrupt", None]


def test_negative_member_size_ends_the_archive(tmp_path):
    """Its end would be before its start, so that reading goes round for ever (CVE-2025-8194)."""
    info = tarfile.TarInfo("b.jpg")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" + b"\xff" * 9 + b"\xf8\x00"
    block[148:156] = b"%06o\0 " % sum([*block[:148], *b" " * 8, *block[156:]])
    path = write_archive(tmp_path / "x.tar", member("a.jpg", b"1"), bytes(block), member("c.jpg", b"3"))
    assert outcomes(path, "webdataset")[-1] == "corrupt"


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.csv.gz"])
def test_endless_line_is_one_failure(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(b"image")
    row = b'{"uri": "a.jpg"}\n' if "jsonl" in name else b"a.jpg\n"
    text = (b"" if "jsonl" in name else b"uri\n") + row + b" " * (9 << 20) + b"\n" + row
    (tmp_path / name).write_bytes(gzip.compress(text, 1) if name.endswith("gz") else text)
    found = outcomes(tmp_path / name, "manifest")
    assert [error is None for error in found] == [True, False, True]


def test_a_long_field_is_no_endless_line(tmp_path):
    """The csv module's own limit is 131,072 characters: a picture in base64 is longer."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    rows = [f"a.jpg,{'x' * size}" for size in (1, 131_073, 3_900_000, 4 << 20, 1)]
    (tmp_path / "x.csv").write_text("\n".join(["uri,picture", *rows]))
    assert outcomes(tmp_path / "x.csv", "manifest") == [None, None, None, "corrupt", None]


def test_endless_line_is_not_kept_in_memory(tmp_path):
    """300 MB of one line."""
    with gzip.open(tmp_path / "x.jsonl.gz", "wb", 1) as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert peak_of(tmp_path / "x.jsonl.gz", "manifest") < 100


MEASURED = """
import re, sys
from tests.transforms.readers.test_bounded import outcomes
def peak():  # not getrusage's, which begins with what the parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
before = peak()
outcomes(sys.argv[1], sys.argv[2])
print(peak() - before)
"""


def in_a_process(path):
    """The outcomes of a Parquet file that may end the process that reads it."""
    code = "import sys, tests.transforms.readers.test_bounded as t; print(t.outcomes(sys.argv[1], 'parquet'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT, check=True, text=True
    )
    return ast.literal_eval(done.stdout)


def peak_of(path, input_format):
    """MiB of memory that reading a shard takes, in a process of its own: a fork of one with threads may crash."""
    command = [sys.executable, "-c", MEASURED, str(path), input_format]
    return int(subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout)


def test_peak_is_that_of_what_is_read(tmp_path):
    path = write_parquet(tmp_path / "x", {"image": [random.Random(0).randbytes(50 << 20)]}, 1)
    assert 50 <= peak_of(path, "parquet") < 300


def repeated(value, count, kind):
    """One value that many rows refer to."""
    values = pa.array([value], kind)
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), values)


def write_repeated(path, columns):
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    return path


@pytest.mark.parametrize("size", [4 << 20, 80 << 20])
def test_dictionary_value_is_held_once(tmp_path, size):
    """16 rows of 80 MB are 1.3 GB; of 4 MB they are what the user allows."""
    path = write_repeated(tmp_path / "x", {"image": repeated(bytes(size), 16, pa.binary())})
    assert peak_of(path, "parquet") < 400
    assert outcomes(path, "parquet") == [None if size < 64 << 20 else "too_large"] * 16


def test_other_columns_are_bounded_too(tmp_path):
    columns = {"image": [b"1"] * 20, "label": repeated("x" * (80 << 20), 20, pa.string())}
    path = write_repeated(tmp_path / "x", columns)
    assert peak_of(path, "parquet") < 200
    assert outcomes(path, "parquet") == ["too_large"] * 20


class _Keys(encryption.KmsClient):  # type: ignore[misc]
    def wrap_key(self, key, name):
        return base64.b64encode(key)


@pytest.mark.parametrize(
    ("encrypted", "expected"), [("image", ["unsupported"] * 2), ("label", ["unsupported"] * 2), ("other", [None, None])]
)
def test_encrypted_columns_are_failures_where_they_are_asked_for(tmp_path, encrypted, expected):
    """Arrow ends the process where it is asked for what it knows of an encrypted column."""
    factory = encryption.CryptoFactory(lambda _: _Keys())
    settings = encryption.EncryptionConfiguration("footer", column_keys={"key": [encrypted]}, plaintext_footer=True)
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    table = pa.table({"image": [b"1", b"2"], "label": ["a", "b"], "other": [1, 2]})
    with pq.ParquetWriter(tmp_path / "x", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    assert in_a_process(tmp_path / "x") == expected


def test_a_column_that_its_footer_contradicts_is_a_failure(tmp_path):
    """A histogram of levels beside a column that has none ends the process, too; some writers' are of another size."""
    path = tmp_path / "x"
    pq.write_table(pa.table({"image": [b"1", b"2"]}), path, store_schema=False)
    data = path.read_bytes()
    optional, required = (b"\x25" + kind + b"\x18\x05image" for kind in (b"\x02", b"\x00"))
    assert data.count(optional) == 1
    path.write_bytes(data.replace(optional, required))
    assert in_a_process(path) == ["corrupt"] * 2


def test_list_of_millions_is_one_failure(tmp_path):
    lists = pa.array([[1], list(range(3_000_000)), [3]], pa.list_(pa.int64()))
    path = write_parquet(tmp_path / "x", {"image": [b"1", b"2", b"3"], "label": lists}, 9)
    assert outcomes(path, "parquet", ReadOptions(max_record_bytes=1 << 20)) == [None, "too_large", None]


def test_columns_are_bounded_whatever_their_names(tmp_path):
    path = write_repeated(tmp_path / "x", {"an.image": repeated(bytes(80 << 20), 2, pa.binary())})
    options = ReadOptions(image_column="an.image")
    (unit,) = units_in(cut_shard(shard_at(path, InputFormat.PARQUET), 9, options))
    assert ["row group inflates" in item.message for item in all_of(Failure, read_records(unit, options))] == [True] * 2


def test_a_rows_size_is_its_own_where_arrow_keeps_a_dictionary(tmp_path):
    """Sixteen rows that are read at once share one of 5 MB, where a row may have 2."""
    images = pa.array([bytes([number]) * (300 << 10) for number in range(16)] + [b"x" * (3 << 20)])
    path = write_parquet(tmp_path / "x", {"image": images.dictionary_encode()}, 17)
    assert pa.types.is_dictionary(pq.read_schema(path).field("image").type)
    assert outcomes(path, "parquet", ReadOptions(max_record_bytes=1 << 20)) == [None] * 16 + ["too_large"]


def test_a_manifest_of_parquet_is_bounded_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image")
    path = write_repeated(tmp_path / "x.parquet", {"uri": repeated("x" * (80 << 20), 2_000, pa.string())})
    assert peak_of(path, "manifest") < 200
    mixed = write_parquet(tmp_path / "y.parquet", {"uri": ["a.jpg", "x" * (5 << 20), "a.jpg"]}, 9)
    assert outcomes(mixed, "manifest") == [None, "too_large", None]


def test_row_groups_are_read_from_any_row(tmp_path):
    """Slices begin anywhere in a row group, whatever the batches that it is decoded in."""
    path = write_parquet(tmp_path / "x", {"image": [bytes([value]) for value in range(100)]}, 40)
    for rows in (7, 16, 33):
        units = units_in(cut_shard(shard_at(path, InputFormat.PARQUET), rows, ReadOptions()))
        items = [item for unit in units for item in read_records(unit, ReadOptions())]
        assert [record.data[0] for record in all_of(Record, items)] == list(range(100))
