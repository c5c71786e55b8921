"""`imagebeam report` of real runs: the page parses, is safe to open, and says what the manifest says."""

import base64
import csv
import io
import json
import shutil
import tarfile
import unicodedata
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from pipelines.cli import run_job
from pipelines.runtime import report_page
from tests.support import extracting
from tests.support.image_samples import encode, picture
from transforms.plots import runs

VOID = {"meta", "img", "br", "i"}
OPTIONAL_END = {"html", "tr", "td", "th", "li"}
NASTY = "<b>&amp;'\"$x$_"


class Page(HTMLParser):
    """Text by table row and list item, all text, tags and the decoded pictures."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.items, self.cards, self.tags, self.pictures, self.urls = [], [], {}, [], [], []
        self.text = ""
        self._card = None
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.urls += [attributes[name] for name in ("src", "href") if name in attributes]
        assert not any(name.startswith("on") for name in attributes)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "li":
            self.items.append("")
        elif tag == "img":
            head, data = attributes["src"].split(",")
            assert head == "data:image/png;base64"
            self.pictures.append(PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
        elif tag == "div":
            self._card = []
        if tag not in VOID | OPTIONAL_END:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag == "div" and self._card:
            self.cards[self._card[1]] = self._card[0]
            self._card = None
        if tag not in VOID | OPTIONAL_END:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if "table" in self._open:
            self.rows[-1][-1] += data
        elif "ul" in self._open:
            self.items[-1] += data
        elif "div" in self._open and self._card is not None:
            self._card.append(data)


def report(run, *flags):
    assert run_job("report", [str(run), *flags]) == 0
    return Page((run / "report.html").read_text())


def write(folder, images):
    for name, data in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run over 23 good and 7 bad images, with names that HTML and matplotlib would take for their own."""
    folder = tmp_path_factory.mktemp("mixed")
    images = {f"{NASTY}/{index}.png": encode(picture(20 + index, 40, seed=index), "PNG") for index in range(20)}
    images |= {f"_猫/{index}.png": encode(picture(20, 40, seed=index), "PNG") for index in range(3)}
    images |= {f"bad/{index}{NASTY}.jpg": b"<script>alert(1)</script>" * index for index in range(7)}
    write(folder / "in", images)
    with (folder / "in.csv").open("w", newline="", encoding="utf-8") as file:  # a folder "_猫" would be left out
        rows = csv.writer(file)
        rows.writerow(["key", "uri", "label"])
        rows.writerows([*[folder / "in" / name] * 2, name.split("/")[0]] for name in images)
    assert extracting.extract(folder / "in.csv", folder / "run", "--max_failure_rate", "1") == 0
    return folder / "run"


def test_numbers_equal_the_manifest(mixed):
    page, manifest = report(mixed), extracting.manifest(mixed)
    totals = manifest["totals"]
    assert page.cards == {
        "embeddings": "23",
        "failures (23.33%)": "7",
        "records": "30",
        "parts": str(totals["units"]),
        "bytes": f"{totals['bytes']:,}",
        "seconds, last run": f"{manifest['timings']['seconds']:,.1f}",
    }
    for kind, count in totals["failures"].items():
        assert [*kind.split("/"), str(count)] in page.rows
    assert sum(totals["failures"].values()) == 7
    for facts in (manifest["versions"], {"fingerprint": manifest["fingerprint"], "model": "VGG16"}):
        for name, value in facts.items():
            assert [name, value] in page.rows
    assert ["weights", "source: random:0"] in page.rows
    assert ["image_size", "32x32"] in page.rows
    assert sorted(page.items) == sorted([f"{NASTY} · 20", "_猫 · 3"])


def test_names_and_contents_are_escaped_and_nothing_is_loaded(mixed):
    page = report(mixed)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(url.startswith("data:image/png") for url in page.urls)
    keys = {row[0] for row in page.rows if len(row) == 3}
    assert {key for key in keys if NASTY in key and "bad" in key} == {
        str(mixed.parent / "in" / "bad" / f"{index}{NASTY}.jpg") for index in range(7)
    }
    assert "<script>alert(" not in page.text  # no message quotes a file's content


