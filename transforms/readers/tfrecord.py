"""TFRecord shards of `tf.train.Example`: plain, gzip, zlib or Zstandard, told apart by their first bytes.

Format (tensorflow/core/lib/io/record_writer.h): uint64 length, uint32 masked CRC-32C of the length, the payload,
uint32 masked CRC-32C of the payload; all little-endian.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from transforms.core.limits import MAX_RECORD_BYTES
from transforms.core.types import Failure, Record
from transforms.images.sniff import Format, sniff
from transforms.readers import compression
from transforms.readers.base import (
    Cut,
    LeftOut,
    Place,
    RecordError,
    SampleLimits,
    caught,
    cut_at,
    is_sampled,
    make_record,
    shard_folder,
    too_large,
)
from transforms.readers.columns import PEEKED_RECORDS, infer
from transforms.readers.compression import Inflated, content
from transforms.readers.options import ReadOptions
from transforms.readers.sniff import TFRECORD_HEADER, begins_as_tfrecord, masked_crc
from transforms.readers.units import ShardSlice

_FOOTER = struct.Struct("<I")

_NO_FEATURES = "it has none: it is empty, or a tf.train.SequenceExample, whose lists are not read"

_BARE_IMAGE = "write each image as the feature 'image' of an Example"

Features = dict[str, list[Any]]
"""A `tf.train.Example`: feature name -> its values, bytes, floats or ints."""


def cut(stream: BinaryIO, rows_per_unit: int, options: ReadOptions, left_out: LeftOut) -> Iterator[Cut]:
    """Walk the headers, payloads skipped; see `base.ShardReader`."""
    del options, left_out
    source = _open(stream)
    return cut_at(_places(source), rows_per_unit, 0 if isinstance(source, Inflated) else None)


def read(stream: BinaryIO, part: ShardSlice, options: ReadOptions) -> Iterator[Record | Failure]:
    """The slice's records, both CRCs of each checked; see `base.ShardReader`."""
    uri = part.shard.file.uri
    source = _open(stream)
    source.seek(part.offset)
    folder = shard_folder(part.shard, options)
    for index in range(part.start, part.start + part.count):
        payload = _read_payload(source, options.max_record_bytes)
        yield caught(_record, f"{uri}#{index}", uri, payload, options, folder)


def _record(
    key: str, uri: str, payload: bytes | RecordError | None, options: ReadOptions, folder: str | None
) -> Record | Failure:
    """A record of its payload; None stands for one whose CRC does not match."""
    if isinstance(payload, RecordError):
        raise payload
    if payload is None:
        raise RecordError("corrupt", "the CRC of the record does not match its content")
    features = parse_example(payload)
    image = _image(features, options.image_column)
    wanted = (options.label_column, *options.kept_from.values())
    values = {name: _value(features[name]) for name in wanted if name in features}
    return make_record(key, uri, image, values.get(options.label_column), values, options, folder)


def columns(stream: BinaryIO, options: ReadOptions) -> dict[str, pa.DataType]:
    """The features of the first few records; see `base.ShardReader`.

    That of the images is binary if one of them holds an image: the others are failures, and PNM may be text.
    """
    source = _open(stream)
    rows = []
    for _ in range(PEEKED_RECORDS):
        try:
            payload = _read_payload(source, MAX_RECORD_BYTES)
        except EOFError:
            break
        if isinstance(payload, bytes):
            rows.append({name: _value(values) for name, values in parse_example(payload).items()})
    found = infer(rows)
    held = (row.get(options.image_column) for row in rows)
    if any(isinstance(value, bytes) and sniff(value) is not None for value in held):
        found[options.image_column] = pa.binary()
    return found


def sample(stream: BinaryIO, options: ReadOptions, limits: SampleLimits) -> Iterator[dict[str, Any]]:
    """The kept features of some records; see `base.ShardReader`."""
    wanted = set(options.kept_from.values())
    for payload in _sampled(stream, limits):
        try:
            features = parse_example(payload)
        except RecordError:
            continue
        yield {name: _value(features[name]) for name in wanted & features.keys()}


def _sampled(stream: BinaryIO, limits: SampleLimits) -> Iterator[bytes]:
    """The contents of some records, the last one among them where the end is reached; the others are passed over."""
    source = _open(stream)
    skipped: int | None = None
    with contextlib.suppress(EOFError, RecordError):  # The end, or what cannot be read on.
        for index in range(limits.records):
            if stream.tell() > limits.bytes:
                return
            start = source.tell()
            if is_sampled(index):
                payload = _read_payload(source, MAX_RECORD_BYTES)
                if isinstance(payload, bytes):
                    yield payload
            elif (length := _read_length(source)) is None:
                break
            else:
                source.seek(length + _FOOTER.size, io.SEEK_CUR)
            skipped = None if is_sampled(index) else start
    if skipped is not None and not isinstance(source, Inflated):  # What is compressed is read forward only.
        source.seek(skipped)
        with contextlib.suppress(EOFError):
            payload = _read_payload(source, MAX_RECORD_BYTES)
            if isinstance(payload, bytes):
                yield payload


