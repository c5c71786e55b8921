"""Read embeddings for training."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.errors import ImagebeamError, JobError, refused
from transforms.core.spec import EmbedderSpec
from transforms.core.text import counted
from transforms.models.staged import StagedModel, read_staged
from transforms.parts.part_files import EMBEDDINGS, FINGERPRINT_KEY, SPEC_KEY, list_parts
from transforms.runs.copies import refuse_copy_as_run
from transforms.runs.manifest import MANIFEST_FILE
from transforms.runs.verify import check_bytes

MODEL_FOLDER = "model"
"""Where an extract output holds its embedder."""

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)

_FOOTER_WORKERS = 16
"""Footers read at once: small reads, where a remote storage's latency is what counts."""

_LARGEST_VALUE = 1e36
"""Of a vector. Sums and differences of larger ones overflow float32, whose lowest number some models mask with."""

_GROUP_WORKERS = 2
"""Row groups read and decoded ahead of the one in use."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A stretch of rows that is read at once.

    Attributes:
        uri: of the part.
        number: of the row group in the part.
        start: number of its first row among all rows of the set.
        rows: how many.
        run: number of the output, among those of the set, that the part is of.
    """

    uri: str
    number: int
    start: int
    rows: int
    run: int = 0


class RowSet(Protocol):
    """Labelled rows with an array each: what is split, trained on and evaluated.

    Attributes as of `EmbeddingSet`.
    """

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """All rows, in order."""

    @property
    def spec(self) -> EmbedderSpec:
        """Of the arrays."""

    @property
    def column(self) -> str:
        """What the arrays go by in `read`."""

    @property
    def schema(self) -> pa.Schema:
        """Of the other columns, at least."""

    def read(self, groups: Iterable[RowGroup], columns: Sequence[str]) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Columns of row groups, in the order given."""

    def vectors(self, group: RowGroup, table: pa.Table) -> np.ndarray:
        """The arrays [rows, ...] of a row group that was read with `column`."""


@dataclass(frozen=True)
class EmbeddingSet:
    """One or more extract outputs, whose vectors are comparable.

    Attributes:
        folders: the outputs.
        groups: all row groups, in order of folder, part and position: the order in which rows are numbered.
        spec: what made the vectors.
        column: the embedding column.
        dimension: length of its vectors.
        schema: of the parts.
    """

    folders: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    spec: EmbedderSpec
    column: str
    dimension: int
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Rows of all parts together."""
        return self.groups[-1].start + self.groups[-1].rows

    def read(self, groups: Iterable[RowGroup], columns: Sequence[str]) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Read columns of row groups, a little ahead of the caller, in the order given; page checksums are verified."""
        return ahead(lambda group: (group, _read_group(group, columns)), groups, _GROUP_WORKERS)

    def staged_model(self) -> StagedModel:
        """The embedder that made the vectors, not loaded yet.

        Raises:
            ImagebeamError: if none of the folders has it.
        """
        for folder in self.folders:
            staged = read_staged(storage.join(folder, MODEL_FOLDER))
            if staged and staged.spec == self.spec and storage.exists(staged.model_uri):
                return staged
        raise ImagebeamError(
            f"The embedder is not in {storage.join(self.folders[0], MODEL_FOLDER)}. Copy that folder from where "
            "extract wrote it, or do without a classifier of images: --skip_image_classifier."
        )

    def vectors(self, group: RowGroup, table: pa.Table) -> np.ndarray:
        """The vectors of a row group that was read with `column`, as float32 [rows, dimension].

        Raises:
            ImagebeamError: for a vector of another length, or one that holds NaN, infinity or nearly that.
        """
        column = table.column(self.column).combine_chunks()
        values = column.flatten()
        if len(values) != group.rows * self.dimension or _uneven(column, self.dimension):
            raise ImagebeamError(
                f"{group.uri} has vectors that are not of length {self.dimension} in column {self.column!r}. "
                "Run extract again for this part."
            )
        matrix: np.ndarray = (
            values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, self.dimension)
        )
        # For each row group of each epoch, so without a copy. A NaN among them is the lowest and the largest.
        if not -_LARGEST_VALUE <= matrix.min(initial=0.0) <= matrix.max(initial=0.0) <= _LARGEST_VALUE:
            usable = (np.abs(matrix) <= _LARGEST_VALUE).all(axis=1)
            key = _read_group(group, ["key"]).column("key")[int(usable.argmin())].as_py()
            raise ImagebeamError(
                f"The vector of {key!r} holds NaN or infinity, or a value beyond {_LARGEST_VALUE:.0e} ({group.uri}, "
                f"column {self.column!r}). Nothing can be learned from it: extract the image again, with --precision "
                "float32 if it was float16, or another --layer."
            )
        return matrix


def open_embeddings(
    folders: Sequence[str], column: str | None = None, *, allow_unfinished: bool = False
) -> EmbeddingSet:
    """Look at extract outputs: every part's footer, no vectors yet.

    Args:
        folders: outputs of extract, local or gs://.
        column: the embedding column; None where there is only one.
        allow_unfinished: take the parts of a run that has not written its manifest.

    Raises:
        ImagebeamError: for one output given twice, an output without parts or rows, one that is unfinished or was
            changed since, a part of another spec (naming what differs) or of another schema, an unknown column, or
            what may not be listed.
        JobError: for what cannot be listed, and not for what the user gave.
    """
    folders = absolute_once(folders)
    parts = [
        (uri, run)
        for run, folder in enumerate(folders)
        for uri in _checked_parts(folder, allow_unfinished=allow_unfinished)
    ]
    uris = [uri for uri, _ in parts]
    groups: list[RowGroup] = []
    first: pa.Schema | None = None
    start = 0
    for (uri, run), (schema, group_rows) in zip(parts, ahead(_read_footer, uris, _FOOTER_WORKERS), strict=True):
        if first is None:
            first, first_uri = schema, uri
        _check_same(first_uri, first, uri, schema)
        for number, rows in enumerate(group_rows):
            if rows:
                groups.append(RowGroup(uri, number, start, rows, run))
                start += rows
    if first is None or not groups:
        raise ImagebeamError(f"There are no embeddings: every part in {', '.join(folders)} has 0 rows.")
    column = _choose_column(first, column)
    kind = first.field(column).type
    dimension = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(groups[0], column)
    spec = EmbedderSpec.from_json(first.metadata[SPEC_KEY])
    return EmbeddingSet(folders, tuple(groups), spec, column, dimension, first)


def absolute_once(folders: Sequence[str]) -> tuple[str, ...]:
    """Outputs as absolute uris; one that is given twice, also by a link, would count each of its images twice.

    Raises:
        ImagebeamError: naming it.
    """
    known: dict[str, str] = {}
    for folder in folders:
        uri = storage.absolute(folder)
        real = os.path.realpath(uri) if storage.is_local(uri) else uri.rstrip("/")
        if real in known:
            raise ImagebeamError(
                f"An output is given twice, and each of its images would count twice. Received: {known[real]!r} and "
                f"{folder!r}. Leave one of them out."
            )
        known[real] = folder
    return tuple(storage.absolute(folder) for folder in folders)


def open_columns(folder: str) -> list[EmbeddingSet]:
    """Look at one output of extract: a set for each of its embedding columns; raises as `open_embeddings`."""
    first = _checked_parts(storage.absolute(folder), allow_unfinished=False)[0]
    return [open_embeddings([folder], column) for column in _embedding_columns(_read_footer(first)[0])]


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Like `map(work, items)`, with `workers` threads that stay at most as many items ahead of the caller."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Parts(NamedTuple):
    """The parts in a run's folder.

    Attributes:
        named: name -> uri of those that the manifest names; of all, where there is none.
        others: names of those that it does not name.
        entries: what it says of them.
    """

    named: dict[str, str]
    others: frozenset[str] = frozenset()
    entries: Sequence[Mapping[str, Any]] = ()


def part_uris(folder: str, *, allow_unfinished: bool) -> list[str]:
    """The parts that a run's manifest names; those that are there, where there is no manifest.

    Args:
        folder: output of extract, absolute.
        allow_unfinished: see `open_embeddings`.

    Raises:
        ImagebeamError: as `open_embeddings`, but for what the parts hold.
        JobError: likewise.
    """
    return list(_find_parts(folder, allow_unfinished=allow_unfinished).named.values())


def _checked_parts(folder: str, *, allow_unfinished: bool) -> list[str]:
    """`part_uris`, with their bytes compared with the manifest; those that it does not name are told."""
    named, others, entries = _find_parts(folder, allow_unfinished=allow_unfinished)
    if others:
        _log.warning(
            "%s: %s not in its manifest, and left out, such as %s: rows of an earlier input, say, which stay where a "
            "run ends with a problem. `imagebeam verify` lists them",
            *(folder, f"{counted(len(others), 'part')} {'is' if len(others) == 1 else 'are'}", min(others)),
        )
    if not allow_unfinished:
        _check_bytes(named, entries)
    return list(named.values())


def _find_parts(folder: str, *, allow_unfinished: bool) -> _Parts:
    try:
        uris = {uri.rsplit("/", 1)[-1]: uri for _, uri in list_parts(storage.join(folder, EMBEDDINGS))}
    except OSError as error:
        message = f"The embeddings cannot be listed ({error}). Received: --embeddings {folder!r}."
        raise refused(message, error) from error
    if not uris:
        refuse_copy_as_run(folder)
        raise ImagebeamError(
            f"There are no embeddings in {folder}: it has no {EMBEDDINGS}/part-*.parquet. --embeddings is what "
            "extract was given as --output."
        )
    try:
        entries = json.loads(storage.read_bytes(storage.join(folder, MANIFEST_FILE)))["parts"]
        listed = {entry["path"].rsplit("/", 1)[-1]: entry for entry in entries}
    except FileNotFoundError:
        if allow_unfinished:
            return _Parts(uris)
        raise ImagebeamError(
            f"{folder} has no {MANIFEST_FILE}: its extract run has not finished. Finish it, or take the "
            f"{counted(len(uris), 'part')} that it has with --allow_unfinished."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if allow_unfinished:
            return _Parts(uris)
        raise ImagebeamError(
            f"{storage.join(folder, MANIFEST_FILE)} is not what extract wrote ({error}). `imagebeam verify {folder}` "
            "says how to mend it."
        ) from error
    if (gone := listed.keys() - uris.keys()) and not allow_unfinished:
        raise ImagebeamError(
            f"{folder} was changed since its manifest was written: {min(gone)} is in the manifest but gone. Run "
            "extract again, or take the parts that are there with --allow_unfinished."
        )
    named = {name: uri for name, uri in uris.items() if name in listed}
    return _Parts(named, frozenset(uris.keys() - listed.keys()), entries)


def _check_bytes(uris: Mapping[str, str], entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse parts whose bytes are not those of the manifest."""

    def check(entry: Mapping[str, Any]) -> None:
        uri = uris[entry["path"].rsplit("/", 1)[-1]]
        try:
            check_bytes(storage.read_bytes(uri), entry)
        except ValueError as error:
            raise ImagebeamError(
                f"{uri} is not the part that extract wrote: {error}. `imagebeam verify` finds what is damaged, and "
                "says how to mend it."
            ) from error

    with ThreadPoolExecutor(_FOOTER_WORKERS) as pool:
        for _ in pool.map(check, (entry for entry in entries if "bytes" in entry)):
            pass