def test_a_page_runs_nothing_sends_nothing_and_is_bounded():
    """Labels of 10,000 characters, and such that turn the direction of writing, which shows 1,239 as 932,1."""
    labels: Counter[str | None] = Counter({f"{index}\u202e\x1b[2J\n{'x' * 9_000}": 1_239 for index in range(300)})
    failures = [("key\u2066", "type", "message\x1b]0;x\x07" * 1_000)] * 100
    manifest = {
        "spec": {"model": "VGG16", "image_size": None},
        "totals": {
            "embedded": 1, "failed": 100, "records": 101, "units": 1, "bytes": 1, "failures": {"read/type": 100},
            "icc_profiles_ignored": 0,
        },
        "timings": {"seconds": 1.0, "started": "", "finished": ""},
        **{name: {} for name in ("weights", "dimensions", "run", "versions")},
        "fingerprint": "",
    }  # fmt: skip
    page = report_page.render("/run", manifest, report_page.Rows(labels=labels), failures)
    assert "Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page
    assert not any(unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") for one in page.replace("\n", ""))
    assert "0\\u202e\\x1b[2J\\nxxx" in page
    assert len(page) < 500_000


def test_plots_are_not_blank(mixed):
    pictures = report(mixed).pictures
    assert len(pictures) == 2
    for one in pictures:
        assert min(one.size) > 300
        assert len(np.unique(np.asarray(one.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_only_the_page_is_written(mixed):
    report(mixed)
    before = {path: path.stat().st_mtime_ns for path in mixed.rglob("*") if path.is_file()}
    report(mixed)
    after = {path: path.stat().st_mtime_ns for path in mixed.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {"report.html"}


def test_run_of_one_image(tmp_path):
    assert extracting.extract(write(tmp_path / "in", {"a/x.png": encode(picture(), "PNG")}), tmp_path / "run") == 0
    page = report(tmp_path / "run")
    assert page.cards["embeddings"] == "1"
    assert "None: every record became an embedding." in page.text
    assert page.items == ["a · 1"]
    assert len(page.pictures) == 1


def test_run_of_equal_images(tmp_path):
    images = {f"a/{index}.png": encode(picture(), "PNG") for index in range(4)}
    assert extracting.extract(write(tmp_path / "in", images), tmp_path / "run") == 0
    assert len(report(tmp_path / "run").pictures) == 2


def test_run_without_embeddings(tmp_path):
    assert extracting.extract(write(tmp_path / "in", {"a/x.png": b"nothing"}), tmp_path / "run") == 3
    page = report(tmp_path / "run")
    assert page.cards["failures (100.00%)"] == "1"
    assert page.pictures == []


def test_run_without_labels_with_several_layers(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for index in range(6):
            data = encode(picture(30, 40 + index, seed=index), "PNG")
            member = tarfile.TarInfo(f"{index}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    flags = ("--layer", "block1_conv1")
    assert extracting.extract(tmp_path / "x.tar", tmp_path / "run", *flags) == 0
    page = report(tmp_path / "run")
    assert "No row has a label." in page.text
    assert page.items == []
    assert ["dimensions", "embedding_block1_pool: 64, embedding_block1_conv1: 64"] in page.rows
    assert "embedding_block1_pool, 6 rows taken evenly" in page.text
    assert len(page.pictures) == 2


def test_large_run_is_sampled_evenly_and_counted_in_full(mixed, monkeypatch):
    from pipelines import report as job

    monkeypatch.setattr(job, "SAMPLE_ROWS", 6)
    rows = job._gather(str(mixed), extracting.manifest(mixed))
    assert len(rows.vectors) == len(rows.vector_labels) == 6
    assert rows.labels == {NASTY: 20, "_猫": 3}
    assert rows.heights.total() == rows.widths.total() == 23
    every = extracting.embeddings(mixed)
    for vector in rows.vectors:
        assert any(np.array_equal(vector, one) for one in every.values())


def test_classifier_is_shown(mixed, tmp_path):
    png = encode(picture(), "PNG")
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 0.9754, "rows": 12, "per_class": {"a": 1}}))
    (tmp_path / "confusion_matrix.png").write_bytes(png)
    page = report(mixed, "--classifier", str(tmp_path))
    assert ["accuracy", "0.9754"] in page.rows
    assert ["rows", "12"] in page.rows
    assert len(page.pictures) == 3
    assert page.pictures[2].size == PIL.Image.open(io.BytesIO(png)).size


def test_page_says_what_a_classifiers_figures_are_of(mixed, tmp_path, capfd):
    """Those of another run's vectors looked as if they were of the run's own."""
    spec = extracting.manifest(mixed)["spec"]
    metrics = {"spec": spec | {"model": "ResNet50"}, "embeddings": ["/other<i>", str(mixed)]}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = report(mixed, "--classifier", str(tmp_path)).text
    assert f"Trained on the vectors of /other<i>, {mixed}." in text
    assert "vectors of another spec than this run's (model: VGG16 != ResNet50)" in text
    assert "WARNING" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"embeddings": ["RUN/../run"]}, "Trained on the vectors of this run."),
        ({"embeddings": ["/other"]}, "Trained on the vectors of /other."),
        ({"options": {"input": {"input": ["new/*.jpg"]}}}, "Trained on the images of new/*.jpg."),
        ({"run": {"embeddings": ["/new"]}}, "Measured on the vectors of /new."),
        ({"run": {"input": ["/new/*"]}}, "Measured on the images of /new/*."),
        ({"spec": [1]}, None),
    ],
    ids=["train", "train, elsewhere", "finetune", "classify vectors", "classify images", "something else"],
)
def test_origin_of_a_classifier_is_told(mixed, tmp_path, metrics, told):
    from pipelines import report as job

    manifest = extracting.manifest(mixed)
    about = {"spec": manifest["spec"], **json.loads(json.dumps(metrics).replace("RUN", str(mixed)))}
    by_classify = "run" in metrics
    (tmp_path / "metrics.json").write_text(json.dumps({} if by_classify else about))
    (tmp_path / "manifest.json").write_text(json.dumps(about if by_classify else {}))
    assert [*job._read_classifier(str(tmp_path), str(mixed), manifest).notes] == ([told] if told else [])


