"""Clean up parts that match no unit of the input: remove those that newer parts replace."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from transforms import storage
from transforms.parts import part_files
from transforms.parts.part_files import Commit, MisnamedPartError
from transforms.reuse.digest_index import delete_index
from transforms.runs.manifest import Settled, UnitReport

_READ_AT_ONCE = 16
_EXAMPLES = 3


def settle(
    reports: Sequence[UnitReport],
    output: str,
    folder: str = part_files.EMBEDDINGS,
    *,
    generation: str = "",
    previous: Mapping[str, Any] | None = None,
    prune: bool = False,
) -> Settled:
    """Deal with the parts that no report names.

    A part of an earlier generation, or of a shard that was cut anew, is superseded: it is removed. So are the rows
    whose key or uri newer parts hold. What is left is of inputs that are not found any more, and stays unless it is
    to be pruned. A copy of a part under another name is removed. Failures of units that have none are removed too,
    and what was kept of parts that were written over.

    Args:
        reports: of all units, which are committed.
        output: the run's folder.
        folder: which holds the parts.
        generation: of the run.
        previous: the manifest before. Its parts share no keys, so that fewer parts have to be looked at.
        prune: remove parts whose inputs are not found any more.

    Raises:
        MisnamedPartError: if a part was renamed, and is not under its own name too.
        OSError: if a part cannot be read, or removed.
    """
    strays, copies = _strays({report.commit.unit_id for report in reports}, output, folder)
    shards = _shards_read(reports)
    replaced: list[Commit] = []
    others: list[Commit] = []
    for stray in strays:
        is_old = stray.generation != generation or stray.inputs.get("uri") in shards
        (replaced if is_old else others).append(stray)
    superseded, pruned = len(replaced) + len(copies), 0
    kept: list[Commit] = []
    for uri in copies:
        storage.delete(uri)
    for stray in replaced:
        _remove(output, folder, stray.unit_id)
    missing = _missing_keys(others, reports, output, folder, previous or {})
    for stray in others:
        keys = missing[stray.unit_id]
        if not keys:
            _remove(output, folder, stray.unit_id)
            superseded += 1
        elif prune:
            _remove(output, folder, stray.unit_id)
            pruned += 1
        elif len(keys) == stray.embedded:
            kept.append(part_files.with_failures(output, stray))
        else:
            kept.append(part_files.keep_rows(output, folder, stray.unit_id, keys))
    kept = _widened(kept, reports, output, folder)
    storage.delete_folder(storage.join(output, part_files.REPLACED))
    delete_index(output)
    examples = [min(missing[stray.unit_id]) for stray in kept[:_EXAMPLES]]
    _remove_failures(output, [report.commit for report in reports], kept)
    return Settled(superseded, pruned, tuple(kept), tuple(examples))


def _strays(current: Collection[str], output: str, folder: str) -> tuple[list[Commit], list[str]]:
    """(parts of other units than the current ones, copies of parts under other names)."""
    uris = [uri for unit_id, uri in part_files.list_parts(storage.join(output, folder)) if unit_id not in current]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        found = list(pool.map(_read_stray, uris))
    return [one for one in found if isinstance(one, Commit)], [one for one in found if isinstance(one, str)]


def _read_stray(uri: str) -> Commit | str | None:
    """The part, or its uri where it is a copy of another one; None where it is gone."""
    try:
        return part_files.read_commit(uri)
    except MisnamedPartError as error:
        if error.is_copy():
            return uri
        raise


def _shards_read(reports: Sequence[UnitReport]) -> set[str]:
    """Shards of which every record was read; one that could not be read is a failure and says nothing of the rest."""
    shards, unread = set(), set()
    for report in reports:
        if uri := report.commit.inputs.get("uri"):
            shards.add(uri)
            if any(kind.startswith("read/") for kind in report.commit.failures):
                unread.add(uri)
    return shards - unread


def _missing_keys(
    strays: Sequence[Commit], reports: Sequence[UnitReport], output: str, folder: str, previous: Mapping[str, Any]
) -> dict[str, set[str]]:
    """Unit id -> keys of the part's rows whose key and whose uri no current unit has."""
    if not strays:
        return {}
    listed = {part["path"] for part in previous.get("parts", ())}

    def is_listed(commit: Commit) -> bool:
        return f"{folder}/{part_files.part_name(commit.unit_id)}" in listed

    def read(stray: Commit) -> dict[str, str]:
        return part_files.read_key_uris(part_files.part_uri(output, folder, stray.unit_id))

    def read_names(commit: Commit) -> tuple[set[str], set[str]]:
        return part_files.read_names(output, folder, commit)

    candidates = [report.commit for report in reports]
    if all(map(is_listed, strays)):  # They shared no key with the others that were listed and are unchanged.
        candidates = [report.commit for report in reports if not (report.skipped and is_listed(report.commit))]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        rows = dict(zip((stray.unit_id for stray in strays), pool.map(read, strays), strict=True))
        keys = {key for table in rows.values() for key in table}
        uris = {uri for table in rows.values() for uri in table.values()}
        for found_keys, found_uris in pool.map(read_names, candidates):
            keys.difference_update(found_keys)
            uris.difference_update(found_uris)
    return {
        unit_id: {key for key, uri in table.items() if key in keys and uri in uris} for unit_id, table in rows.items()
    }


def _widened(kept: Sequence[Commit], reports: Sequence[UnitReport], output: str, folder: str) -> list[Commit]:
    """The parts that are kept, their columns of the types that the run's own have: all are read as one data set."""

    def schema_of(commit: Commit) -> pa.Schema:
        return part_files.read_schema(part_files.part_uri(output, folder, commit.unit_id))

    def widen(commit: Commit, wanted: pa.Schema) -> Commit:
        found = schema_of(commit)
        if found.equals(wanted) or not part_files.can_widen(found, wanted):
            return commit
        return part_files.with_failures(output, part_files.widen_part(output, folder, commit.unit_id, wanted))

    if not kept or not reports:
        return list(kept)
    wanted = schema_of(reports[0].commit)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return list(pool.map(lambda commit: widen(commit, wanted), kept))


def _remove(output: str, folder: str, unit_id: str) -> None:
    """The part goes first: failures without a part are nothing, a part without its failures would be worked again."""
    storage.delete(part_files.part_uri(output, folder, unit_id))
    part_files.delete_failures(output, unit_id)


def _remove_failures(output: str, current: Sequence[Commit], kept: Sequence[Commit]) -> None:
    """Of units that have none: their writer was killed, or the unit is gone."""
    wanted = {commit.unit_id for commit in (*current, *kept) if commit.failed}
    for unit_id, uri in list(part_files.list_parts(storage.join(output, part_files.FAILURES))):
        if unit_id not in wanted:
            storage.delete(uri)