def parse_example(payload: bytes) -> Features:
    """A serialised `tf.train.Example`.

    Raises:
        RecordError: if it is not one.
    """
    try:
        example = _example_class().FromString(payload)
        return {
            name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
            for name, feature in example.features.feature.items()
        }
    except DecodeError as error:
        kind = sniff(payload)
        told = f"{error}" if kind in (None, Format.TGA) else f"{kind} data; {_BARE_IMAGE}"  # A guess, of TGA.
        raise RecordError("corrupt", f"the record is no tf.train.Example ({told})") from error


def _image(features: Features, name: str) -> bytes:
    values = features.get(name)
    if values is None:
        there = f"its features are {', '.join(features)}" if features else _NO_FEATURES
        raise RecordError("no_image", f"the record has no feature {name!r}; {there}")
    if len(values) != 1 or not isinstance(values[0], bytes):
        what = f"{len(values)} values" if len(values) != 1 else type(values[0]).__name__
        raise RecordError("no_image", f"the feature {name!r} holds {what}, not the bytes of one image")
    return values[0]


def _value(values: list[Any]) -> Any:
    """The one value of a feature, the list of several, or None."""
    return values[0] if len(values) == 1 else values or None


def is_compressed(head: bytes) -> bool:
    """By the first `HEAD_BYTES`; see `base.ShardReader`.

    A header whose CRC matches proves a plain shard: a length may look like gzip's signature.
    """
    return not begins_as_tfrecord(head[: TFRECORD_HEADER.size]) and compression.is_compressed(head)


def _open(stream: BinaryIO) -> BinaryIO:
    return content(stream, is_compressed)


def _places(source: BinaryIO) -> Iterator[Place]:
    """Where each whole record starts.

    Raises:
        EOFError: if the shard ends inside a record.
        RecordError: if the next record cannot be found because its length is damaged.
    """
    offset = 0
    while (length := _read_length(source)) is not None:
        end = offset + TFRECORD_HEADER.size + length + _FOOTER.size
        source.seek(end - 1)
        if not source.read(1):
            raise EOFError("the shard ends inside a record")
        yield Place(offset, end)
        offset = end


def _read_length(source: BinaryIO) -> int | None:
    """The length of the payload that follows; None at the end of the shard."""
    header = source.read(TFRECORD_HEADER.size)
    if not header:
        return None
    if len(header) < TFRECORD_HEADER.size:
        raise EOFError("the shard ends inside the header of a record")
    length: int
    length, crc = TFRECORD_HEADER.unpack(header)
    if masked_crc(header[:8]) != crc:
        raise RecordError("corrupt", "the CRC of a record's length does not match: nothing that follows can be found")
    return length


def _read_payload(source: BinaryIO, limit: int) -> bytes | RecordError | None:
    """The next record's content; None where its CRC does not match; an error where it is passed over as too large."""
    length = _read_length(source)
    if length is None:
        raise EOFError("the shard has fewer records than before")
    if length > limit:
        source.seek(length + _FOOTER.size, io.SEEK_CUR)
        return too_large(length, limit)
    payload, footer = source.read(length), source.read(_FOOTER.size)
    if len(footer) < _FOOTER.size:
        raise EOFError("the shard ends inside a record")
    return payload if _FOOTER.unpack(footer)[0] == masked_crc(payload) else None


@functools.cache
def _example_class() -> Any:
    """`tf.train.Example` from its schema (tensorflow/core/example/feature.proto), without importing TensorFlow.

    It lives in a pool of its own, or it would clash with TensorFlow's.
    """
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="imagebeam", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    value_types = {"bytes_list": kinds.TYPE_BYTES, "float_list": kinds.TYPE_FLOAT, "int64_list": kinds.TYPE_INT64}
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, value_type) in enumerate(value_types.items(), start=1):
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, label=kinds.LABEL_REPEATED, type=value_type)
        _add_message(feature, name, number, f".imagebeam.{name}").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
    _add_message(entry, "value", 2, ".imagebeam.Feature")
    _add_message(features, "feature", 1, ".imagebeam.Features.FeatureEntry").label = kinds.LABEL_REPEATED
    _add_message(file.message_type.add(name="Example"), "features", 1, ".imagebeam.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("imagebeam.Example"))


def _add_message(parent: Any, name: str, number: int, type_name: str) -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    return parent.field.add(
        name=name, number=number, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE, type_name=type_name
    )
