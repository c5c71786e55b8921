"""`imagebeam compare`: outputs of extract over the same images -> which embedding is the better one, and how surely."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from pipelines.common.fields import Options, flag
from pipelines.common.flags import JobParser, parse
from transforms.core.errors import ImagebeamError

if TYPE_CHECKING:
    import numpy as np

    from transforms.training.compare import Answers
    from transforms.training.embeddings import EmbeddingSet

DESCRIPTION = """\
Compare embeddings of the same labelled images: models, layers, poolings, precisions. Each is measured by
cross-validation, with a linear probe as `imagebeam train` solves it and by nearest neighbours, on the same rows and
folds, so that differences are paired."""


@dataclass(frozen=True)
class CompareOptions(Options):
    """What is compared, and how."""

    outputs: tuple[str, ...] = flag("outputs of extract, local or gs://; every embedding column of each is compared")
    label_column: str = flag("column with the labels", "label", metavar="NAME")
    folds: int = flag("parts the rows are cut into; each is left out once", 5, type=int, metavar="K")
    neighbours: int = flag("rows that vote, for nearest neighbours", 10, type=int, metavar="N")
    max_rows: int = flag("images to compare on at most, drawn at random", 10_000, type=int, metavar="N")
    seed: int = flag("of the draw and the folds", 0, type=int, metavar="N")
    format: str = flag("of what is printed", "text", choices=("text", "json"))

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("neighbours", 1), ("max_rows", 10)):
            if getattr(self, name) < least:
                raise ImagebeamError(f"--{name} is at least {least}. Received: {getattr(self, name)}.")


@dataclass(frozen=True)
class Compared:
    """One embedding.

    Attributes:
        name: output folder and column.
        dimension: of its vectors.
        fingerprint: of what made them.
        linear_probe: rows it got right.
        neighbours: rows that nearest neighbours got right.
    """

    name: str
    dimension: int
    fingerprint: str
    linear_probe: Answers
    neighbours: Answers


def run(options: CompareOptions) -> list[Compared]:
    """Compare, best linear probe first.

    Raises:
        ImagebeamError: if an output cannot be used, there are fewer than two embeddings, or they have too few labelled
            images in common.
    """
    from transforms.training.embeddings import open_columns

    sets = [embeddings for folder in options.outputs for embeddings in open_columns(folder)]
    if len(sets) < 2:
        raise ImagebeamError(
            f"There is one embedding, and nothing to compare it with. Received: {', '.join(options.outputs)}. Name "
            "another output, or one with several layers."
        )

    import numpy as np

    from transforms.training.compare import common_rows, cut_folds, keep_measurable, nearest_neighbours, probe

    tables = [_read_names(embeddings, options.label_column) for embeddings in sets]
    rows = common_rows([digests for digests, _ in tables], options.max_rows, options.seed)
    labels = np.array([tables[0][1][row] for row in rows[0]], object)
    known = np.array([label is not None for label in labels], bool)
    classes, targets = np.unique(labels[known].astype(str), return_inverse=True)
    kept = np.flatnonzero(known)[keep_measurable(targets)] if len(targets) else np.array([], int)
    if len(kept) < options.folds or len(np.unique(labels[kept].astype(str))) < 2:
        raise ImagebeamError(
            f"The outputs have {len(rows[0]):,} images in common, {len(kept):,} of them with a label that another has "
            f"too; at least {options.folds} of two classes are needed. Received: {', '.join(options.outputs)}. Extract "
            "the same images for each."
        )
    classes, targets = np.unique(labels[kept].astype(str), return_inverse=True)
    say(f"Comparing {len(sets)} embeddings on {len(kept):,} images of {len(classes):,} classes, {options.folds} folds")
    folds = cut_folds(targets, options.folds, options.seed)
    found = []
    for embeddings, own_rows in zip(sets, rows, strict=True):
        name = f"{embeddings.folders[0]} {embeddings.column}"
        vectors = _read_vectors(embeddings, own_rows[kept])
        linear = probe(vectors, targets, folds, options.seed)
        near = nearest_neighbours(vectors, targets, folds, options.neighbours)
        found.append(Compared(name, embeddings.dimension, embeddings.spec.fingerprint, linear, near))
        say(f"  {name}: linear probe {linear.accuracy:.4f}, nearest neighbours {near.accuracy:.4f}")
    return sorted(found, key=lambda compared: -compared.linear_probe.accuracy)


def _read_names(embeddings: EmbeddingSet, label_column: str) -> tuple[list[str], list[Any]]:
    """Digests and labels of all rows, in order."""
    if label_column not in embeddings.schema.names:
        known = ", ".join(embeddings.schema.names)
        raise ImagebeamError(f"There is no such column. Received: --label_column {label_column!r}. Known are {known}.")
    digests: list[str] = []
    labels: list[Any] = []
    for _, table in embeddings.read(embeddings.groups, ["sha256", label_column]):
        digests += table["sha256"].to_pylist()
        labels += table[label_column].to_pylist()
    return digests, labels


def _read_vectors(embeddings: EmbeddingSet, rows: np.ndarray) -> np.ndarray:
    """Vectors of rows by their numbers, float32 [n, dimension], in the order given."""
    import numpy as np

    vectors = np.empty((len(rows), embeddings.dimension), np.float32)
    order = np.argsort(rows)
    ordered = rows[order]
    for group, table in embeddings.read(embeddings.groups, [embeddings.column]):
        first, last = np.searchsorted(ordered, [group.start, group.start + group.rows])
        if first < last:
            vectors[order[first:last]] = embeddings.vectors(group, table)[ordered[first:last] - group.start]
    return vectors


def describe(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """In JSON terms; differences are to the first."""
    best = found[0]
    return [
        {
            "embedding": compared.name,
            "dimension": compared.dimension,
            "fingerprint": compared.fingerprint,
            "images": len(compared.linear_probe.right),
            **{
                method: {
                    "accuracy": getattr(compared, method).accuracy,
                    "interval_95": getattr(compared, method).interval,
                    "difference": getattr(compared, method).difference(getattr(best, method))[0],
                    "difference_interval_95": getattr(compared, method).difference(getattr(best, method))[1:],
                }
                for method in ("linear_probe", "neighbours")
            },
        }
        for compared in found
    ]


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        *("embedding", "length", "linear probe", "to the first", "neighbours", "to the first"),
        title=f"Accuracy on {rows[0]['images']:,} images, each left out once; intervals of 95 %",
    )
    for number, row in enumerate(rows):
        cells = []
        for method in ("linear_probe", "neighbours"):
            found = row[method]
            low, high = found["interval_95"]
            cells.append(f"{found['accuracy']:.4f} ({low:.4f} to {high:.4f})")
            low, high = found["difference_interval_95"]
            cells.append(f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})" if number else "")
        table.add_row(row["embedding"], str(row["dimension"]), *cells)
    Console(soft_wrap=True).print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam compare`."""
    (outputs,) = (field for field in dataclasses.fields(CompareOptions) if field.name == "outputs")
    parser.add_argument("outputs", metavar="OUT", nargs="+", help=outputs.metadata["help"])
    CompareOptions.add_arguments(parser, "comparison", leave_out=("outputs",))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = JobParser("compare", DESCRIPTION)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    options = CompareOptions.from_args(args)
    rows = describe(run(options))
    if options.format == "json":
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print_table(rows)
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("compare"))
