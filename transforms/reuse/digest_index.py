"""An index from image digests to parts of other runs: sorted files, searched without loading them.

Twelve bytes a row: the first eight of the digest, and the number of the part. They are sorted in buckets on the
launcher's disk, so that memory does not grow with the runs; the caller then compares whole digests.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.batching import map_ahead
from transforms.parts import part_files
from transforms.storage.resuming import open_resuming

INDEX_FOLDER = "reuse"
"""Below a run's folder, while it is under way."""

_DIGESTS, _PARTS, _NAMES = "digests.u64", "parts.u32", "parts.json"
_BUCKET_BITS = 6
_READ_AT_ONCE = 8
_ENTRY = np.dtype([("digest", "<u8"), ("part", "<u4")])


@dataclass(frozen=True)
class ReusedRun:
    """A run that rows are taken from.

    Attributes:
        output: its folder.
        generation: of its parts.
    """

    output: str
    generation: str = ""


def write_index(output: str, runs: Sequence[ReusedRun]) -> int:
    """Write the index of the runs' rows below a run's folder; returns how many rows it holds.

    Raises:
        DamagedPartError: for a part that is none, or is damaged.
        OSError: if a part cannot be read, or the index not be written.
    """
    names: list[tuple[int, str]] = []
    rows = 0
    with tempfile.TemporaryDirectory(prefix="imagebeam-") as folder, contextlib.ExitStack() as stack:
        paths = [Path(folder, str(number)) for number in range(1 << _BUCKET_BITS)]
        buckets = [stack.enter_context(path.open("wb", buffering=0)) for path in paths]
        for run, unit_id, digests in _read_parts(runs):
            entries = np.empty(len(digests), _ENTRY)
            entries["digest"], entries["part"] = digests, len(names)
            names.append((run, unit_id))
            rows += len(entries)
            places = digests >> np.uint64(64 - _BUCKET_BITS)
            for bucket in np.unique(places):
                buckets[bucket].write(entries[places == bucket].tobytes())
        with Path(folder, _DIGESTS).open("wb") as digests_file, Path(folder, _PARTS).open("wb") as parts_file:
            for path in paths:
                entries = np.fromfile(path, _ENTRY)
                entries = entries[np.argsort(entries["digest"], kind="stable")]
                entries["digest"].tofile(digests_file)
                entries["part"].tofile(parts_file)
        for name in (_DIGESTS, _PARTS):
            storage.publish_file(storage.join(output, INDEX_FOLDER, name), Path(folder, name))
    storage.publish(storage.join(output, INDEX_FOLDER, _NAMES), json.dumps(names).encode())
    return rows


def delete_index(output: str) -> None:
    """Remove the index of a run, where there is one."""
    storage.delete_folder(storage.join(output, INDEX_FOLDER))


def _read_parts(runs: Sequence[ReusedRun]) -> Iterator[tuple[int, str, np.ndarray]]:
    """(number of the run, unit id, first eight bytes of each row's digest) of the parts of the runs' generations."""
    places = (
        (number, unit_id, uri)
        for number, run in enumerate(runs)
        for unit_id, uri in part_files.list_parts(storage.join(run.output, part_files.EMBEDDINGS))
    )

    def read(place: tuple[int, str, str]) -> tuple[int, str, np.ndarray] | None:
        number, unit_id, uri = place
        commit = part_files.read_commit(uri)
        if commit is None or commit.generation != runs[number].generation:
            return None
        return number, unit_id, _digests(uri)

    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="digests") as pool:
        for part in map_ahead(read, places, pool, 2 * _READ_AT_ONCE):
            if part is not None:
                yield part


def _digests(uri: str) -> np.ndarray:
    with open_resuming(uri) as source:
        try:
            part = pq.ParquetFile(source, page_checksum_verification=True).read(["sha256"])
        except (OSError, pa.ArrowException) as error:
            if source.fault is not None:
                raise
            raise part_files.DamagedPartError(uri, " ".join(str(error).split())) from error
    column = part["sha256"].to_pylist()
    return np.frombuffer(bytes.fromhex("".join(sha256[:16] for sha256 in column)), ">u8").astype(np.uint64)


class DigestIndex:
    """An index that `write_index` wrote. The files of a remote one are copied to this machine first.

    Args:
        output: of the run that it lies below.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, output: str) -> None:
        self._names: list[tuple[int, str]] = json.loads(storage.read_bytes(_uri(output, _NAMES)))
        self._files = contextlib.ExitStack()
        self._digests = self._map(_uri(output, _DIGESTS), np.uint64)
        self._parts = self._map(_uri(output, _PARTS), np.uint32)

    def _map(self, uri: str, dtype: type[np.unsignedinteger]) -> np.ndarray:
        path = self._files.enter_context(storage.local_file(uri))
        return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)

    def find(self, sha256: str) -> Iterable[tuple[int, str]]:
        """(number of the run, unit id) of the parts that may hold an image with these bytes."""
        wanted = np.uint64(int(sha256[:16], 16))
        first = int(np.searchsorted(self._digests, wanted))
        last = int(np.searchsorted(self._digests, wanted, side="right"))
        return (self._names[part] for part in self._parts[first:last])


def _uri(output: str, name: str) -> str:
    return storage.join(output, INDEX_FOLDER, name)
