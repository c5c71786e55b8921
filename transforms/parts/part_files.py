"""Write rows as a part, published atomically, and read parts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms import storage
from transforms.core.field_types import convert_fields
from transforms.core.formats import EmbeddingDtype, EmbeddingType
from transforms.core.label_counts import LabelCount
from transforms.core.spec import EmbedderSpec
from transforms.core.text import printable, storable
from transforms.core.types import Failure, Row, Stage
from transforms.parts.row_notes import NOTES_KEY, decode_notes, encode_notes, keep_notes
from transforms.parts.schemas import FAILURES_SCHEMA, embeddings_schema
from transforms.parts.stored_file import DATA_KEY, StoredFile, read_footer, to_parquet
from transforms.readers.column_types import fit, holds
from transforms.readers.units import WorkUnit

ROW_GROUP_BYTES = 64 << 20
"""Embedding bytes in a row group at most: small enough to read on a laptop, large enough to scan well."""

FINGERPRINT_KEY = b"imagebeam.fingerprint"
SPEC_KEY = b"imagebeam.spec"
UNIT_KEY = b"imagebeam.unit"


@dataclass(frozen=True)
class PartOptions:
    """How embeddings are stored, and the input columns kept beside them, with their Arrow types.

    Raises:
        ImagebeamError: for a value of another type.
    """

    embedding_type: EmbeddingType = EmbeddingType.FIXED_SIZE_LIST
    embedding_dtype: EmbeddingDtype = EmbeddingDtype.FLOAT32
    keep_columns: tuple[tuple[str, pa.DataType], ...] = ()

    def __post_init__(self) -> None:
        convert_fields(self)

    @property
    def folder(self) -> str:
        """Which folder of a run holds such parts."""
        return EMBEDDINGS

    def refuse(self, rows: Sequence[Row]) -> tuple[list[Row], list[Failure]]:
        """The rows that can be stored, and a failure for each whose vectors do not fit float16."""
        if self.embedding_dtype != EmbeddingDtype.FLOAT16:
            return list(rows), []
        fitting = [row for row in rows if _fits_float16(row)]
        kept = {id(row) for row in fitting}
        return fitting, [_overflow(row) for row in rows if id(row) not in kept]

    def to_table(self, rows: Sequence[Row], dimensions: dict[str, int]) -> pa.Table:
        """Rows as an Arrow table; see `rows_to_table`."""
        return rows_to_table(rows, dimensions, self)


def _fits_float16(row: Row) -> bool:
    with np.errstate(over="ignore"):
        return all(np.isfinite(vector.astype(np.float16)).all() for vector in row.vectors.values())


def _overflow(row: Row) -> Failure:
    largest = max(float(np.abs(vector).max()) for vector in row.vectors.values())
    message = f"the embedding has values up to {largest:,.6g}, float16 up to 65,504; use --embedding_dtype float32"
    return Failure(row.key, row.uri, Stage.EMBED, "float16_overflow", message, row.sha256)


@dataclass(frozen=True, slots=True)
class Commit:
    """What a part says of itself: the unit it holds, as written when it was committed.

    Attributes:
        unit_id: of the unit.
        version: of the unit's inputs when they were read.
        inputs: what the unit covers.
        embedded: rows in the part.
        failures: records of the unit that failed, counted by "stage/error_type".
        icc_profiles_ignored: images that carried an ICC profile, which was not applied.
        fingerprint: of the spec the rows were made with.
        part: what identifies the part's bytes.
        failures_file: what identifies the bytes of the unit's failures, where there are any.
        generation: of the run that wrote the part; every --overwrite begins a new one.
        retryable: records that failed through the machine's fault, a part of `failures`.
        unread: what could not be read to its end, as `types.Unread` in JSON terms.
        labels: of the part's rows, as `LabelCount` in JSON terms.
        conditions: under which images became rows, as `known_rows.Conditions` in JSON terms; None where it says none.
    """

    unit_id: str
    version: str
    inputs: dict[str, Any]
    embedded: int
    failures: dict[str, int]
    icc_profiles_ignored: int
    fingerprint: str
    part: StoredFile
    failures_file: StoredFile | None = field(default=None, compare=False)
    generation: str = ""
    retryable: int = 0
    unread: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] | None = None

    @property
    def part_bytes(self) -> int:
        """Size of the part."""
        return self.part.bytes

    @property
    def part_sha256(self) -> str | None:
        """Of the part's bytes; None where only its footer was read."""
        return self.part.sha256

    @property
    def failed(self) -> int:
        """Records of the unit that failed."""
        return sum(self.failures.values())


