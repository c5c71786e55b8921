"""The options of readers: columns, labels and allowed paths."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from transforms.core.field_types import convert_fields
from transforms.core.formats import LabelFrom
from transforms.core.limits import MAX_RECORD_BYTES

KEEP_COLUMNS = "--keep_columns"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records are read from shards.

    Attributes:
        image_column: TFRecord feature, tar extension or Parquet column.
        label_column: likewise.
        keep_columns: likewise, with the types they are kept as.
        max_record_bytes: a record of more bytes is a failure, before it is read.
        allow_uri_prefix: what manifests' rows and paths in shards may name, beside files below their own folder.
        follow_links: take files of folders that symbolic links find outside of them.
        label_from: where labels come from.
        uri_column: column of a manifest that names its files.
        renamed: kept columns that are called otherwise in the input: (name in the output, name in the input).
        inferred: kept columns whose type nobody declared: a sample of the records told it.
        kept_by: the flag that names the kept columns, for messages.

    Raises:
        ImagebeamError: for a value of another type.
    """

    image_column: str = "image"
    label_column: str = "label"
    keep_columns: tuple[tuple[str, pa.DataType], ...] = ()
    max_record_bytes: int = MAX_RECORD_BYTES
    allow_uri_prefix: tuple[str, ...] = ()
    follow_links: bool = False
    label_from: LabelFrom = LabelFrom.AUTO
    uri_column: str = "uri"
    renamed: tuple[tuple[str, str], ...] = ()
    inferred: tuple[str, ...] = ()
    kept_by: str = KEEP_COLUMNS

    def __post_init__(self) -> None:
        convert_fields(self)

    @property
    def kept_from(self) -> dict[str, str]:
        """Name of a kept column in the output -> its name in the input."""
        return {name: name for name, _ in self.keep_columns} | dict(self.renamed)
