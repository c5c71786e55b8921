"""`--keep_columns`: the input columns to keep, with their names and types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.core.errors import ImagebeamError
from transforms.core.formats import KEEP_TYPES, OUTPUT_COLUMNS, is_output_column

if TYPE_CHECKING:
    import pyarrow as pa

PRINTED_AS = {"float": "float32", "double": "float64"}
"""What pyarrow prints for some of them, which is taken too."""


@dataclass(frozen=True)
class KeptColumn:
    """A column of the input that is kept.

    Attributes:
        source: its name in the input.
        name: its name in the output.
        type: one of `KEEP_TYPES`, or "list<TYPE>"; None where the input tells it.

    Raises:
        ImagebeamError: for a name that is empty or the output's own, or another type.
    """

    source: str
    name: str
    type: str | None = None

    @classmethod
    def parse(cls, text: str) -> KeptColumn:
        """NAME, NAME=NEW, NAME:TYPE or NAME=NEW:TYPE."""
        column, colon, kind = text.strip().partition(":")
        source, equals, name = column.partition("=")
        kind = PRINTED_AS.get(kind, kind)
        if (item := _item_type(kind)) != kind:
            kind = f"list<{PRINTED_AS.get(item, item)}>"
        return cls(source, name if equals else source, kind if colon else None)

    def __post_init__(self) -> None:
        if not self.source or not self.name or (self.type is not None and _item_type(self.type) not in KEEP_TYPES):
            raise ImagebeamError(
                f"--keep_columns is a list of NAME, NAME=NEW, NAME:TYPE or NAME=NEW:TYPE, with a TYPE of "
                f"{', '.join(KEEP_TYPES)}, or 'list<TYPE>'. Received: {str(self)!r}."
            )
        if is_output_column(self.name):
            raise ImagebeamError(
                f"--keep_columns cannot take a name the output uses itself ({', '.join(OUTPUT_COLUMNS)}, "
                f"embedding_*), in whatever case. Received: {self.name!r}. Rename it: {self.source}=NEW."
            )

    def __str__(self) -> str:
        """As `parse` takes it."""
        renamed = "" if self.name == self.source else f"={self.name}"
        return f"{self.source}{renamed}{'' if self.type is None else f':{self.type}'}"

    @property
    def arrow_type(self) -> pa.DataType:
        """The declared type; null where the input tells it."""
        import pyarrow as pa

        if self.type is None:
            return pa.null()
        item = pa.type_for_alias(_item_type(self.type))
        return pa.list_(item) if self.type.startswith("list<") else item


def parse_kept_columns(text: str) -> tuple[KeptColumn, ...]:
    """Parse the flag: columns with commas between them."""
    return tuple(map(KeptColumn.parse, text.split(",")))


def _item_type(kind: str) -> str:
    """Of "list<string>", "string"; of any other type, itself."""
    return kind[5:-1] if kind.startswith("list<") and kind.endswith(">") else kind