_PART_NAME = re.compile(r"part-([0-9a-f]{16})\.parquet")

EMBEDDINGS, PREDICTIONS, FAILURES = "embeddings", "predictions", "failures"
"""Folders of a run; the parts lie in the first or the second."""

REPLACED = "replaced"
"""Folder of rows that stood in parts that were written over, until the run is complete: other units may want them."""


def part_name(unit_id: str) -> str:
    """File name of a unit's part: the same in every run."""
    return f"part-{unit_id}.parquet"


def part_uri(output: str, folder: str, unit_id: str) -> str:
    """Where a unit's rows go: the presence of this file is the commit."""
    return storage.join(output, folder, part_name(unit_id))


def embeddings_uri(output: str, unit_id: str) -> str:
    """Where a unit's embeddings go."""
    return part_uri(output, EMBEDDINGS, unit_id)


def failures_uri(output: str, unit_id: str) -> str:
    """Where a unit's failures go."""
    return storage.join(output, FAILURES, part_name(unit_id))


def rows_to_table(rows: Sequence[Row], dimensions: dict[str, int], options: PartOptions) -> pa.Table:
    """Rows as an Arrow table with the columns of `types.embeddings_schema`."""
    schema = embeddings_schema(
        dimensions,
        embedding_type=options.embedding_type,
        embedding_dtype=options.embedding_dtype,
        keep_columns=options.keep_columns,
    )
    arrays: dict[str, Any] = {
        "key": [row.key for row in rows],
        "uri": [row.uri for row in rows],
        "label": [row.label for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "sha256": [row.sha256 for row in rows],
    }
    for name, _ in options.keep_columns:
        arrays[name] = [row.extras.get(name) for row in rows]
    for name, dimension in dimensions.items():
        arrays[name] = _vectors([row.vectors[name] for row in rows], dimension, schema.field(name).type)
    columns = [
        value if isinstance(value, pa.Array) else pa.array(value, schema.field(name).type)
        for name, value in arrays.items()
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _vectors(vectors: list[np.ndarray], dimension: int, kind: pa.DataType) -> pa.Array:
    matrix = np.stack(vectors) if vectors else np.empty((0, dimension), np.float32)
    flat = pa.array(
        np.ascontiguousarray(matrix, np.float16 if pa.types.is_float16(kind.value_type) else np.float32).reshape(-1)
    )
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * dimension)
    return pa.ListArray.from_arrays(offsets, flat, type=kind)


def failures_to_table(failures: Sequence[Failure]) -> pa.Table:
    """Failures as an Arrow table of `types.FAILURES_SCHEMA`."""
    return pa.Table.from_pylist([_failure_row(failure) for failure in failures], FAILURES_SCHEMA)


def _failure_row(failure: Failure) -> dict[str, Any]:
    """A failure as a row, whatever text an input put into it."""
    values = {name: getattr(failure, name) for name in FAILURES_SCHEMA.names}
    values |= {name: storable(values[name]) for name in ("key", "uri", "error_type")}
    return {**values, "message": printable(failure.message)}


def _counts(table: pa.Table, failures: Sequence[Failure]) -> dict[str, Any]:
    """What a part's footer says of its rows and of the records that have none."""
    return {
        "embedded": table.num_rows,
        "failed": len(failures),
        "failures": dict(Counter(f"{failure.stage}/{failure.error_type}" for failure in failures)),
        "retryable": sum(failure.retryable for failure in failures),
        "unread": [dataclasses.asdict(failure.unread) for failure in failures if failure.unread is not None],
        "labels": _count_labels(table),
    }


def write_unit(
    output: str,
    unit: WorkUnit,
    table: pa.Table,
    failures: Sequence[Failure],
    spec: EmbedderSpec,
    *,
    icc_profiles_ignored: int = 0,
    folder: str = EMBEDDINGS,
    generation: str = "",
    conditions: Mapping[str, Any] | None = None,
) -> Commit:
    """Publish a unit's failures, then its rows into `folder`: the second is the commit.

    Equal tables give equal bytes on one machine. Zero rows still write a part, or the unit would run for ever.

    Args:
        output: the run's folder.
        unit: that the rows are of.
        table: the rows, which `note_rows` may have noted something on.
        failures: of the unit's other records.
        spec: of the model.
        icc_profiles_ignored: images that carried an ICC profile.
        folder: which holds the parts.
        generation: of the run.
        conditions: what decided beside the spec which records became rows; see `known_rows.Conditions`.

    Raises:
        OSError: if the storage refuses; nothing is committed then.
    """
    about = {
        "id": unit.id,
        "version": unit.version,
        "inputs": unit.inputs,
        "icc_profiles_ignored": icc_profiles_ignored,
        **_counts(table, failures),
    }
    if generation:
        about["generation"] = generation
    if conditions is not None:
        about["conditions"] = dict(conditions)
    metadata = {
        FINGERPRINT_KEY: spec.fingerprint.encode(),
        SPEC_KEY: spec.to_json().encode(),
        UNIT_KEY: json.dumps(about, sort_keys=True).encode(),
    }
    failures_file = None
    if failures:
        data, failures_file = _to_bytes(failures_to_table(failures), metadata)
        storage.publish(failures_uri(output, unit.id), data)
    else:
        delete_failures(output, unit.id)
    notes = {name: value for name, value in (table.schema.metadata or {}).items() if name == NOTES_KEY}
    data, part = _to_bytes(table, metadata | notes)
    storage.publish(part_uri(output, folder, unit.id), data)
    return _commit(about, spec.fingerprint, part, failures_file)


def _to_bytes(table: pa.Table, metadata: dict[bytes, bytes]) -> tuple[bytes, StoredFile]:
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    once = {name: value for name, value in metadata.items() if name == NOTES_KEY}
    return to_parquet(
        table.replace_schema_metadata({name: value for name, value in metadata.items() if name not in once}),
        max(1, ROW_GROUP_BYTES // row_bytes),
        [name for name in ("label", "uri", "stage", "error_type") if name in table.column_names],
        once,
    )


def _commit(about: dict[str, Any], fingerprint: str, part: StoredFile, failures: StoredFile | None = None) -> Commit:
    return Commit(
        unit_id=about["id"],
        version=about["version"],
        inputs=about["inputs"],
        embedded=about["embedded"],
        failures=about["failures"],
        icc_profiles_ignored=about["icc_profiles_ignored"],
        fingerprint=fingerprint,
        part=part,
        failures_file=failures,
        generation=about.get("generation", ""),
        retryable=about.get("retryable", 0),
        unread=about.get("unread", []),
        labels=about.get("labels", {}),
        conditions=about.get("conditions"),
    )


def _count_labels(table: pa.Table) -> dict[str, Any]:
    labels = table["label"].to_pylist() if "label" in table.column_names else []
    return dataclasses.asdict(LabelCount.of(labels))


class DamagedPartError(OSError):
    """A file among a run's parts that is none, or is damaged; the storage is not at fault.

    Attributes:
        uri: of the file.
        reason: what is wrong with it.
    """

    def __init__(self, uri: str, reason: str, remedy: str = "delete it and run again") -> None:
        super().__init__(f"{uri} is not a part of an Imagebeam run ({reason}); {remedy}")
        self.uri = uri
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.uri, self.reason)


class MisnamedPartError(DamagedPartError):
    """A part under the name of another: a copy, or one that was renamed.

    Attributes:
        own_uri: where the part belongs.
    """

    def __init__(self, uri: str, own_uri: str) -> None:
        own_name = storage.basename(own_uri)
        super().__init__(uri, f"it holds the rows of {own_name}", f"rename it to {own_name}, or delete it")
        self.own_uri = own_uri

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.uri, self.own_uri)

    def is_copy(self) -> bool:
        """Whether the part is under its own name too.

        Raises:
            OSError: if that cannot be read.
        """
        try:
            return read_commit(self.own_uri) is not None
        except DamagedPartError:
            return False


