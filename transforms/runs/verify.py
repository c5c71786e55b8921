"""Check every file of a finished run against its manifest."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.digests import file_sha256
from transforms.inputs.shard_index import damaged_cuts
from transforms.inputs.unique_keys import SeenKeys
from transforms.models.staged import SPEC_FILE
from transforms.parts import part_files
from transforms.parts.stored_file import identify
from transforms.runs.manifest import DamagedManifestError, read_manifest, stored_sha256

_READ_AT_ONCE = 4

_PROBABILITIES = ("probability", "top_probabilities")
"""Columns of predictions whose values must be numbers."""


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a run.

    Attributes:
        uri: of the file.
        problem: what is wrong with it.
        discard: files to remove, so that the run's own command makes them again; empty where that would not help.
    """

    uri: str
    problem: str
    discard: tuple[str, ...] = ()


@dataclass
class Verdict:
    """The checked files and the problems found."""

    parts: int = 0
    rows: int = 0
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)


def verify(output: str) -> Verdict:
    """Check a finished run: bytes, rows, keys and values of its parts and failures, and the files beside them.

    Raises:
        ImagebeamError: if there is no finished run, or the manifest is of something else.
        OSError: if the folder cannot be read.
    """
    verdict = Verdict()
    try:
        manifest = read_manifest(output)
    except DamagedManifestError as error:
        verdict.damages.append(Damage(error.uri, error.reason, (error.uri,)))
        return verdict
    verdict.damages += _files_beside(output, manifest)
    verdict.damages += _unlisted(output, manifest)
    look_at = functools.partial(_look_at, output, tuple(manifest["dimensions"]))
    seen = SeenKeys()
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        entries = manifest["parts"]
        for start in range(0, len(entries), 4 * _READ_AT_ONCE):  # Few tables at a time are held in memory.
            batch = entries[start : start + 4 * _READ_AT_ONCE]
            for entry, (keys, damages) in zip(batch, pool.map(look_at, batch), strict=True):
                verdict.parts += 1
                verdict.rows += entry["rows"]
                verdict.bytes += entry["bytes"]
                verdict.damages += damages
                repeated = [key for key in keys if not seen.add(key)]
                if repeated:
                    problem = f"{len(repeated):,} keys stand in another part too, such as {repeated[0]!r}"
                    verdict.damages.append(Damage(storage.join(output, entry["path"]), problem))
    return verdict


def discard(damages: list[Damage]) -> int:
    """Remove the damaged files that a rerun makes again. Returns their number."""
    uris = sorted({uri for damage in damages for uri in damage.discard})
    present = [uri for uri in uris if storage.exists(uri)]
    for uri in present:
        storage.delete(uri)
    return len(present)


def check_bytes(data: bytes, entry: Mapping[str, Any]) -> None:
    """Compare a Parquet file's size and digest with the manifest.

    Raises:
        ValueError: saying what differs.
    """
    if len(data) != entry["bytes"]:
        raise ValueError(f"it has {len(data):,} bytes, not {entry['bytes']:,}")
    found = identify(data)
    for name in ("sha256", "footer_sha256", "data_sha256"):
        expected = entry.get(name)
        if expected is not None and getattr(found, name) != expected:
            raise ValueError(f"its {name} is {str(getattr(found, name))[:16]}..., not {expected[:16]}...")


def _look_at(output: str, vectors: tuple[str, ...], entry: dict[str, Any]) -> tuple[list[str], list[Damage]]:
    """The keys of a part and of its failures, and what is wrong with them; `vectors` names the model's columns."""
    part = storage.join(output, entry["path"])
    failures = storage.join(output, part_files.FAILURES, storage.basename(part))
    both = (part, failures)
    numbers = vectors + (_PROBABILITIES if entry["path"].startswith(f"{part_files.PREDICTIONS}/") else ())
    keys: list[str] = []
    damages: list[Damage] = []
    for uri, about, rows in ((part, entry, entry["rows"]), (failures, entry["failures"], entry["failed"])):
        if about is None:
            continue
        try:
            data = storage.read_bytes(uri)
            check_bytes(data, about)
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
            _check_table(table, rows, numbers)
            keys += table["key"].to_pylist()
        except FileNotFoundError:
            damages.append(Damage(uri, "it is gone", both))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            damages.append(Damage(uri, " ".join(str(error).split()), both))
    return keys, damages


def _check_table(table: pa.Table, rows: int, numbers: tuple[str, ...]) -> None:
    """Compare a table's rows with their number, and look for NaN and infinite values in the columns `numbers`.

    Raises:
        ValueError: saying what is wrong.
    """
    if table.num_rows != rows:
        raise ValueError(f"it has {table.num_rows:,} rows, not {rows:,}")
    for name in set(numbers) & set(table.column_names):
        column = table[name].combine_chunks()
        values = column if pa.types.is_floating(column.type) else column.flatten()
        if not np.isfinite(values.to_numpy(zero_copy_only=False)).all():
            raise ValueError(f"column {name} holds NaN or infinite values")


def _files_beside(output: str, manifest: Mapping[str, Any]) -> Iterator[Damage]:
    for name, expected in manifest.get("files", {}).items():
        uri = storage.join(output, name)
        try:
            if stored_sha256(uri) != expected:
                yield Damage(uri, "its bytes are not those that the run wrote", (uri,))
        except FileNotFoundError:
            yield Damage(uri, "it is gone", (uri,))
    yield from _model_files(storage.join(output, "model"))
    for uri in damaged_cuts(storage.join(output, "plan")):
        yield Damage(uri, "its bytes are not those that the run wrote", (uri,))


def _model_files(folder: str) -> Iterator[Damage]:
    try:
        about = json.loads(storage.read_bytes(storage.join(folder, SPEC_FILE)))
        expected = {about["model_file"]: about["model_sha256"], **(about.get("engine") or {}).get("files", {})}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return  # Told by the digest of spec.json, if there was one.
    for name, sha256 in expected.items():
        uri = storage.join(folder, name)
        try:
            with storage.local_file(uri) as path:
                if file_sha256(path) != sha256:
                    yield Damage(uri, "it is not the model that was staged", (uri,))
        except FileNotFoundError:
            yield Damage(uri, "it is gone", (uri,))


def _unlisted(output: str, manifest: Mapping[str, Any]) -> Iterator[Damage]:
    """Parts and failures that the manifest does not name."""
    listed = {storage.join(output, entry["path"]) for entry in manifest["parts"]}
    listed |= {
        storage.join(output, part_files.FAILURES, storage.basename(entry["path"]))
        for entry in manifest["parts"]
        if entry["failures"] is not None
    }
    folders = {entry["path"].partition("/")[0] for entry in manifest["parts"]} | {part_files.FAILURES}
    for folder in sorted(folders):
        for _, uri in part_files.list_parts(storage.join(output, folder)):
            if uri not in listed:
                yield _unlisted_part(uri)
        for uri in part_files.list_foreign(storage.join(output, folder)):
            yield Damage(uri, "no run of Imagebeam wrote it")


def _unlisted_part(uri: str) -> Damage:
    """What is wrong with a part that the manifest does not name; a sound one may hold the only rows of its inputs."""
    problem, discard_it = "the manifest does not name it", False
    try:
        part_files.read_commit(uri)
    except part_files.MisnamedPartError as error:
        problem, discard_it = error.reason, error.is_copy()
    except part_files.DamagedPartError as error:
        problem, discard_it = f"{problem}, and it is no part: {error.reason}", True
    return Damage(uri, problem, (uri,) if discard_it else ())
