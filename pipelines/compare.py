"""`imagebeam compare`: compare embeddings of the same images, with confidence intervals."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from pipelines.common.fields import Options, check_seed, flag
from pipelines.common.flags import JobParser, parse
from pipelines.training.accuracy_table import accuracy_cell, difference_cell, print_accuracies
from pipelines.training.accuracy_table import describe as describe_answers
from transforms.core.errors import ImagebeamError
from transforms.core.installed import require
from transforms.core.text import counted, first_few

if TYPE_CHECKING:
    import numpy as np

    from transforms.training.compare import Answers
    from transforms.training_data.embeddings import EmbeddingSet

DESCRIPTION = """\
Compare embeddings of the same labelled images: models, layers, poolings, precisions. Each is measured by
cross-validation, with a linear probe as `imagebeam train` solves it and by nearest neighbours, on the same rows and
folds, so that differences are paired."""

EXAMPLES = (
    "imagebeam compare out/vgg16 out/resnet50",
    "imagebeam compare out/vgg16 out/resnet50 --folds 10 --format json",
)


@dataclass(frozen=True)
class CompareOptions(Options):
    """What is compared, and how."""

    outputs: tuple[str, ...] = flag("output of extract, local or gs://; every embedding column of it is compared")
    label_column: str = flag("column with the labels", "label", metavar="NAME")
    folds: int = flag("folds that the rows are cut into; each is left out once", 5, type=int, metavar="K")
    neighbours: int = flag("number of nearest neighbours that vote", 10, type=int, metavar="N")
    max_rows: int = flag("most images to compare on, drawn at random", 10_000, type=int, metavar="N")
    seed: int = flag("seed of the draw and of the folds", 0, type=int, metavar="N")
    format: str = flag("format of what is printed", "text", choices=("text", "json"), metavar="text|json")

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("neighbours", 1), ("max_rows", 10)):
            if getattr(self, name) < least:
                raise ImagebeamError(f"--{name} is at least {least}. Received: {getattr(self, name)}.")
        check_seed(self.seed)


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
    from transforms.training_data.embeddings import absolute_once, open_columns

    require("sklearn")
    sets = [embeddings for folder in absolute_once(options.outputs) for embeddings in open_columns(folder)]
    if len(sets) < 2:
        raise ImagebeamError(
            f"There is one embedding, and nothing to compare it with. Received: {', '.join(options.outputs)}. Name "
            "another output, or one with several layers."
        )

    import numpy as np

    from transforms.training.compare import common_rows, nearest_neighbours, probe
    from transforms.training.exact_solver import cut_folds

    runs = list({embeddings.folders[0]: embeddings for embeddings in sets}.values())  # of their columns any will do
    _check_label_column(runs, options.label_column)
    digests = [_read_column(embeddings, "sha256") for embeddings in runs]
    found_rows = common_rows(digests, options.max_rows, options.seed)
    names = _labels(runs, found_rows, options.label_column)
    by_run = {embeddings.folders[0]: rows for embeddings, rows in zip(runs, found_rows, strict=True)}
    known = np.flatnonzero([name is not None for name in names])
    _, numbers, counts = np.unique(names[known], return_inverse=True, return_counts=True)
    kept = known[counts[numbers] >= 2]  # Of a class with one row, nothing can be left out and learned.
    classes, targets = np.unique(names[kept], return_inverse=True)
    if len(kept) < options.folds or len(classes) < 2:
        raise ImagebeamError(
            f"The outputs have {len(names):,} images in common, {len(kept):,} of them with a label that another has "
            f"too; at least {options.folds} of two classes are needed. Received: {', '.join(options.outputs)}. Extract "
            "the same images for each."
        )
    shared, all_images = set(digests[0]).intersection(*digests[1:]), set().union(*digests)
    if left_out := len(all_images) - len(shared):
        say(f"{counted(left_out, 'image is', 'images are')} not in every output, and left out")
    folds = cut_folds(targets, np.arange(len(targets)), options.folds, options.seed)
    say(f"Comparing {len(sets)} embeddings on {len(kept):,} images of {len(classes):,} classes, {len(folds)} folds")
    found = []
    for embeddings in sets:
        name = f"{embeddings.folders[0]} {embeddings.column}"
        vectors = _read_vectors(embeddings, by_run[embeddings.folders[0]][kept])
        linear = probe(vectors, targets, folds, options.seed)
        near = nearest_neighbours(vectors, targets, folds, options.neighbours)
        found.append(Compared(name, embeddings.dimension, embeddings.spec.fingerprint, linear, near))
        say(f"  {name}: linear probe {linear.accuracy:.4f}, nearest neighbours {near.accuracy:.4f}")
    return sorted(found, key=lambda compared: -compared.linear_probe.accuracy)


def _check_label_column(runs: Sequence[EmbeddingSet], column: str) -> None:
    if not any(column in embeddings.schema.names for embeddings in runs):
        known = ", ".join(runs[0].schema.names)
        raise ImagebeamError(f"There is no such column. Received: --label_column {column!r}. Known are {known}.")


def _labels(runs: Sequence[EmbeddingSet], rows: Sequence[np.ndarray], column: str) -> np.ndarray:
    """Labels of the same rows of all runs, str or None [n]; a warning says where they differ between runs."""
    import numpy as np

    from transforms.readers.columns import as_label
    from transforms.training.compare import agreed_labels

    labels = []
    for embeddings, own_rows in zip(runs, rows, strict=True):
        if column not in embeddings.schema.names:
            continue
        values = _read_column(embeddings, column)
        try:
            labels.append([as_label(values[row]) for row in own_rows])
        except ValueError as error:
            raise ImagebeamError(
                f"An image has one label here ({error}). Received: --label_column {column!r}."
            ) from error
    found, differing = agreed_labels(labels)
    if differing:
        key = _read_column(runs[0], "key")[rows[0][differing[0]]]
        given = first_few([repr(label) for label in dict.fromkeys(own[differing[0]] for own in labels) if label])
        say(
            f"WARNING: {counted(len(differing), 'image has', 'images have')} other labels in one output than in "
            f"another, such as {key!r} ({given}); the first output that has a label is followed"
        )
    return np.array(found, object)


def _read_column(embeddings: EmbeddingSet, column: str) -> list[Any]:
    """A column of all rows, in order."""
    tables = embeddings.read(embeddings.groups, [column])
    return [value for _, table in tables for value in table[column].to_pylist()]


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
            "embedding": one.name,
            "dimension": one.dimension,
            "fingerprint": one.fingerprint,
            "images": len(one.linear_probe.right),
            "linear_probe": describe_answers(one.linear_probe, best.linear_probe),
            "neighbours": describe_answers(one.neighbours, best.neighbours),
        }
        for one in found
    ]


def _print(rows: Sequence[dict[str, Any]]) -> None:
    cells = []
    for number, row in enumerate(rows):
        methods = [row["linear_probe"], row["neighbours"]]
        found = [(accuracy_cell(one), difference_cell(one) if number else "") for one in methods]
        cells.append((row["embedding"], str(row["dimension"]), *itertools.chain(*found)))
    print_accuracies(
        ("embedding", "length", "linear probe", "to the first", "neighbours", "to the first"),
        cells,
        f"Accuracy on {rows[0]['images']:,} images, each left out once; intervals of 95 %",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam compare`."""
    (outputs,) = (field for field in dataclasses.fields(CompareOptions) if field.name == "outputs")
    parser.add_argument("outputs", metavar="OUT", nargs="+", help=outputs.metadata["help"])
    CompareOptions.add_arguments(parser, "comparison", leave_out=("outputs",))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = JobParser("compare", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    options = CompareOptions.from_args(args)
    rows = describe(run(options))
    if options.format == "json":
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print(rows)
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("compare"))
