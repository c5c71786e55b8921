"""Parquet files of a run: their digests, and their footers by two ranged reads.

A file's footer holds the digest of all bytes before it. So the digest of the footer, which is known from the file's end
alone, stands for every byte.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage

DATA_KEY = b"imagebeam.data_sha256"
"""Footer entry: SHA-256 of the bytes before the footer."""

_MAGIC = b"PAR1"
_END = 8
"""Bytes behind the footer: its length, and the magic."""

_FIRST_READ = 64 << 10
"""Longer than most footers, so that one read does."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What identifies the bytes of a Parquet file of a run.

    Attributes:
        bytes: its size.
        footer_sha256: of its footer, from there to its end.
        data_sha256: of what comes before, as the footer says; None where it does not say.
        sha256: of the whole file; None where only the footer was read.
    """

    bytes: int
    footer_sha256: str
    data_sha256: str | None
    sha256: str | None = field(default=None, compare=False)


def to_parquet(
    table: pa.Table, row_group_size: int, use_dictionary: list[str], entries: Mapping[bytes, bytes] | None = None
) -> tuple[bytes, StoredFile]:
    """The bytes of a table as a Parquet file with page checksums, and what identifies them.

    Args:
        table: rows, and metadata, which the footer holds twice: as its own, and in base64 with Arrow's schema.
        row_group_size: rows in a row group at most.
        use_dictionary: columns whose values repeat.
        entries: metadata too long to be held twice.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, table.schema, compression="zstd", write_page_checksum=True, use_dictionary=use_dictionary
    ) as writer:
        if table.num_rows:  # Some readers refuse a row group of no rows.
            writer.write_table(table, row_group_size=row_group_size)
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest().encode()
        writer.add_key_value_metadata({**(entries or {}), DATA_KEY: digest})
    data = buffer.getvalue()
    return data, identify(data)


def identify(data: bytes) -> StoredFile:
    """What identifies a Parquet file's bytes.

    Raises:
        ValueError: if they are none, or are not those that the file's own footer speaks of.
    """
    start = _footer_start(data[-_END:], len(data))
    footer = parse_footer(data[start:])
    said = _data_sha256(footer)
    if said is not None and hashlib.sha256(memoryview(data)[:start]).hexdigest() != said:
        raise ValueError("its bytes are not those that its footer speaks of")
    return StoredFile(len(data), hashlib.sha256(data[start:]).hexdigest(), said, hashlib.sha256(data).hexdigest())


def read_footer(uri: str) -> tuple[pq.FileMetaData, StoredFile]:
    """A file's footer by one or two ranged reads, and what identifies its bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read.
        ValueError: if it is no Parquet file.
    """
    with storage.open_read(uri) as source:
        size = source.seek(0, io.SEEK_END)
        source.seek(max(0, size - _FIRST_READ))
        tail = source.read()
        start = _footer_start(tail[-_END:], size)
        if start < size - len(tail):
            source.seek(start)
            tail = source.read()
        tail = tail[len(tail) - (size - start) :]
    footer = parse_footer(tail)
    return footer, StoredFile(size, hashlib.sha256(tail).hexdigest(), _data_sha256(footer))


def parse_footer(tail: bytes) -> pq.FileMetaData:
    """The footer in a file's last bytes.

    Raises:
        ValueError: if it cannot be understood.
    """
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + tail))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _footer_start(end: bytes, size: int) -> int:
    """Where the footer of a file of `size` bytes starts, by its last bytes."""
    start = size - _END - int.from_bytes(end[:4], "little")
    if len(end) < _END or end[4:] != _MAGIC or start < len(_MAGIC):
        raise ValueError("it does not end as a Parquet file does")
    return start


def _data_sha256(footer: pq.FileMetaData) -> str | None:
    found = (footer.metadata or {}).get(DATA_KEY)
    return None if found is None else found.decode("ascii", "replace")
