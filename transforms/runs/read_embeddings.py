"""`ReadEmbeddings`: read the rows of a finished run in a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.typehints.row_type import RowTypeConstraint

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.field_types import typed
from transforms.runs.manifest import read_manifest

_ROWS_AT_ONCE = 1024


class ReadEmbeddings(beam.PTransform):  # type: ignore[misc]
    """Read the rows of a finished run: `pipeline | imagebeam.ReadEmbeddings("gs://bucket/out")`.

    Element out: one dict a row, with `key`, `uri`, `label`, `width`, `height`, `sha256`, kept columns, and the
    embedding columns as lists of floats. The parts are those that the manifest lists; each is checked against its page
    checksums.

    Args:
        output: what `EmbedImages` or `imagebeam extract --output` was given.
        columns: those to read; None for all.
        as_rows: give `beam.Row`s with a schema, which most transforms of Beam YAML need, not dicts. The run must have
            finished when the pipeline is built.

    Raises:
        ImagebeamError: for an argument of another type, when constructed; fails the pipeline where the run has not
            finished, or has no such column.
        ValueError: fails it where the manifest is damaged.
    """

    def __init__(self, output: str, columns: Sequence[str] | None = None, *, as_rows: bool = False) -> None:
        super().__init__()
        self._output = storage.absolute(typed("output", output, str))
        self._columns: tuple[str, ...] | None = typed("columns", columns, tuple[str, ...] | None)
        self._as_rows: bool = typed("as_rows", as_rows, bool)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """List the parts, spread them, read them."""
        rows = (
            begin
            | "Output" >> beam.Create([self._output])
            | "Parts" >> beam.FlatMap(_parts).with_output_types(str)
            | "Spread" >> beam.Reshuffle()
            | "Rows" >> beam.FlatMap(_rows, self._columns).with_output_types(dict[str, Any])
        )
        if not self._as_rows:
            return rows
        return rows | "As rows" >> beam.Map(_as_row).with_output_types(self._row_type())

    def _row_type(self) -> RowTypeConstraint:
        parts = _parts(self._output)
        if not parts:
            raise ImagebeamError(f"The run has no rows, and so no schema. Received: {self._output!r}, as_rows=True.")
        with storage.open_read(parts[0]) as source:
            schema = pq.read_schema(source)
        names = [name for name in schema.names if self._columns is None or name in self._columns]
        if odd := [name for name in names if not name.isidentifier()]:
            raise ImagebeamError(
                f"Columns of a schema have names that Python takes. Received: {odd[0]!r}, as_rows=True. Leave it out "
                "of columns, or embed with --keep_columns 'NAME=NEW'."
            )
        return RowTypeConstraint.from_fields([(name, _python_type(schema.field(name))) for name in names])


_PYTHON_TYPES: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
    (pa.types.is_uint64, Any),  # Beam's integers have a sign.
    (pa.types.is_boolean, bool),
    (pa.types.is_integer, int),
    (pa.types.is_floating, float),
    (pa.types.is_string, str),
    (pa.types.is_large_string, str),
    (pa.types.is_binary, bytes),
    (pa.types.is_large_binary, bytes),
)


def _python_type(field: pa.Field) -> Any:
    """What `to_pylist` makes of a column, for Beam's schemas; Any where they have no such type."""
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        found: Any = Sequence[_python_type(kind.value_field)]  # type: ignore[misc]
    else:
        found = next((python for fits, python in _PYTHON_TYPES if fits(kind)), Any)
    return found | None if field.nullable and found is not Any else found


def _as_row(row: dict[str, Any]) -> beam.Row:
    return beam.Row(**row)


def _parts(output: str) -> list[str]:
    return [storage.join(output, part["path"]) for part in read_manifest(output)["parts"] if part["rows"]]


def _rows(uri: str, columns: tuple[str, ...] | None) -> Iterator[dict[str, Any]]:
    with storage.open_read(uri) as source:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise ImagebeamError(f"{uri} has no column {missing[0]!r}. It has {', '.join(names)}.")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns and list(columns)):
            yield from _widened(pa.Table.from_batches([batch])).to_pylist()


def _widened(table: pa.Table) -> pa.Table:
    """Vectors of float16 as float32, whose items become Python floats."""
    for index, field in enumerate(table.schema):
        is_list = pa.types.is_fixed_size_list(field.type) or pa.types.is_list(field.type)
        if is_list and pa.types.is_float16(field.type.value_type):
            table = table.set_column(index, field.name, table[field.name].cast(pa.list_(pa.float32())))
    return table
