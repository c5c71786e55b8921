"""`imagebeam report`: a run's folder -> one HTML page that says what was run, what came of it and how it looks."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.console import say
from pipelines.flags import JobParser, parse
from transforms.errors import ImagebeamError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

DESCRIPTION = """\
Write DIR/report.html: totals, spec, failures with their reasons, sizes and labels of the images, and a picture of the
embeddings (their first two principal components). One file, no script, nothing loaded from elsewhere."""

SAMPLE_ROWS = 5_000
"""Embeddings drawn at most; other sums are over all rows."""

_FAILURES_SHOWN = 100
_LABELS_SHOWN = 20
_COLOURS = "tab20"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2733 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dde5 }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1.5rem }
.card { background: #f1f5f9; border-radius: .5rem; padding: .7rem 1.2rem; min-width: 8rem }
.card b { display: block; font-size: 1.5rem } .bad b { color: #b42318 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top }
th { color: #52606d; font-weight: 600 } td { overflow-wrap: anywhere } tr + tr td { border-top: 1px solid #eef2f6 }
code { font-size: .9em } img { max-width: 100% } .note { color: #52606d }
"""


@dataclass
class Rows:
    """What the page needs of a run's parts, gathered in one pass.

    Attributes:
        widths: of all images, in pixels.
        heights: likewise.
        labels: count of each label.
        vectors: a sample of embeddings [n, dimension], of the first embedding column.
        vector_labels: the label of each.
        column: the name of that column.
    """

    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    labels: Counter[str | None] = field(default_factory=Counter)
    vectors: list[np.ndarray] = field(default_factory=list)
    vector_labels: list[str | None] = field(default_factory=list)
    column: str = "embedding"


def write_report(folder: str, classifier: str | None = None) -> str:
    """Write the page and return its uri.

    Args:
        folder: of a finished run.
        classifier: folder of a classifier trained on it, whose metrics and pictures are shown too.

    Raises:
        ImagebeamError: if there is no finished run in `folder`, or no classifier in `classifier`.
    """
    from transforms import storage

    folder = storage.absolute(folder)
    manifest = _read_json(storage.join(folder, "manifest.json"), "finished run", "Let imagebeam extract finish first")
    rows = _gather(folder, manifest)
    sections = [
        _cards(manifest),
        *_what_was_run(manifest),
        *_failures(folder, manifest),
        *_images(rows),
        *_embeddings(rows),
    ]
    if classifier is not None:
        sections += _classifier(storage.absolute(classifier))
    title = html.escape(storage.basename(folder))
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Imagebeam: {title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p class=note>{html.escape(folder)}</p>{''.join(sections)}</html>"
    )
    uri = storage.join(folder, "report.html")
    storage.publish(uri, page.encode())
    return uri


def _read_json(uri: str, what: str, remedy: str) -> dict[str, Any]:
    from transforms import storage

    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        raise ImagebeamError(f"There is no {what}: {uri} is missing. {remedy}.") from None
    return content


def _gather(folder: str, manifest: dict[str, Any]) -> Rows:
    import numpy as np

    from transforms import parquet, storage

    rows = Rows(column=next(iter(manifest["dimensions"])))
    every = max(1, -(-manifest["totals"]["embedded"] // SAMPLE_ROWS))
    seen = 0
    for part in manifest["parts"]:
        table = parquet.read_table(storage.join(folder, part["path"]))
        rows.widths.update(table["width"].to_pylist())
        rows.heights.update(table["height"].to_pylist())
        labels = table["label"].to_pylist()
        rows.labels.update(labels)
        picked = list(range(-seen % every, table.num_rows, every))
        seen += table.num_rows
        vectors = table[rows.column].take(picked).to_pylist()
        rows.vectors += [np.asarray(vector, np.float32) for vector in vectors]
        rows.vector_labels += [labels[index] for index in picked]
    return rows


def _cards(manifest: dict[str, Any]) -> str:
    totals, timings = manifest["totals"], manifest["timings"]
    cards = [
        ("embeddings", f"{totals['embedded']:,}", False),
        ("failures", f"{totals['failed']:,}", totals["failed"] > 0),
        ("records", f"{totals['records']:,}", False),
        ("parts", f"{totals['units']:,}", False),
        ("bytes", f"{totals['bytes']:,}", False),
        ("seconds (last run)", f"{timings['seconds']:,.1f}", False),
    ]
    boxes = [f"<div class='card{' bad' if bad else ''}'><b>{value}</b>{name}</div>" for name, value, bad in cards]
    return f"<div class=cards>{''.join(boxes)}</div>"


def _table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{html.escape(name)}' for name in header)}" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}' for cell in row)}" for row in rows)
    return f"<table>{head}{body}</table>"


def _what_was_run(manifest: dict[str, Any]) -> list[str]:
    facts = {
        **manifest["spec"],
        "weights": manifest["weights"]["source"],
        "dimensions": manifest["dimensions"],
        "fingerprint": manifest["fingerprint"],
        **{f"run: {name}": value for name, value in manifest["run"].items()},
        **{f"version: {name}": value for name, value in manifest["versions"].items()},
        "started": manifest["timings"]["started"],
        "finished": manifest["timings"]["finished"],
    }
    return ["<h2>What was run</h2>", _table(facts.items())]


