"""TFRecord shards of `tf.train.Example`: plain, gzip or zlib, told apart by their first bytes.

Format (tensorflow/core/lib/io/record_writer.h): uint64 length, uint32 masked CRC-32C of the length, the payload,
uint32 masked CRC-32C of the payload; all little-endian.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import google_crc32c

from transforms.columns import Columns, as_label, missing_column
from transforms.errors import ImagebeamError
from transforms.readers import Cut, RecordError, ShardError
from transforms.types import ReadOptions, Record, WorkUnit

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_BUFFER_BYTES = 1 << 20


def cut(stream: BinaryIO, size: int, rows_per_unit: int) -> Iterator[Cut]:
    """Walk the headers, payloads skipped; see `readers.ShardReader`."""
    plain = _is_plain(stream)
    source = _decompressed(stream)
    index, offset, start, start_offset = 0, 0, 0, 0
    while True:
        try:
            length = _read_length(source)
            if length is None:
                break
            end = offset + _HEADER.size + length + _FOOTER.size
            if plain and end > size:
                raise ShardError(index, f"record {index} ends at byte {end:,}, but the file has {size:,} bytes")
            if not plain:
                _skip(source, length + _FOOTER.size, index)
            else:
                source.seek(end)
        except (ShardError, OSError, EOFError, zlib.error) as error:
            if index > start:
                yield Cut(start, index - start, start_offset)
            raise ShardError(index, str(error)) from error
        index, offset = index + 1, end
        if index - start == rows_per_unit:
            yield Cut(start, rows_per_unit, start_offset)
            start, start_offset = index, offset
    if index > start:
        yield Cut(start, index - start, start_offset)


def read(stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | RecordError]:
    """The unit's records; see `readers.ShardReader`."""
    assert unit.shard is not None
    uri = unit.shard.file.uri
    source = _decompressed(stream)
    source.seek(unit.offset)
    columns = Columns(options.keep_columns)
    for index in range(unit.start, unit.start + unit.count):
        length = _read_length(source)
        if length is None:
            raise EOFError(f"the shard ends before record {index}")
        payload, (crc,) = source.read(length), _FOOTER.unpack(_exactly(source, _FOOTER.size))
        key = f"{uri}#{index}"
        if _masked_crc(payload) != crc:
            yield RecordError(key, "corrupt", f"the CRC of record {index} does not match its payload")
            continue
        try:
            yield _record(key, uri, _features(payload), options, columns)
        except (ValueError, TypeError) as error:
            yield RecordError(key, "bad_record", str(error))


def check_columns(stream: BinaryIO, options: ReadOptions) -> ReadOptions:
    """Refuse features that the first record does not have; see `readers.ShardReader`."""
    source = _decompressed(stream)
    length = _read_length(source)
    if length is None:
        return options
    try:
        features = _features(source.read(length))
    except ValueError as error:
        raise ImagebeamError(f"the first record is no tf.train.Example ({error})") from error
    known = {name: type(values[0]).__name__ if values else "empty" for name, values in features.items()}
    if options.image_column not in known:
        raise missing_column("--image_column", options.image_column, "TFRecord features", known)
    for name, _ in options.keep_columns:
        if name not in known:
            raise missing_column("--keep_columns", name, "TFRecord features", known)
    return options


def _record(key: str, uri: str, features: dict[str, list[Any]], options: ReadOptions, columns: Columns) -> Record:
    data = features.get(options.image_column, [])
    if len(data) != 1 or not isinstance(data[0], bytes):
        raise ValueError(f"the feature {options.image_column!r} is not one bytes value; features: {sorted(features)}")
    values = {name: _scalar(features.get(name)) for name, _ in options.keep_columns}
    return Record(key, uri, data[0], as_label(_scalar(features.get(options.label_column))), columns.convert(values))


def _scalar(values: list[Any] | None) -> Any:
    """A feature's one value, its list of several, or None; bytes as text where they are text."""
    if not values:
        return None
    decoded = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    return decoded[0] if len(decoded) == 1 else decoded


def _features(payload: bytes) -> dict[str, list[Any]]:
    """A serialised `tf.train.Example` -> feature name -> values.

    Raises:
        ValueError: if it is not one.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        example = tf.train.Example.FromString(payload)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind else []
    return found


def _read_length(source: BinaryIO) -> int | None:
    """The payload's length from a header; None at the end.

    Raises:
        OSError: if the header is cut short or its CRC does not match.
    """
    header = source.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise EOFError("the shard ends inside a record's header")
    length, crc = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != crc:
        raise OSError("the CRC of a record's length does not match: the rest of the shard cannot be found")
    return int(length)


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _skip(source: BinaryIO, length: int, index: int) -> None:
    while length:
        chunk = source.read(min(length, _BUFFER_BYTES))
        if not chunk:
            raise ShardError(index, f"the shard ends inside record {index}")
        length -= len(chunk)


def _exactly(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise EOFError("the shard ends inside a record")
    return data


def _is_plain(stream: BinaryIO) -> bool:
    """A valid length CRC proves a plain shard: the signatures of gzip and zlib may also be a record's length."""
    head = stream.read(_HEADER.size)
    stream.seek(0)
    valid = len(head) == _HEADER.size and _masked_crc(head[:8]) == _HEADER.unpack(head)[1]
    return valid or not (head.startswith(b"\x1f\x8b") or _is_zlib(head))


def _is_zlib(head: bytes) -> bool:
    return len(head) > 1 and head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0


def _decompressed(stream: BinaryIO) -> BinaryIO:
    if _is_plain(stream):
        return stream
    head = stream.read(2)
    stream.seek(0)
    if head == b"\x1f\x8b":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    return cast(BinaryIO, io.BufferedReader(_ZlibReader(stream), _BUFFER_BYTES))


class _ZlibReader(io.RawIOBase):
    """A zlib stream as a file that can be read and sought forward, as `gzip.GzipFile` is for gzip."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inflater = zlib.decompressobj()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._inflater.eof:
            chunk = self._inflater.unconsumed_tail or self._stream.read(_BUFFER_BYTES)
            if not chunk:
                raise EOFError("the zlib stream ends early")
            data = self._inflater.decompress(chunk, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset if whence == io.SEEK_SET else self._position + offset
        if whence == io.SEEK_END or target < self._position:
            raise io.UnsupportedOperation("a zlib stream is read forward only")
        while self._position < target:
            if not self.readinto(memoryview(bytearray(min(_BUFFER_BYTES, target - self._position)))):
                break
        return self._position
