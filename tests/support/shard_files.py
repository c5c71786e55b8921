"""Shards written by other libraries than the ones under test."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def images(count: int, seed: int = 0) -> list[bytes]:
    """Incompressible bytes that stand for encoded images, of many lengths."""
    source = random.Random(seed)
    return [source.randbytes(source.randrange(1, 5000)) for _ in range(count)]


def example(**features: Any) -> bytes:
    """A serialised `tf.train.Example`, made by TensorFlow; lists make features of several values."""
    import tensorflow as tf

    def feature(value: Any) -> tf.train.Feature:
        values = value if isinstance(value, list) else [value]
        if values and isinstance(values[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if values and isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    found = {name: feature(value) for name, value in features.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=found)).SerializeToString())


def write_tfrecord(path: str | Path, payloads: Iterable[bytes], compression: str = "") -> str:
    """Written by TensorFlow."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for payload in payloads:
            writer.write(payload)
    return str(path)


def write_tar(path: str | Path, members: Iterable[tuple[str, bytes]], mode: str = "w", **options: Any) -> str:
    """Written by `tarfile`; members are (name, bytes)."""
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a file in an archive."""
    stream = tar.extractfile(member)
    assert stream is not None, f"{member.name} is no file"
    return stream.read()


def samples(count: int) -> Iterator[tuple[str, bytes]]:
    """Members of WebDataset samples: image, label, and a JSON object."""
    for index, data in enumerate(images(count)):
        yield f"train/{index:05}.jpg", data
        yield f"train/{index:05}.cls", str(index % 7).encode()
        yield f"train/{index:05}.json", json.dumps({"caption": f"no. {index}", "score": index / 4}).encode()


def write_parquet(path: str | Path, columns: Mapping[str, Any], row_group_size: int) -> str:
    """Written by pyarrow."""
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def tfrecord_offsets(data: bytes | bytearray) -> list[int]:
    """Where the records of a plain TFRecord file start, and where it ends, by its published layout."""
    offsets = [0]
    while offsets[-1] < len(data):
        (length,) = struct.unpack_from("<Q", data, offsets[-1])
        offsets.append(offsets[-1] + 8 + 4 + length + 4)
    return offsets
