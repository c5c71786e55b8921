"""Render the page of `imagebeam report`: one HTML file without scripts or external resources."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transforms.core.text import MESSAGE_CHARACTERS, counted, printable

if TYPE_CHECKING:
    import numpy as np

LABELS_SHOWN = 200
FAILURES_SHOWN = 100

_LABELS_COLOURED = 18

_NAME_CHARACTERS = 200

ROWS_SHOWN = 20

_CLASSIFIER_TABLES = (
    ("On the same images", "compared", ("method", "accuracy", "difference")),
    ("Confused most often", "confused_pairs", ("label", "predicted", "rows")),
    (
        "Mistakes of the highest confidence",
        "confident_mistakes",
        ("key", "label", "predicted", "probability"),
    ),
    ("Calibration: what it says, and how often that is right", "calibration", ("confidence", "accuracy", "rows")),
)
"""Title, name in metrics.json, and columns."""

_POLICY = (
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
"""Were a script to get into the page, no browser would run it, and nothing is fetched or sent."""

_VIEWPORT = "<meta name=viewport content='width=device-width,initial-scale=1'>"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; color: #1c2733 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dde5 }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.5rem }
.card { flex: 1; background: #f1f5f9; border-radius: .5rem; padding: .7rem 1rem; white-space: nowrap }
.card b { display: block; font-size: 1.5rem } .bad b { color: #b42318 }
table { border-collapse: collapse }
td, th { text-align: left; padding: .25rem 1.2rem .25rem 0; vertical-align: top }
th { color: #52606d; font-weight: 600 } td { overflow-wrap: anywhere } tr + tr td { border-top: 1px solid #eef2f6 }
.short { white-space: nowrap } .list .number { text-align: right } .long { min-width: 20rem }
.labels { columns: 15rem; list-style: none; padding: 0 } .labels li { overflow-wrap: anywhere; break-inside: avoid }
.labels i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em }
@media (max-width: 40rem) {
  table { display: block; overflow-x: auto } .long { min-width: 0 } .short, .card { white-space: normal }
}
code { font-size: .9em } img { max-width: 100% } .note { color: #52606d; overflow-wrap: anywhere }
"""


@dataclass
class Rows:
    """What the page needs of a run's parts.

    Attributes:
        widths: in pixels -> images, of all rows.
        heights: likewise.
        labels: label -> rows, of all rows.
        column: name of the embedding column that is drawn.
        vectors: a sample of it, float32 [n, dimension].
        vector_labels: the label of each.
    """

    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    labels: Counter[str | None] = field(default_factory=Counter)
    column: str = "embedding"
    vectors: list[np.ndarray] = field(default_factory=list)
    vector_labels: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Classifier:
    """What is shown of a trained classifier.

    Attributes:
        folder: of train, finetune or classify.
        metrics: the content of its metrics.json.
        pictures: name -> PNG.
        notes: sentences on what the metrics are of.
    """

    folder: str
    metrics: Mapping[str, Any]
    pictures: Mapping[str, bytes]
    notes: Sequence[str] = ()


def render(
    folder: str,
    manifest: Mapping[str, Any],
    rows: Rows,
    failures: Sequence[Sequence[str]],
    classifier: Classifier | None = None,
) -> str:
    """The page.

    Args:
        folder: of the run.
        manifest: of the run.
        rows: see `Rows`.
        failures: (key, error type, message) of the first few.
        classifier: if one is to be shown.
    """
    title = _escape(f"Embeddings by {manifest['spec']['model']}")
    sections = [
        _cards(manifest),
        *_failures(manifest["totals"], failures),
        *_images(rows),
        *_embeddings(rows),
        *(_classifier(classifier) if classifier else ()),
        *_what_was_run(manifest),
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>{_POLICY}{_VIEWPORT}<title>{title}</title>"
        f"<style>{_STYLE}</style><h1>{title}</h1><p class=note>{_escape(folder)}</p>{''.join(sections)}</html>"
    )


def _cards(manifest: Mapping[str, Any]) -> str:
    totals, timings = manifest["totals"], manifest["timings"]
    cards = [
        ("embeddings", f"{totals['embedded']:,}", False),
        (
            f"failures ({totals['failed'] / max(1, totals['records']):.2%})",
            f"{totals['failed']:,}",
            totals["failed"] > 0,
        ),
        ("records", f"{totals['records']:,}", False),
        ("parts", f"{totals['units']:,}", False),
        ("bytes", f"{totals['bytes']:,}", False),
        ("seconds, last run", f"{timings['seconds']:,.1f}", False),
    ]
    boxes = [f"<div class='card{' bad' if bad else ''}'><b>{value}</b>{name}</div>" for name, value, bad in cards]
    return f"<div class=cards>{''.join(boxes)}</div>"


