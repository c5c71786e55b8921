"""Detect a file's format by its first bytes."""

from __future__ import annotations

import codecs
import re
import struct

import google_crc32c

from transforms.core.formats import InputFormat
from transforms.images.sniff import sniff as sniff_image

HEAD_BYTES = 512
"""How much of a file is looked at."""

TFRECORD_HEADER = struct.Struct("<QI")
"""A record's length, and the masked CRC-32C of that."""

_MASK_DELTA = 0xA282EAD8

_ARCHIVES = (
    (b"PK\x03\x04", "a ZIP archive (or .npz, .docx, ...)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"ARROW1", "an Arrow (Feather) file"),
    (b"FEA1", "a Feather file"),
    (b"\xff\xff\xff\xff", "an Arrow stream, as Hugging Face's save_to_disk writes it"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x04\x22\x4d\x18", "compressed by LZ4"),
    (b"%PDF-", "a PDF"),
)

_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95}\](c]")
"""A protocol since 2003, and what may come first."""

_JSON = (b'{"', b"[{", b'["')

JSON_FILE = "a JSON file"

JSON_REMEDY = (
    "Write one object per line into a file whose name ends in .jsonl (pandas: to_json(path, orient='records', "
    "lines=True))"
)
"""What to do with JSON that is no table."""

_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "Zstandard"))


def known_format(head: bytes) -> InputFormat | None:
    """The format of a shard that begins with `head`; None where it is none."""
    if head.startswith(b"PAR1"):
        return InputFormat.PARQUET
    if head[257:262] == b"ustar":
        return InputFormat.WEBDATASET
    return InputFormat.TFRECORD if begins_as_tfrecord(head) else None


def other_kind(head: bytes) -> str | None:
    """What a file is that begins with `head` and is neither a shard nor an image; None where it cannot be told."""
    for signature, kind in _ARCHIVES:
        if head.startswith(signature):
            return kind
    if b"".join(head.removeprefix(codecs.BOM_UTF8).split()).startswith(_JSON):
        return JSON_FILE
    if _PICKLE.match(head):
        return "a Python pickle"
    for signature, kind in _COMPRESSED:
        if head.startswith(signature):
            return f"compressed by {kind}"
    return "a text file" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    """Whether it is several lines, and of no image; the last letter may be cut."""
    if sniff_image(head) is not None or b"\n" not in head or b"<svg" in head:
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def begins_as_tfrecord(head: bytes) -> bool:
    """Whether a length comes first and its checksum next."""
    return len(head) >= TFRECORD_HEADER.size and masked_crc(head[:8]) == TFRECORD_HEADER.unpack_from(head)[1]


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecords store it (tensorflow/core/lib/hash/crc32c.h), so that it is none of itself."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