def read_commit(uri: str) -> Commit | None:
    """What the part at `uri`, of rows or of failures, says of itself in its footer; None where there is no part.

    Raises:
        OSError: as `read_part_footer`.
    """
    found = read_part_footer(uri)
    return None if found is None else found[0]


def read_part_footer(uri: str) -> tuple[Commit, pa.Schema] | None:
    """`read_commit`, and the schema without its metadata.

    The footer alone is read, by one or two ranged reads; `transforms.runs.verify` looks at the rest.

    Raises:
        MisnamedPartError: for the part of another unit than its name says.
        DamagedPartError: for a file that is no part of this project, or whose footer is damaged.
        OSError: if it cannot be read.
    """
    try:
        footer, stored = read_footer(uri)
        metadata = footer.metadata or {}
        commit = _commit(json.loads(metadata[UNIT_KEY]), metadata[FINGERPRINT_KEY].decode(), stored)
        rows = commit.failed if footer.schema.names == FAILURES_SCHEMA.names else commit.embedded
        if footer.num_rows != rows:
            raise ValueError(f"it has {footer.num_rows} rows, not {rows}")
        schema = footer.schema.to_arrow_schema().remove_metadata()
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedPartError(uri, reason) from error
    if storage.basename(uri) != part_name(commit.unit_id):
        raise MisnamedPartError(uri, storage.join(storage.parent(uri), part_name(commit.unit_id)))
    return commit, schema