def _failures(folder: str, manifest: dict[str, Any]) -> list[str]:
    from transforms import parquet, storage

    totals = manifest["totals"]
    sections = ["<h2>Failures</h2>"]
    if totals["icc_profiles_ignored"]:
        count = totals["icc_profiles_ignored"]
        sections.append(f"<p class=note>{count:,} images carried an ICC colour profile, which is not applied.</p>")
    if not totals["failed"]:
        return [*sections, "<p>None.</p>"]
    kinds = [(*kind.split("/", 1), f"{count:,}") for kind, count in totals["failures"].items()]
    sections.append(_table(kinds, ("stage", "error type", "records")))
    shown: list[Sequence[object]] = []
    for part in manifest["parts"]:
        if part["failed"] and len(shown) < _FAILURES_SHOWN:
            unit_id = storage.basename(part["path"]).removeprefix("part-").removesuffix(".parquet")
            table = parquet.read_table(parquet.failures_uri(folder, unit_id))
            shown += [(row["key"], row["error_type"], row["message"]) for row in table.to_pylist()]
    sections.append(f"<p class=note>The first {min(len(shown), _FAILURES_SHOWN)} of {totals['failed']:,}:</p>")
    return [*sections, _table(shown[:_FAILURES_SHOWN], ("key", "error type", "message"))]


def _images(rows: Rows) -> list[str]:
    if not rows.widths:
        return []
    figure, (left, right) = _figure(2)
    for axes, counts, name in ((left, rows.widths, "width"), (right, rows.heights, "height")):
        axes.hist(list(counts), bins=30, weights=list(counts.values()), color="#2f6db5")
        axes.set(title=f"Stored image {name}", xlabel="pixels", ylabel="images")
    labels = [("(none)" if label is None else label, f"{count:,}") for label, count in rows.labels.most_common()]
    more = f"<p class=note>and {len(labels) - _LABELS_SHOWN:,} more</p>" if len(labels) > _LABELS_SHOWN else ""
    return ["<h2>Images</h2>", _png(figure), _table(labels[:_LABELS_SHOWN], ("label", "embeddings")), more]


def _embeddings(rows: Rows) -> list[str]:
    import numpy as np

    if len(rows.vectors) < 3 or len(rows.vectors[0]) < 2:
        return []
    from matplotlib import colormaps
    from sklearn.decomposition import PCA

    matrix = np.stack(rows.vectors)
    pca = PCA(2, random_state=0)
    points = pca.fit_transform(matrix)
    shares = pca.explained_variance_ratio_
    figure, (left, right) = _figure(2)
    names = [label for label, _ in rows.labels.most_common(_LABELS_SHOWN)]
    colours = colormaps[_COLOURS]
    for position, label in enumerate(names):
        mask = np.array([one == label for one in rows.vector_labels])
        name = "(none)" if label is None else label[:24]
        left.scatter(*points[mask].T, s=6, color=colours(position % colours.N), label=name, linewidths=0)
    left.set(
        title="First two principal components",
        xlabel=f"component 1 ({shares[0]:.0%} of the variance)",
        ylabel=f"component 2 ({shares[1]:.0%})",
    )
    left.legend(fontsize=7, markerscale=2, loc="best", ncols=2 if len(names) > 10 else 1)
    right.hist(np.linalg.norm(matrix, axis=1), bins=40, color="#2f6db5")
    right.set(title="Length of the vectors", xlabel="L2 norm", ylabel="embeddings")
    note = f"<p class=note>Column <code>{html.escape(rows.column)}</code>, {len(matrix):,} rows sampled evenly.</p>"
    return ["<h2>Embeddings</h2>", note, _png(figure)]


def _classifier(folder: str) -> list[str]:
    from transforms import storage

    metrics = _read_json(storage.join(folder, "metrics.json"), "trained classifier", "Run imagebeam train first")
    numbers = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    sections = ["<h2>Classifier</h2>", f"<p class=note>{html.escape(folder)}</p>", _table(numbers)]
    for name in ("training_curves.png", "confusion_matrix.png"):
        try:
            picture = storage.read_bytes(storage.join(folder, name))
        except FileNotFoundError:
            continue
        sections.append(_image(picture, name))
    return sections


def _figure(columns: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=110)
    return figure, figure.subplots(1, columns)


def _png(figure: Figure) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return _image(picture.getvalue(), "")


def _image(picture: bytes, alt: str) -> str:
    return f"<img alt='{html.escape(alt)}' src='data:image/png;base64,{base64.b64encode(picture).decode()}'>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam report`."""
    parser.add_argument("folder", metavar="DIR", help="a finished run's --output")
    parser.add_argument("--classifier", metavar="DIR", help="folder of a classifier to show too")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0."""
    parser = JobParser("report", DESCRIPTION)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    say(f"Report: {write_report(args.folder, args.classifier)}")
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("report"))