def _failures(totals: Mapping[str, Any], failures: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<h2>Failures</h2>"
    if count := totals["icc_profiles_ignored"]:
        yield f"<p class=note>{counted(count, 'image')} carried an ICC colour profile, which is not applied.</p>"
    if not totals["failed"]:
        yield "<p>None: every record became an embedding.</p>"
        return
    kinds = [(*kind.split("/", 1), count) for kind, count in totals["failures"].items()]
    yield _table(kinds, ("stage", "error type", "records"))
    if len(failures) < totals["failed"]:
        yield f"<p class=note>The first {len(failures):,} of {totals['failed']:,}:</p>"
    yield "<br>"
    yield _table(failures, ("key", "error type", "message"))


def _images(rows: Rows) -> Iterator[str]:
    from transforms.plots.runs import image_sizes

    if rows.widths:
        yield "<h2>Images</h2>"
        yield _image(image_sizes(rows.widths, rows.heights), "Histograms of image widths and heights")


def _embeddings(rows: Rows) -> Iterator[str]:
    import numpy as np

    from transforms.plots import runs

    named = Counter({label: count for label, count in rows.labels.items() if label is not None})
    names = sorted(named, key=lambda name: (-named[name], name))
    shown = dict(zip(names, runs.colours(_LABELS_COLOURED), strict=False))
    if not rows.labels:
        return
    yield "<h2>Embeddings</h2>"
    if len(rows.vectors) > 1 and len(rows.vectors[0]) > 1:
        picture = runs.embeddings(np.stack(rows.vectors), rows.vector_labels, shown)
        yield _image(picture, "Two principal components of the embeddings, and a histogram of their lengths")
        legend = "; colours as of the labels below" if names else ""
        column = f"<code>{_escape(rows.column)}</code>"
        yield f"<p class=note>Column {column}, {len(rows.vectors):,} rows taken evenly{legend}.</p>"
    if not names:
        yield "<p>No row has a label.</p>"
        return
    unlabelled = f", {rows.labels[None]:,} rows without" if None in rows.labels else ""
    yield f"<h3>{len(names):,} labels{unlabelled}</h3>" if len(names) > 1 else f"<h3>1 label{unlabelled}</h3>"
    yield "<ul class=labels>"
    for name in names[:LABELS_SHOWN]:
        colour = f"<i style='background:{shown[name]}'></i>" if name in shown else ""
        yield f"<li>{colour}<b>{_escape(name, _NAME_CHARACTERS)}</b> · {named[name]:,}"
    yield "</ul>"
    if len(names) > LABELS_SHOWN:
        yield f"<p class=note>and {len(names) - LABELS_SHOWN:,} more</p>"


def _classifier(classifier: Classifier) -> Iterator[str]:
    yield f"<h2>Classifier</h2><p class=note>{_escape(classifier.folder)}</p>"
    yield from (f"<p>{_escape(note)}</p>" for note in classifier.notes)
    numbers = {name: value for name, value in classifier.metrics.items() if isinstance(value, int | float)}
    yield _table((name.replace("_", " "), value) for name, value in numbers.items())
    for title, name, columns in _CLASSIFIER_TABLES:
        rows = [[one.get(column) for column in columns] for one in _dicts(classifier.metrics.get(name))]
        if rows:
            yield f"<h3>{title}</h3>"
            yield _table(rows, [column.replace("_", " ") for column in columns])
    yield from _per_class(classifier.metrics.get("per_class"))
    for name, picture in classifier.pictures.items():
        yield _image(picture, name)


def _dicts(rows: object) -> list[Mapping[str, Any]]:
    """What a metrics.json, which may be a stranger's, has of rows; as many as are shown."""
    return [one for one in rows if isinstance(one, Mapping)][:ROWS_SHOWN] if isinstance(rows, list) else []


def _per_class(scores: object) -> Iterator[str]:
    """The classes with the lowest F1, with the numbers that stand for their names in the pictures."""
    if not isinstance(scores, Mapping):
        return
    classes = [(name, number, one) for number, (name, one) in enumerate(scores.items()) if isinstance(one, Mapping)]
    columns = ("precision", "recall", "f1", "support")
    rows = [
        (f"#{number}", printable(name, _NAME_CHARACTERS), *(one.get(column) for column in columns))
        for name, number, one in classes
    ]
    rows = sorted(rows, key=lambda row: row[4] if isinstance(row[4], int | float) else 0.0)
    if rows:
        more = f", the {LABELS_SHOWN:,} with the lowest F1 of {len(rows):,}" if len(rows) > LABELS_SHOWN else ""
        yield f"<h3>Classes{more}</h3>"
        yield _table(rows[:LABELS_SHOWN], ("#", "label", *columns))


def _what_was_run(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>What was run</h2>"
    yield "<h3>Spec</h3>"
    spec = {**manifest["spec"], "image_size": _size(manifest["spec"]["image_size"])}
    about = {"weights": manifest["weights"], "dimensions": manifest["dimensions"]}
    yield _table({**spec, **about, "fingerprint": manifest["fingerprint"]}.items())
    yield "<h3>Run</h3>"
    times = {name: manifest["timings"][name] for name in ("started", "finished")}
    yield _table({**manifest["run"], **times}.items())
    yield "<h3>Versions</h3>"
    yield _table(manifest["versions"].items())


def _escape(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """Text of the input as HTML: in one line, bounded, and without what turns the direction of writing."""
    return html.escape(printable(text, limit))


def _size(size: Sequence[int] | None) -> str:
    return "native" if size is None else f"{size[0]}x{size[1]}"


def _table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{_escape(name)}' for name in header)}" if header else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}" for row in rows)
    return f"<table{' class=list' if header else ''}>{head}{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"<td class=number>{value:,}" if isinstance(value, int) else f"<td class=number>{value:,.4g}"
    text = _text(value)
    return f"<td class={'short' if len(text) <= 40 and '/' not in text else 'long'}>{_escape(text)}"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items() if one is not None) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _image(picture: bytes, alt: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f"<p><img alt='{_escape(alt)}' src='{source}'></p>"