def with_failures(output: str, done: Commit) -> Commit:
    """A commit with what identifies its failures, if those beside the part are the ones it speaks of.

    They are not after a retry that was killed at its end.
    """
    if not done.failed:
        return done
    try:
        failures = read_commit(failures_uri(output, done.unit_id))
    except MisnamedPartError:
        return done
    found = None if failures is None else (failures.version, failures.failures, failures.generation)
    if failures is None or found != (done.version, done.failures, done.generation):
        return done
    return replace(done, failures_file=failures.part)


def can_widen(found: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether a part's kept columns can become those of another layout, of which all else is the same."""
    return found.names == wanted.names and all(
        one.type == other.type or (not one.name.startswith("embedding") and holds(other.type, one.type))
        for one, other in zip(found, wanted, strict=True)
    )


def widen_part(output: str, folder: str, unit_id: str, wanted: pa.Schema) -> Commit:
    """Write a part again, its kept columns as the types of another layout; see `can_widen`.

    Raises:
        OSError: if the storage refuses; the part is what it was then.
    """
    uri = part_uri(output, folder, unit_id)
    table = read_table(uri)
    metadata = {name: value for name, value in table.schema.metadata.items() if name != DATA_KEY}
    for index, field_ in enumerate(wanted):
        kind = table.schema.field(index).type
        if kind != field_.type and holds(field_.type, kind):
            values = [fit(value, field_.type, declared=True) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field_, pa.array(values, field_.type))
    data, part = _to_bytes(table, metadata)
    storage.publish(uri, data)
    return _commit(json.loads(metadata[UNIT_KEY]), metadata[FINGERPRINT_KEY].decode(), part)


def stored_schema(table: pa.Table) -> pa.Schema:
    """The schema that `read_part_footer` gives of a part with the columns of `table`."""
    data, _ = _to_bytes(table.slice(0, 0), {})
    return pq.read_metadata(pa.BufferReader(data)).schema.to_arrow_schema().remove_metadata()


def read_key_uris(uri: str) -> dict[str, str]:
    """Key -> uri of a part's rows.

    Raises:
        OSError: if the part cannot be read.
    """
    try:
        table = read_table(uri, ["key", "uri"])
    except pa.ArrowException as error:
        raise OSError(f"{uri} cannot be read: {' '.join(str(error).split())}") from error
    return dict(zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True))


def read_names(output: str, folder: str, commit: Commit) -> tuple[set[str], set[str]]:
    """(keys, uris) of a unit's rows and failures.

    The uri of a record that could not be read is left out: it says nothing of what else the file holds.

    Raises:
        OSError: if a part cannot be read.
    """
    rows = read_key_uris(part_uri(output, folder, commit.unit_id))
    keys, uris = set(rows), set(rows.values())
    if commit.failed:
        for failure in read_table(failures_uri(output, commit.unit_id), ["key", "uri", "stage"]).to_pylist():
            keys.add(failure["key"])
            uris.update([failure["uri"]] if failure["stage"] != Stage.READ else [])
    return keys, uris


def read_failed_keys(output: str, unit_id: str, error_type: str) -> set[str]:
    """Keys of a unit's failures of one type.

    Raises:
        OSError: if they cannot be read.
    """
    failures = read_table(failures_uri(output, unit_id), ["key", "error_type"])
    return set(failures.filter(pc.equal(failures["error_type"], error_type))["key"].to_pylist())


