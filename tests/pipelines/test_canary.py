"""What lies outside of the input never shows up in a run, whichever reader a hostile input goes through."""

import csv
import gzip
import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.extracting import extract, manifest
from tests.support.image_samples import encode, picture

CANARY = b"a canary that no output of a run may hold"
"""It is no image, so that a reader that opens it makes a failure of it, whose message or digest could tell it."""

IMAGE = encode(picture(32, 32), "PNG")
HOSTILE = ("../outside/canary.jpg", "{base}/outside/canary.jpg", "file://{base}/outside/canary.jpg", "link/canary.jpg")


def write_parquet(folder, names):
    rows = [{"bytes": IMAGE, "path": None}, *({"bytes": None, "path": name} for name in names)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), folder / "x.parquet")
    return folder / "x.parquet"


def write_parquet_manifest(folder, names):
    pq.write_table(pa.table({"uri": ["a.png", *names]}), folder / "x.parquet")
    return folder / "x.parquet"


def write_csv(folder, names):
    with (folder / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["uri"], ["a.png"], *([name] for name in names)])
    return folder / "x.csv"


def write_json_lines(folder, names):
    lines = "".join(json.dumps({"uri": name}) + "\n" for name in ("a.png", *names))
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder / "x.jsonl.gz"


def write_tar(folder, names):
    with tarfile.open(folder / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(IMAGE)
        tar.addfile(info, io.BytesIO(IMAGE))
        for index, name in enumerate(names):
            info = tarfile.TarInfo(f"{index}.png")
            info.type, info.linkname = (tarfile.SYMTYPE, tarfile.LNKTYPE)[index % 2], name
            tar.addfile(info)
    return folder / "x.tar"


def link_files(folder, names):
    """A folder of images, some of which are links to what is outside."""
    del names
    (folder / "canary.jpg").symlink_to(folder.parent / "outside" / "canary.jpg")
    return folder


WRITERS = {
    "Parquet": (write_parquet, "parquet"),
    "a manifest of Parquet": (write_parquet_manifest, "manifest"),
    "a manifest of CSV": (write_csv, "manifest"),
    "a manifest of JSON lines": (write_json_lines, "manifest"),
    "a tar of links": (write_tar, "webdataset"),
    "a folder of links": (link_files, "files"),
}


@pytest.mark.parametrize("what", list(WRITERS))
def test_no_output_holds_a_file_from_outside_the_input(tmp_path, what, capfd):
    for name in ("in", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "canary.jpg").write_bytes(CANARY)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "a.png").write_bytes(IMAGE)
    write, input_format = WRITERS[what]
    source = write(tmp_path / "in", [name.format(base=tmp_path) for name in HOSTILE])
    assert extract(source, tmp_path / "out", "--input_format", input_format, "--max_failure_rate", "1") == 0
    assert manifest(tmp_path / "out")["totals"]["embedded"] == 1
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    rows = [pq.read_table(path).to_pylist() for path in files if path.suffix == ".parquet"]
    shown = [repr(rows).encode(), *capfd.readouterr().err.encode().splitlines(), *(path.read_bytes() for path in files)]
    for secret in (CANARY, CANARY[:16], hashlib.sha256(CANARY).hexdigest().encode()):
        assert not [text for text in shown if secret in text]
