"""Check the input of a job before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.options.extraction import InputOptions
from transforms import storage
from transforms.core.formats import InputFormat, LabelFrom
from transforms.inputs import inspection
from transforms.readers.options import ReadOptions

if TYPE_CHECKING:
    from transforms.embed.sampling import Drawn
    from transforms.images.decode import ImageOptions


@dataclass(frozen=True)
class Source:
    """The input, looked at: every pattern matches something, and the columns are there."""

    patterns: tuple[str, ...]
    input_format: InputFormat | None
    read: ReadOptions

    def describe(self) -> dict[str, Any]:
        """In JSON terms, for run.json."""
        described = {
            "input": list(self.patterns),
            "input_format": self.input_format or "auto",
            "image_column": self.read.image_column,
            "label_column": self.read.label_column,
            "keep_columns": {name: str(kind) for name, kind in self.read.keep_columns},
        }
        if self.read.label_from != LabelFrom.AUTO:  # Runs of earlier versions do not say it.
            described["label_from"] = self.read.label_from
        if self.read.uri_column != "uri":
            described["uri_column"] = self.read.uri_column
        if self.read.renamed:
            described["renamed"] = dict(self.read.renamed)
        return described

    def draw_images(self, options: ImageOptions, count: int) -> Drawn:
        """Images of the input, always the same: see `sampling.draw_images`."""
        from transforms.embed.sampling import draw_images

        return draw_images(self.patterns, self.input_format, self.read, options, count)


def open_input(options: InputOptions, label_lists: str | None = inspection.LABEL_LISTS) -> Source:
    """Look at the input before anything runs.

    Args:
        options: which input.
        label_lists: see `inspection.inspect_input`.

    Raises:
        ImagebeamError: for a pattern without matches, or a column the first shard does not have.
    """
    patterns = tuple(storage.absolute(pattern) for pattern in options.input)
    read = inspection.inspect_input(patterns, options.input_format, options.read_options(), label_lists)
    return Source(patterns, options.input_format, read)
