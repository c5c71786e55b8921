"""Format predictions as Parquet parts, and label parts of embeddings without their images."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.classify.ranking import rank, top_columns
from transforms.classify.staged import EMBEDDING, PROBABILITIES, Classifier, StagedClassifier
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Row
from transforms.inputs.plan import cut_shard
from transforms.inputs.plan_units import count_planned
from transforms.parts.part_files import PREDICTIONS, PartOptions, rows_to_table
from transforms.readers.columns import as_label, to_rows
from transforms.readers.options import ReadOptions
from transforms.readers.units import Note, PlanItem, Shard, ShardSlice, ShardUnit, WorkUnit
from transforms.reuse.known_rows import KnownRows
from transforms.runs.commit_units import BegunUnit, CommitUnits, NotBegun, UnitResult, count_batch
from transforms.training_data.embeddings import EmbeddingSet, RowGroup, part_uris

_BATCH_ROWS = 4096

_STORED = ("key", "uri", "label", "width", "height", "sha256")


@dataclass(frozen=True)
class PredictionLayout:
    """How predictions are stored: a `units.PartLayout`.

    Columns: key, uri, label (the input's own; null where unknown), predicted (the most probable; null below
    `threshold`; with a multi-label classifier a list of all at or above it, the most probable first), probability (of
    the most probable), top_labels and top_probabilities (lists, the most probable first), width, height, sha256, kept
    columns and, where the rows have it, embedding.

    Attributes:
        labels: names of the classes.
        multi_label: whether an image has any number of labels.
        top_k: length of the top lists, or the number of classes if that is less.
        threshold: least probability of what is predicted.
        part: how the rest is stored.
    """

    labels: tuple[str, ...]
    multi_label: bool
    top_k: int
    threshold: float
    part: PartOptions

    @property
    def folder(self) -> str:
        """Which folder of a run holds such parts."""
        return PREDICTIONS

    def refuse(self, rows: Sequence[Row]) -> tuple[list[Row], list[Failure]]:
        """The rows that can be stored, and a failure for each that cannot."""
        return self.part.refuse(rows)

    def to_table(self, rows: Sequence[Row], dimensions: dict[str, int]) -> pa.Table:
        """Rows, whose vectors are the probabilities and perhaps the embedding, as an Arrow table."""
        kept = {name: length for name, length in dimensions.items() if name != PROBABILITIES}
        table = rows_to_table(rows, kept, self.part)
        probabilities = (
            np.stack([row.vectors[PROBABILITIES] for row in rows]) if rows else np.empty((0, len(self.labels)))
        ).astype(np.float32)
        order, ranked = rank(probabilities)
        names = np.asarray(self.labels, object)
        if self.multi_label:
            found = [names[places[values >= self.threshold]] for places, values in zip(order, ranked, strict=True)]
            predicted = pa.array(found, pa.list_(pa.string()))
        else:
            unsure = ranked[:, 0] < self.threshold
            predicted = pa.array(names[order[:, 0]], pa.string(), mask=unsure)
        columns = {
            "key": table["key"],
            "uri": table["uri"],
            "label": table["label"],
            "predicted": predicted,
            "probability": pa.array(ranked[:, 0], pa.float32()),
            **top_columns(order, ranked, self.labels, self.top_k),
        }
        columns |= {name: table[name] for name in table.column_names if name not in columns}
        return pa.table(columns)


@dataclass
class ClassifyEmbeddings(beam.PTransform):  # type: ignore[misc]
    """Outputs of extract -> parts of predictions under `output`; a row group is a work unit.

    Element in: a tuple with the outputs' folders; element out: `manifest.UnitReport`.

    Attributes:
        classifier: labels the vectors.
        output: the run's folder.
        embeddings: what is read; its parts and row groups are found anew by the workers.
        layout: how predictions are stored.
        generation: of the run; see `CommitUnits`.
        label_column: of the embeddings, whose values are the rows' labels; a list of several is none.
        allow_unfinished: take the parts of a run that has not written its manifest.
    """

    classifier: StagedClassifier
    output: str
    embeddings: EmbeddingSet
    layout: PredictionLayout
    generation: str = ""
    label_column: str = "label"
    allow_unfinished: bool = False

    def expand(self, folders: beam.PCollection) -> beam.PCollection:
        """Find the row groups, and label each."""
        work = _LabelVectors(dataclasses.replace(self.embeddings, groups=()), self.layout.part, self.label_column)
        return (
            folders
            | "Name parts" >> beam.FlatMap(_part_uris, self.allow_unfinished).with_output_types(str)
            | "Spread parts" >> beam.Reshuffle()
            | "Plan units" >> beam.FlatMap(_cut_part).with_output_types(PlanItem)
            | "Label units" >> CommitUnits(self.classifier, self.output, work, self.layout, generation=self.generation)
        )


def _part_uris(folders: tuple[str, ...], allow_unfinished: bool) -> Iterator[str]:
    for folder in folders:
        yield from part_uris(folder, allow_unfinished=allow_unfinished)


def _cut_part(uri: str) -> Iterator[WorkUnit | Note]:
    """A unit for each row group."""
    file = storage.stat(uri)
    if file is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri)
    for found in cut_shard(Shard(file, InputFormat.PARQUET), sys.maxsize, ReadOptions()):
        if isinstance(found, ShardUnit):
            count_planned(found)
        yield found


@dataclass(frozen=True)
class _LabelVectors:
    """The `UnitWork` of `ClassifyEmbeddings`."""

    embeddings: EmbeddingSet
    part: PartOptions
    label_column: str

    conditions = None

    def knowing(self, known: KnownRows) -> _LabelVectors:
        del known
        return self

    def setup(self) -> None:
        pass

    def read(self, unit: WorkUnit) -> Iterator[Row]:
        """The rows of a part, with their vectors."""
        kept = tuple(name for name, _ in self.part.keep_columns)
        column = self.embeddings.column
        for group, table in self.embeddings.read(list(_row_groups(unit)), [*_STORED, *kept, column]):
            vectors = self.embeddings.vectors(group, table)
            batches = table.drop_columns([column]).to_batches()
            rows = itertools.chain.from_iterable(to_rows(batch, kept) for batch in batches)
            for vector, row in zip(vectors, rows, strict=True):
                stored = {name: row[name] for name in _STORED}
                label = row[self.label_column]
                label = label.as_py() if isinstance(label, pa.Scalar) else label  # of a kept column: see `to_rows`
                stored["label"] = None if isinstance(label, list) else as_label(label)
                yield Row(**stored, vectors={EMBEDDING: vector}, extras={name: row[name] for name in kept})

    def begin(self, items: Iterable[Row], model: Classifier, after: BegunUnit | None) -> NotBegun:
        del after
        return NotBegun(functools.partial(self._label, items, model))

    def _label(self, items: Iterable[Row], model: Classifier) -> UnitResult:
        """The same rows, with what the classifier says of their vectors."""
        rows: list[Row] = []
        remaining = iter(items)
        while batch := list(itertools.islice(remaining, _BATCH_ROWS)):
            started = time.perf_counter()
            columns = model.label(np.stack([row.vectors[EMBEDDING] for row in batch]))
            for position, row in enumerate(batch):
                vectors = {name: matrix[position] for name, matrix in columns.items()}
                rows.append(dataclasses.replace(row, vectors=vectors))
            count_batch(len(batch), time.perf_counter() - started)
        return UnitResult(rows, [])


def _row_groups(unit: WorkUnit) -> Iterator[RowGroup]:
    """The row groups that a unit is; parts are small shards, several of which may share a unit."""
    if isinstance(unit, ShardUnit):
        yield from map(_row_group, unit.slices)


def _row_group(part: ShardSlice) -> RowGroup:
    uri = part.shard.file.uri
    with storage.open_read(uri, part.shard.file.version) as source:
        metadata = pq.ParquetFile(source).metadata
    start = 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        if start == part.start and rows == part.count:
            return RowGroup(uri, number, start, rows)
        start += rows
    raise OSError(f"{uri} has no row group of {part.count} rows from row {part.start} on")


def kept_columns(embeddings: EmbeddingSet) -> tuple[tuple[str, pa.DataType], ...]:
    """The kept columns of an extract output, which predictions keep too."""
    return tuple(
        (field.name, field.type)
        for field in embeddings.schema
        if field.name not in _STORED
        and field.name != EMBEDDING
        and not field.name.startswith((f"{EMBEDDING}_", f"{EMBEDDING}."))
    )
