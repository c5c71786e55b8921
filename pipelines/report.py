"""`imagebeam report`: write one HTML page about a run: its settings, counts, failures and plots."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from pipelines.common.flags import JobParser, parse
from pipelines.runtime.report_page import FAILURES_SHOWN, Classifier, Rows, render
from transforms.core.errors import ImagebeamError, JobError, using
from transforms.core.installed import require

if TYPE_CHECKING:
    import pyarrow as pa

DESCRIPTION = """\
Write DIR/report.html: totals, spec, failures with their reasons, sizes and labels of the images, and a picture of the
embeddings (their first two principal components). One file, no script, nothing loaded from elsewhere."""

EXAMPLES = (
    "imagebeam report out/photos",
    "imagebeam report out/photos --classifier out/classifier",
)

SAMPLE_ROWS = 5_000
"""Embeddings drawn at most; other sums are over all rows."""


def write_report(folder: str, classifier: str | None = None) -> str:
    """Write the page and return its uri.

    Args:
        folder: of a finished run.
        classifier: folder of a classifier whose metrics and pictures are shown too; the page says what they are of,
            and a warning where its vectors are of another spec.

    Raises:
        ImagebeamError: if there is no finished run in `folder`, or no classifier in `classifier`.
        JobError: if a file of the run is damaged, naming it.
    """
    from transforms import storage
    from transforms.runs.manifest import DamagedManifestError, read_manifest

    require("matplotlib", "sklearn")
    folder = storage.absolute(folder)
    try:
        manifest = read_manifest(folder)
    except (OSError, DamagedManifestError) as error:
        raise _damaged(folder, "manifest.json", error) from error
    trained = None if classifier is None else _read_classifier(storage.absolute(classifier), folder, manifest)
    page = render(folder, manifest, _gather(folder, manifest), _read_failures(folder, manifest), trained)
    uri = storage.join(folder, "report.html")
    with using("The folder", repr(folder)):
        storage.publish(uri, page.encode("utf-8", "replace"))
    return uri


def _damaged(folder: str, name: str, error: Exception) -> JobError:
    reason = getattr(error, "reason", None) or " ".join(str(error).split())
    return JobError(f"{folder}/{name} cannot be read: {reason}. `imagebeam verify {folder}` names all that is damaged.")


def _read_part(
    folder: str, path: str, about: Mapping[str, Any] | None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Some columns of a part, or of failures, whose footer is the one that `about` identifies.

    Raises:
        JobError: if they are gone or damaged.
    """
    import pyarrow as pa

    from transforms import storage
    from transforms.parts import part_files
    from transforms.parts.stored_file import read_footer

    uri = storage.join(folder, path)
    try:
        if about is not None and read_footer(uri)[1].footer_sha256 != about["footer_sha256"]:
            raise ValueError("it is not the file that the manifest names")
        return part_files.read_table(uri, columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(folder, path, error) from error


def _gather(folder: str, manifest: dict[str, Any]) -> Rows:
    import numpy as np

    rows = Rows(column=next(iter(manifest["dimensions"]), ""))
    every = max(1, -(-manifest["totals"]["embedded"] // SAMPLE_ROWS))
    seen = 0
    for part in manifest["parts"]:
        picked = range(-seen % every, part["rows"], every)
        seen += part["rows"]
        wanted = ["width", "height", "label", *([rows.column] if picked else [])]
        table = _read_part(folder, part["path"], part, wanted)
        for name, counter in (("width", rows.widths), ("height", rows.heights), ("label", rows.labels)):
            if name in table.column_names:
                counter.update(table[name].to_pylist())
        if rows.column in table.column_names:
            sampled = table.take(list(picked))
            rows.vectors += [np.asarray(vector, np.float32) for vector in sampled[rows.column].to_pylist()]
            rows.vector_labels += sampled["label"].to_pylist()
    return rows


def _read_failures(folder: str, manifest: dict[str, Any]) -> list[tuple[str, str, str]]:
    from transforms import storage
    from transforms.parts import part_files

    found: list[tuple[str, str, str]] = []
    for part in manifest["parts"]:
        if part["failed"] and len(found) < FAILURES_SHOWN:
            path = f"{part_files.FAILURES}/{storage.basename(part['path'])}"
            table = _read_part(folder, path, part["failures"])
            found += [(row["key"], row["error_type"], row["message"]) for row in table.to_pylist()]
    return found[:FAILURES_SHOWN]


def _read_classifier(folder: str, run: str, manifest: Mapping[str, Any]) -> Classifier:
    from transforms import storage
    from transforms.runs.manifest import MANIFEST_FILE, read_file
    from transforms.training.output import ResultFile

    uri = storage.join(folder, ResultFile.METRICS)
    try:
        metrics = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        raise ImagebeamError(f"There is no trained classifier: {uri} is missing. Run imagebeam train first.") from None
    except (OSError, ValueError) as error:
        raise ImagebeamError(f"{uri} cannot be read: {error}.") from error
    if not isinstance(metrics, dict):
        raise ImagebeamError(f"{uri} is not what train, finetune or classify wrote. Name the --output of one of them.")
    pictures = {}
    for name in (ResultFile.CURVES, ResultFile.CONFUSION):
        try:
            pictures[name.value] = storage.read_bytes(storage.join(folder, name))
        except FileNotFoundError:
            continue
    about = metrics if "spec" in metrics else read_file(folder, MANIFEST_FILE)
    notes = [*_source(about, run)]
    if differing := _differences(manifest["spec"], about.get("spec")):
        notes.append(
            f"The classifier takes vectors of another spec than this run's ({'; '.join(differing)}): its figures are "
            "not of these vectors."
        )
        say(f"WARNING: {folder}: {notes[-1]}")
    return Classifier(folder, metrics, pictures, notes)


def _source(about: Mapping[str, Any], run: str) -> Iterator[str]:
    """A sentence on what a classifier's figures are of, where its folder says so.

    Args:
        about: metrics.json of train or finetune, or the manifest of classify.
        run: folder of the run that the page is about.
    """
    measured = isinstance(about.get("run"), dict)
    named = about["run"] if measured else {**_mapping(_mapping(about.get("options")).get("input")), **about}
    done = "Measured" if measured else "Trained"
    if folders := _texts(named.get("embeddings")):
        ours = [os.path.realpath(name) == os.path.realpath(run) for name in folders]
        yield f"{done} on the vectors of {'this run' if ours == [True] else ', '.join(folders)}."
    elif patterns := _texts(named.get("input")):
        yield f"{done} on the images of {', '.join(patterns)}."


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _differences(ours: Mapping[str, Any], theirs: object) -> list[str]:
    """A line for each field in which a classifier's spec differs from the run's; none where the folder has no spec."""
    from transforms.core.spec import EmbedderSpec

    try:
        mine, other = EmbedderSpec.from_dict(dict(ours)), EmbedderSpec.from_dict(dict(_mapping(theirs)))
        if set(other.layers) < set(mine.layers):  # One of the run's columns.
            other = dataclasses.replace(other, layers=mine.layers)
        return mine.differences(other)
    except (ImagebeamError, LookupError, TypeError, ValueError):
        return []


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam report`."""
    parser.add_argument("folder", metavar="DIR", help="a finished run's --output")
    group = parser.add_argument_group("report")
    group.add_argument(
        "--classifier", metavar="DIR", help="output of train, finetune or classify that is shown as well"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0."""
    parser = JobParser("report", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    say(f"Report: {write_report(args.folder, args.classifier)}")
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("report"))