def _read_footer(uri: str) -> tuple[pa.Schema, list[int]]:
    """Schema and rows of each row group."""
    try:
        with storage.open_read(uri) as source:
            file = pq.ParquetFile(source)
            return file.schema_arrow, [
                file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)
            ]
    except pa.ArrowInvalid as error:
        raise ImagebeamError(f"{uri} is not a Parquet file ({error}). Delete it and run extract again.") from error


def _read_group(group: RowGroup, columns: Sequence[str]) -> pa.Table:
    try:
        with storage.open_read(group.uri) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            return file.read_row_group(group.number, columns=list(columns), use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise JobError(
            f"{group.uri} cannot be read ({error}). If it is damaged, delete it and run extract again."
        ) from error


def _check_same(first_uri: str, first: pa.Schema, uri: str, schema: pa.Schema) -> None:
    """Refuse a part whose vectors or columns are not those of the first."""
    metadata = schema.metadata or {}
    if FINGERPRINT_KEY not in metadata or SPEC_KEY not in metadata:
        raise ImagebeamError(
            f"{uri} is not a part of an Imagebeam run: its footer has no fingerprint, which DuckDB, pandas and others "
            "leave out when they write a part anew. Bring back the part that extract wrote, and give corrected "
            "labels by --labels FILE."
        )
    if metadata[FINGERPRINT_KEY] != first.metadata[FINGERPRINT_KEY]:
        ours, theirs = (EmbedderSpec.from_json(part.metadata[SPEC_KEY]) for part in (first, schema))
        raise ImagebeamError(
            f"Embeddings of different specs cannot be mixed: {'; '.join(ours.differences(theirs))} "
            f"({first_uri} and {uri}). Train on outputs of one spec."
        )
    if not _plain(schema).equals(_plain(first)):
        names = [field.name for field in schema if field not in first] + [f.name for f in first if f not in schema]
        raise ImagebeamError(
            f"Parts have different columns: {', '.join(sorted(set(names)))} ({first_uri} and {uri}). "
            "Extract both with the same --keep_columns, --embedding_type and --embedding_dtype."
        )


def _plain(schema: pa.Schema) -> pa.Schema:
    """A schema without what earlier versions wrote otherwise: whether items of vectors may be null, and their name."""
    fields = []
    for field in schema:
        kind = field.type
        if pa.types.is_fixed_size_list(kind):
            kind = pa.list_(kind.value_type, kind.list_size)
        elif pa.types.is_list(kind):
            kind = pa.list_(kind.value_type)
        fields.append(pa.field(field.name, kind, nullable=field.nullable))
    return pa.schema(fields)


def _embedding_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name == "embedding" or name.startswith(("embedding_", "embedding."))]


def _choose_column(schema: pa.Schema, column: str | None) -> str:
    columns = _embedding_columns(schema)
    if column is None and len(columns) == 1:
        return columns[0]
    if column is None or column not in columns:
        what = "There are several embedding columns" if column is None else "There is no such embedding column"
        raise ImagebeamError(
            f"{what}. Received: embedding_column={column!r}. Choose one with --embedding_column: {', '.join(columns)}."
        )
    return column


def _first_length(group: RowGroup, column: str) -> int:
    return len(_read_group(group, [column]).column(column)[0].as_py())


def _uneven(column: pa.Array, dimension: int) -> bool:
    """Whether a list column holds a list of another length; a fixed-size one cannot."""
    if pa.types.is_fixed_size_list(column.type):
        return False
    return bool((np.diff(column.offsets.to_numpy()) != dimension).any())
