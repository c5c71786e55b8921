"""Tell a folder of `imagebeam compact` from one of a run."""

from __future__ import annotations

import re

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.sealed_json import unseal

COMPACT_FILE = "_compact.json"
"""Written last: what the copy holds. Readers of a folder skip names that begin with an underscore."""

ROWS_FILE = re.compile(r"rows-\d{5}\.parquet")
"""Names of the other files."""


def refuse_copy_as_output(output: str) -> None:
    """Refuse to write into a folder that holds a copy, finished or not: its readers would find rows twice.

    Raises:
        ImagebeamError: naming a file of the copy.
        OSError: if the folder cannot be read.
    """
    for info in storage.list_folder(output):
        name = storage.basename(info.uri)
        if name == COMPACT_FILE or ROWS_FILE.fullmatch(name):
            raise ImagebeamError(
                f"{output} holds a copy of a run's rows that imagebeam compact made ({name}), beside which no other "
                "files belong: readers of the folder would read them too. Choose another --output."
            )


def refuse_copy_as_run(folder: str) -> None:
    """Refuse to read a copy as the run it was made of.

    Raises:
        ImagebeamError: naming the run, and what reads the copy.
        OSError: if the folder cannot be read.
    """
    try:
        about = storage.read_bytes(storage.join(folder, COMPACT_FILE))
    except FileNotFoundError:
        return
    try:
        source = f": {unseal(about)['source']}"
    except (ValueError, LookupError, TypeError):
        source = ""
    raise ImagebeamError(
        f"{folder} is a copy that imagebeam compact made ({COMPACT_FILE}): warehouses, DuckDB and others read its "
        f"rows-*.parquet. Imagebeam reads the run that it was made of{source}."
    )
