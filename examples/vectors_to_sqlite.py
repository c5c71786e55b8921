"""Vectors to a database of your own: EmbedRecords, then whatever writes; here SQLite, as float32 blobs.

python examples/vectors_to_sqlite.py DATABASE PATTERN
"""

import sqlite3
import sys
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io import fileio

import imagebeam


class WriteRows(beam.DoFn):  # type: ignore[misc]
    """Row -> table images; a row that is tried again replaces itself."""

    def __init__(self, database: str) -> None:
        self._database = database

    def start_bundle(self) -> None:
        self._connection = sqlite3.connect(self._database)
        self._connection.execute("create table if not exists images (key text primary key, embedding blob)")

    def process(self, row: dict[str, Any]) -> None:
        vector = np.array(row["embedding"], np.float32).tobytes()
        self._connection.execute("insert or replace into images values (?, ?)", (row["key"], vector))

    def finish_bundle(self) -> None:
        self._connection.commit()
        self._connection.close()


def main(database: str, pattern: str) -> None:
    config = imagebeam.EmbedderConfig("MobileNetV3Small", "random:0", image_size=(96, 96))
    with beam.Pipeline("FnApiRunner") as pipeline:
        files = pipeline | fileio.MatchFiles(pattern) | fileio.ReadMatches()
        records = files | beam.Map(lambda file: (file.metadata.path, file.read()))
        rows, failures = records | imagebeam.EmbedRecords(config)
        rows | beam.ParDo(WriteRows(database))
        failures | beam.Map(lambda failure: print(f"failed: {failure['key']}: {failure['error_type']}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
