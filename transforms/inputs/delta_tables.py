"""Folders of Delta tables, which keep files that the table no longer has."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.text import counted


def refuse_removed_files(folder: str) -> None:
    """Refuse a folder whose Delta log removed files, or rows of files, that are still there: they would be read too.

    The log's checkpoints are not read: what was removed before them and is older than the log's JSON files is not
    known here.

    Raises:
        ImagebeamError: naming such a file.
        OSError: if the log cannot be read.
    """
    is_whole: dict[str, bool] = {}
    for action in _actions(storage.join(folder, "_delta_log")):
        if isinstance(added := action.get("add"), dict):
            is_whole[str(added.get("path"))] = added.get("deletionVector") is None
        elif isinstance(removed := action.get("remove"), dict):
            is_whole[str(removed.get("path"))] = False
    places = [urllib.parse.unquote(path) for path, whole in is_whole.items() if not whole]
    gone = [path for path in places if storage.exists(path if "://" in path else storage.join(folder, path))]
    if gone:
        raise ImagebeamError(
            f"{folder} is the folder of a Delta table, which holds {counted(len(gone), 'file')} that the table removed "
            f"or changed, such as {min(gone)}: reading the folder would embed their rows too. Write the table to plain "
            "Parquet (DuckDB: COPY (FROM delta_scan('FOLDER')) TO ...), or vacuum it first."
        )


def _actions(log: str) -> Iterator[dict[str, Any]]:
    """What a log says was done, in order; nothing where there is none."""
    for file in storage.list_below(log, "*.json"):
        for line in storage.read_bytes(file.uri).splitlines():
            try:
                action = json.loads(line)
            except ValueError:
                continue
            if isinstance(action, dict):
                yield action