def test_classifier_mistakes_are_escaped_and_bounded(mixed, tmp_path):
    """Whose metrics.json may be a stranger's."""
    mistake = {"key": NASTY, "label": "قطة", "predicted": "猫\u202e", "probability": 0.99}
    content = {
        "confident_mistakes": [mistake] * 500,
        "confused_pairs": [{"label": NASTY * 900, "predicted": "b", "rows": 7}] * 500,
        "calibration": [{"confidence": 0.5, "accuracy": 0.25, "rows": 12}, "no row"],
        "compared": "no list",
        "per_class": {f"{number}{NASTY * 900}": {"f1": None if number else 0.5} for number in range(900)},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    page = report(mixed, "--classifier", str(tmp_path))
    assert page.rows.count([NASTY, "قطة", r"猫\u202e", "0.99"]) == 20
    assert ["0.5", "0.25", "12"] in page.rows
    assert sum(row[0].startswith("#") for row in page.rows if row and row[1:] != ["label"]) >= 200
    assert len(page.text) < 1_000_000
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


@pytest.mark.parametrize("harm", ["cut", "empty", "flip", "gone", "other"])
@pytest.mark.parametrize("folder", ["embeddings", "failures"])
def test_damaged_file_is_named_with_the_remedy(mixed, tmp_path, capsys, folder, harm):
    run = tmp_path / "run"
    shutil.copytree(mixed, run)
    path = max((run / folder).iterdir(), key=lambda part: pq.read_metadata(part).num_rows)
    data = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    read = columns["width" if folder == "embeddings" else "message"]
    place = read.data_page_offset + 2 * read.total_compressed_size // 3
    damaged = {"cut": data[:500], "empty": b"", "flip": data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]}
    if harm == "gone":
        path.unlink()
    elif harm == "other":
        path.write_bytes(next(one for one in (run / folder).iterdir() if one != path).read_bytes())
    else:
        path.write_bytes(damaged[harm])
    assert run_job("report", [str(run)]) == 1
    said = capsys.readouterr().err
    assert f"{folder}/{path.name}" in said
    assert f"imagebeam verify {run}" in said


@pytest.mark.parametrize("content", ['{"parts": 5}', "[]", "", "5"])
@pytest.mark.parametrize(
    "job", [["report"], ["verify"], ["compact", "--output", "{copy}"], ["train", "--output", "{copy}", "--embeddings"]]
)
def test_foreign_or_damaged_manifest_is_named(mixed, tmp_path, capsys, job, content):
    """Every job that reads a run's manifest says so in one line, and none calls it an error of its own."""
    run = tmp_path / "run"
    shutil.copytree(mixed, run)
    (run / "manifest.json").write_text(content)
    name, *arguments = (one.format(copy=tmp_path / "copy") for one in job)
    assert run_job(name, [*arguments, str(run)]) == {"report": 1, "compact": 1, "verify": 3, "train": 2}[name]
    out, err = capsys.readouterr()
    assert "internal error" not in err
    assert f"{run}/manifest.json" in out + err
    assert "imagebeam verify" in err
    for path in run.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.unlink()
    assert run_job(name, [*arguments, str(run)]) == 2
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "5", "{"])
def test_foreign_metrics_are_named(mixed, tmp_path, capsys, content):
    (tmp_path / "metrics.json").write_text(content)
    assert run_job("report", [str(mixed), "--classifier", str(tmp_path)]) == 2
    assert f"{tmp_path}/metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["{run}", "--classifier", "{empty}"], ["{empty}"]])
def test_folder_without_results_is_named(mixed, tmp_path, capsys, arguments):
    assert run_job("report", [one.format(run=mixed, empty=tmp_path) for one in arguments]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_colours_can_be_told_apart():
    colours = runs.colours(100)
    assert len(set(colours)) == len(colours) == 18
    assert runs.colours(3) == colours[:3]
