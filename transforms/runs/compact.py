"""Copy a finished run's rows into few large files, for warehouses that read many small ones slowly.

A run's own parts stay as they are: each is the commit of a unit. The copy is made in another folder, from bytes that
are those of the manifest, and is read back and compared with them, row group by row group.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.digests import file_sha256
from transforms.core.errors import ImagebeamError
from transforms.core.sealed_json import seal
from transforms.parts.part_files import FINGERPRINT_KEY, SPEC_KEY
from transforms.readers.column_types import is_list_type
from transforms.runs.copies import COMPACT_FILE, ROWS_FILE
from transforms.runs.manifest import read_manifest
from transforms.runs.verify import check_bytes


@dataclass(frozen=True)
class Compacted:
    """What was written."""

    files: int
    rows: int
    bytes: int


def compact(source: str, target: str, rows_per_file: int, rows_per_group: int) -> Compacted:
    """Copy the rows of a finished run, in the order of its manifest.

    Args:
        source: folder of the run.
        target: an empty folder, or one that an earlier attempt left unfinished.
        rows_per_file: of each file but the last.
        rows_per_group: of each row group but a file's last; it is held in memory.

    Raises:
        ImagebeamError: if there is no finished run, or the target holds something else.
        ValueError: if the manifest is damaged, a part is not as it says, or a file does not hold what was written.
        OSError: if the storage refuses.
    """
    manifest = read_manifest(source)
    _clear(target)
    parts = [part for part in manifest["parts"] if part["rows"]]
    groups, expected = (_row_groups(source, parts, rows_per_file, rows_per_group) for _ in range(2))
    files: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="imagebeam-") as folder:
        for number, tables in itertools.groupby(groups, operator.itemgetter(0)):
            path = Path(folder, f"rows-{number:05d}.parquet")
            rows = _write(path, (table for _, table in tables), manifest)
            storage.publish_file(storage.join(target, path.name), path)
            _compare(storage.join(target, path.name), (table for _, table in expected))
            files.append({"path": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)})
            path.unlink()
    about = {"source": source, **{name: manifest[name] for name in ("fingerprint", "spec")}, "files": files}
    storage.publish(storage.join(target, COMPACT_FILE), seal(about, indent=1))
    return Compacted(len(files), *(sum(file[name] for file in files) for name in ("rows", "bytes")))


def _clear(target: str) -> None:
    """Remove what an earlier attempt left unfinished.

    Raises:
        ImagebeamError: if anything else is there.
    """
    found = [info.uri for info in storage.list_below(target, "**")]
    others = [uri for uri in found if not ROWS_FILE.fullmatch(storage.basename(uri))]
    if others:
        raise ImagebeamError(f"{target} is not empty: it holds {storage.basename(others[0])}. Choose another --output.")
    for uri in found:
        storage.delete(uri)


def _row_groups(
    source: str, parts: Sequence[Mapping[str, Any]], rows_per_file: int, rows_per_group: int
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of the parts as row groups, each with the number of its file."""
    waiting: list[pa.Table] = []
    file = in_file = rows = 0
    for part in parts:
        table, offset = _read_part(source, part), 0
        while offset < table.num_rows:
            full = min(rows_per_group, rows_per_file - in_file)
            waiting.append(table.slice(offset, full - rows))
            offset += waiting[-1].num_rows
            rows += waiting[-1].num_rows
            if rows == full:
                yield file, pa.concat_tables(waiting).combine_chunks()
                in_file, waiting, rows = in_file + rows, [], 0
            if in_file == rows_per_file:
                file, in_file = file + 1, 0
    if waiting:
        yield file, pa.concat_tables(waiting).combine_chunks()


def _read_part(source: str, part: Mapping[str, Any]) -> pa.Table:
    """A part's rows, without metadata.

    Raises:
        ValueError: if it is gone, or its bytes are not those of the manifest.
    """
    uri = storage.join(source, part["path"])
    try:
        data = storage.read_bytes(uri)
        check_bytes(data, part)
    except FileNotFoundError as error:
        raise ValueError(f"{uri} is gone; see imagebeam verify") from error
    except ValueError as error:
        raise ValueError(f"{uri}: {error}; see imagebeam verify") from error
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    return table.replace_schema_metadata(None)


def _write(path: Path, tables: Iterator[pa.Table], manifest: Mapping[str, Any]) -> int:
    """Write a file of these row groups; how many rows."""
    first = next(tables)
    metadata = {FINGERPRINT_KEY: manifest["fingerprint"], SPEC_KEY: json.dumps(manifest["spec"])}
    rows = 0
    with contextlib.closing(
        pq.ParquetWriter(path, first.schema.with_metadata(metadata), compression="zstd", write_page_checksum=True)
    ) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table, row_group_size=table.num_rows)
            rows += table.num_rows
    return rows


def _compare(uri: str, expected: Iterator[pa.Table]) -> None:
    """Read a file back.

    Raises:
        ValueError: if a row group is not as expected.
    """
    with storage.open_read(uri) as source:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        for group in range(file.num_row_groups):
            table = next(expected)
            found = file.read_row_group(group).cast(table.schema).combine_chunks()
            if found.num_rows != table.num_rows or not all(map(_are_equal, _arrays(found), _arrays(table))):
                raise ValueError(f"{uri}: row group {group} does not hold what was written")


def _arrays(table: pa.Table) -> list[pa.Array]:
    return [batch for column in table.columns for batch in column.chunks]


_BITS = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


def _are_equal(one: pa.Array, other: pa.Array) -> bool:
    """Whether two arrays of one type hold the same bits; to Arrow, NaN is not equal to NaN."""
    kind = one.type
    if one.equals(other):
        return True
    if len(one) != len(other) or not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_floating(kind):
        return bool(one.view(_BITS[kind.bit_width]).equals(other.view(_BITS[kind.bit_width])))
    if pa.types.is_struct(kind):
        return all(map(_are_equal, one.flatten(), other.flatten()))
    if pa.types.is_map(kind):
        lengths = (np.diff(array.offsets.to_numpy()) for array in (one, other))
        return np.array_equal(*lengths) and _are_equal(one.keys, other.keys) and _are_equal(one.items, other.items)
    if is_list_type(kind):
        lengths = (pc.list_value_length(array) for array in (one, other))
        return bool(operator.eq(*lengths)) and _are_equal(pc.list_flatten(one), pc.list_flatten(other))
    return False
