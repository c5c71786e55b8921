"""Folders of Delta, Iceberg and Hudi tables, which keep files, and rows, that the table no longer has."""

from __future__ import annotations

import io
import json
import re
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.text import counted, printable
from transforms.inputs.discover import detect_format
from transforms.readers.compression import inflate, is_packed
from transforms.readers.folders import is_set_aside
from transforms.storage.resuming import ResumingStream

_FOLDERS = 256
"""Folders that are looked at, at most: each is a few requests."""

_LOOKUPS = 16

_METADATA_BYTES = 256 << 20
"""Of an Iceberg table's metadata, decompressed, at most."""

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10})|\.[0-9a-fA-F-]{36})?\.parquet")
_METADATA = re.compile(r"v?(\d+)(?:-.*)?(?:\.gz)?\.metadata\.json(?:\.gz)?")
_REWRITES = (".replacecommit", ".deltacommit")


def refuse_removed_files(roots: Sequence[str], files: Iterable[str]) -> None:
    """Refuse folders of tables of which other rows would be read than the table has.

    Args:
        roots: folders that are read, or parts of which are.
        files: uris of Parquet files found below them: the folders between may be tables, too.

    Raises:
        ImagebeamError: naming the table, and a file where one is known.
        OSError: if what a table says of its files cannot be read.
    """
    found = sorted(_folders(roots, files).items())[:_FOLDERS]
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        for why in pool.map(lambda one: _why_not(*one), found):
            if why is not None:
                raise ImagebeamError(why)


def _folders(roots: Sequence[str], files: Iterable[str]) -> dict[str, str]:
    """Folders that may be a table's -> what of it is read: the folder itself, or a part of it."""
    found: dict[str, str] = {}
    for root in roots:
        table = root
        while "=" in storage.basename(table):  # A partition.
            table = storage.parent(table)
        found[table] = found[root] = root
        if storage.basename(table) == "data":  # Where Iceberg keeps files.
            found[storage.parent(table)] = root
    for folder in {storage.parent(file) for file in files}:
        root = next((one for one in roots if folder.startswith(storage.join(one, ""))), folder)
        while len(folder) > len(root):
            if "=" not in storage.basename(folder):
                found.setdefault(folder, folder)
            folder = storage.parent(folder)
    return found


def _why_not(table: str, part: str) -> str | None:
    """Why a part of a folder is not to be read; None where nothing is known against it."""
    return _why_not_delta(table, part) or _why_not_iceberg(table) or _why_not_hudi(table, part)


def _parquet_files(folder: str) -> Iterator[str]:
    """URIs of those below a folder that would be read."""
    for file in storage.list_below(folder, "**"):
        is_parquet = detect_format(file.uri) == InputFormat.PARQUET
        if is_parquet and not is_set_aside(file.uri, folder, "", may_begin_with_underscore=False):
            yield file.uri


# Delta: commits, each of which adds and removes files, and checkpoints of what is there by then.


def _why_not_delta(table: str, part: str) -> str | None:
    log = storage.join(table, "_delta_log")
    uris = [file.uri for file in storage.list_below(log, "*")]
    commits = {int(match[1]): uri for uri in uris if (match := _COMMIT.fullmatch(storage.basename(uri)))}
    checkpoint = _last_checkpoint(uris)
    if not commits and checkpoint is None:
        return None
    is_whole: dict[str, bool] = {}
    if checkpoint is not None and _read_checkpoint(table, log, checkpoint[1], is_whole):
        all_known = True
        commits = {number: uri for number, uri in commits.items() if number > checkpoint[0]}
    else:
        all_known = 0 in commits
        is_whole.clear()
    for _, uri in sorted(commits.items()):
        for action in sorted(_actions(uri), key=lambda action: "add" in action):  # Each file is there once, or not.
            _replay(table, action, is_whole)
    gone = [uri for uri in _parquet_files(part) if not is_whole.get(uri, not all_known)]
    if not gone:
        return None
    return (
        f"{table} is the folder of a Delta table, which holds {counted(len(gone), 'file')} that the table "
        f"removed, changed or never had, such as {printable(gone[0])}: reading the folder would embed their rows too. "
        "Write the table to plain Parquet (DuckDB: COPY (FROM delta_scan('FOLDER')) TO ...), or vacuum it first."
    )


def _actions(commit: str) -> Iterator[dict[str, Any]]:
    """What a commit says was done, in order."""
    for line in storage.read_bytes(commit).splitlines():
        try:
            action = json.loads(line)
        except ValueError:
            continue
        if isinstance(action, dict):
            yield action


def _replay(table: str, action: Mapping[str, Any], is_whole: dict[str, bool]) -> None:
    """Take an action into account: uri of a file -> whether all of its rows are the table's."""
    if isinstance(added := action.get("add"), dict):
        is_whole[_place(table, added)] = not added.get("deletionVector")
    elif isinstance(removed := action.get("remove"), dict):
        is_whole[_place(table, removed)] = False