def keep_rows(output: str, folder: str, unit_id: str, keys: set[str]) -> Commit:
    """Write a part again with those of its rows alone whose key is in `keys`, and drop its failures.

    What is left is a part of no unit any more: its version is such that it is never taken for the whole unit.
    """
    uri = part_uri(output, folder, unit_id)
    table = read_table(uri)
    kept = pc.is_in(table["key"], value_set=pa.array(sorted(keys), pa.string()))
    table = take_rows(table, np.flatnonzero(kept.to_numpy()))
    metadata = dict(table.schema.metadata)
    about = json.loads(metadata[UNIT_KEY])
    about |= {"version": "reduced", "icc_profiles_ignored": 0, **_counts(table, [])}
    metadata[UNIT_KEY] = json.dumps(about, sort_keys=True).encode()
    data, part = _to_bytes(table, metadata)
    storage.publish(uri, data)
    delete_failures(output, unit_id)
    return _commit(about, metadata[FINGERPRINT_KEY].decode(), part)


def note_rows(table: pa.Table, notes: Sequence[int]) -> pa.Table:
    """Rows with a note on each, which their part's footer will hold; see `row_notes`."""
    return table.replace_schema_metadata({NOTES_KEY: encode_notes(notes)})


def take_rows(part: pa.Table, positions: np.ndarray) -> pa.Table:
    """A part's rows at these positions, in their order, with its metadata and the notes on those rows."""
    metadata = {name: value for name, value in (part.schema.metadata or {}).items() if name != DATA_KEY}
    if NOTES_KEY in metadata:
        metadata[NOTES_KEY] = keep_notes(metadata[NOTES_KEY], part.num_rows, positions.tolist())
    return part.take(pa.array(positions, pa.int64())).replace_schema_metadata(metadata)


def join_rows(parts: Sequence[pa.Table]) -> pa.Table:
    """The rows of parts of one layout, with the first one's metadata, and the notes on all rows."""
    metadata = dict(parts[0].schema.metadata or {})
    entries = [(part.schema.metadata or {}).get(NOTES_KEY) for part in parts]
    if any(entries):
        notes = (decode_notes(entry, part.num_rows) for entry, part in zip(entries, parts, strict=True))
        metadata[NOTES_KEY] = encode_notes(list(itertools.chain.from_iterable(notes)))
    return pa.concat_tables([part.replace_schema_metadata(None) for part in parts]).replace_schema_metadata(metadata)


def write_rows(uri: str, part: pa.Table) -> None:
    """Publish rows with the metadata that they have, as a part."""
    data, _ = _to_bytes(part, dict(part.schema.metadata or {}))
    storage.publish(uri, data)


def delete_failures(output: str, unit_id: str) -> None:
    """Remove a unit's failures where there are any: deleting asks for a right that a first run need not have."""
    uri = failures_uri(output, unit_id)
    if storage.exists(uri):
        storage.delete(uri)


def read_spec(uri: str) -> EmbedderSpec:
    """The spec in the footer of a part."""
    with storage.open_read(uri) as source:
        return EmbedderSpec.from_json(pq.read_schema(source).metadata[SPEC_KEY])


def read_schema(uri: str) -> pa.Schema:
    """The columns of a part, without metadata."""
    with storage.open_read(uri) as source:
        return pq.read_schema(source).remove_metadata()


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part, page checksums verified: all of it, or those of `columns` that it has."""
    with storage.open_read(uri) as source:
        return pq.ParquetFile(source, page_checksum_verification=True).read(columns)


def list_parts(folder: str) -> Iterator[tuple[str, str]]:
    """(unit id, uri) of the parts in a folder of a run, in order of the id."""
    for info in storage.list_folder(folder):
        if match := _PART_NAME.fullmatch(storage.basename(info.uri)):
            yield match[1], info.uri


def list_foreign(folder: str) -> Iterator[str]:
    """List Parquet files in an `embeddings` folder that no run wrote: readers of the folder would include them."""
    for info in storage.list_folder(folder):
        name = storage.basename(info.uri)
        if name.endswith(".parquet") and not _PART_NAME.fullmatch(name):
            yield info.uri