def _place(table: str, file: Mapping[str, Any]) -> str:
    path = str(file.get("path"))
    return storage.resolve(table, path if "://" in path else urllib.parse.unquote(path))


def _last_checkpoint(uris: Iterable[str]) -> tuple[int, list[str]] | None:
    """The version of the last whole checkpoint, and its files."""
    found: dict[tuple[int, int], list[str]] = {}
    for uri in uris:
        if match := _CHECKPOINT.fullmatch(storage.basename(uri)):
            found.setdefault((int(match[1]), int(match[2] or 1)), []).append(uri)
    whole = [(version, parts) for (version, count), parts in found.items() if len(parts) >= count]
    return max(whole, default=None)


def _read_checkpoint(table: str, log: str, parts: Sequence[str], is_whole: dict[str, bool]) -> bool:
    """Take a checkpoint into account; whether it could be read."""
    waiting = list(parts)
    columns = ["add.path", "add.deletionVector.storageType", "sidecar.path"]
    try:
        for uri in waiting:
            with ResumingStream(uri, None) as source:
                for batch in pq.ParquetFile(cast(BinaryIO, source)).iter_batches(columns=columns):
                    for row in batch.to_pylist():
                        if sidecar := row.get("sidecar"):
                            waiting.append(storage.resolve(storage.join(log, "_sidecars"), sidecar["path"]))
                        elif added := row.get("add"):
                            vector = (added.get("deletionVector") or {}).get("storageType")
                            _replay(table, {"add": {"path": added["path"], "deletionVector": vector}}, is_whole)
    except (pa.ArrowException, LookupError):
        return False
    return True


# Iceberg: the newest metadata names a snapshot, which says how many files it has.


def _why_not_iceberg(table: str) -> str | None:
    folder = storage.join(table, "metadata")
    uris = [file.uri for file in storage.list_below(folder, "*.metadata.json*")]
    versions = {int(match[1]): uri for uri in uris if (match := _METADATA.fullmatch(storage.basename(uri)))}
    metadata = _read_json(versions[max(versions)]) if versions else {}
    if "format-version" not in metadata:
        return None
    there = sum(not uri.startswith(storage.join(folder, "")) for uri in _parquet_files(table))
    try:
        what = _difference(metadata, there)
    except (AttributeError, LookupError, TypeError, ValueError):  # It is no such metadata.
        return None
    if what is None:
        return None
    return (
        f"{table} is the folder of an Iceberg table, and {what}: reading the folder would embed other rows than the "
        "table has. Write the table to plain Parquet (DuckDB: COPY (FROM iceberg_scan('FOLDER')) TO ...), or rewrite "
        "its files, expire its snapshots and remove orphan files first."
    )


def _difference(metadata: Mapping[str, Any], there: int) -> str | None:
    """How a table's Parquet files, so many, differ from what its current snapshot has; None where they do not."""
    snapshots = {one["snapshot-id"]: one.get("summary") or {} for one in metadata.get("snapshots") or ()}
    current = snapshots.get(metadata.get("current-snapshot-id"), {"total-data-files": "0"})
    if deletes := int(current.get("total-delete-files", 0)):
        return f"{counted(deletes, 'file')} of its current snapshot say which rows of others are deleted"
    if "total-data-files" not in current:
        rewritten = any(one.get("operation") != "append" for one in snapshots.values())
        return "it has been rewritten, and does not say how many files its current snapshot has" if rewritten else None
    expected = int(current["total-data-files"])
    return (
        None if there == expected else f"it holds {there:,} Parquet files, where its current snapshot has {expected:,}"
    )


def _read_json(uri: str) -> dict[str, Any]:
    """The JSON object of a file, gzip or not; empty where it is none."""
    data = storage.read_bytes(uri)
    try:
        if is_packed(data):
            data = inflate(io.BytesIO(data)).read(_METADATA_BYTES)
        found = json.loads(data)
    except (ValueError, EOFError, zlib.error):
        return {}
    return found if isinstance(found, dict) else {}


# Hudi: each commit writes a group's file anew under its own time, and merges or rewrites leave others behind.


def _why_not_hudi(table: str, part: str) -> str | None:
    names = [storage.basename(file.uri) for file in storage.list_below(storage.join(table, ".hoodie"), "**")]
    if "hoodie.properties" not in names:
        return None
    groups = Counter((storage.parent(uri), storage.basename(uri).partition("_")[0]) for uri in _parquet_files(part))
    if max(groups.values(), default=0) < 2 and not any(name.endswith(_REWRITES) for name in names):
        return None
    return (
        f"{table} is the folder of a Hudi table, which holds older versions of rows: reading the folder would embed "
        "them too. Write the table to plain Parquet, with Spark: spark.read.format('hudi').load(...)."
    )
