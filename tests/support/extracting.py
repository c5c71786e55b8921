"""Runs of `imagebeam extract` for tests: real images in every input format, a small model, and what came out."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import PIL.Image

from pipelines.cli import run_job
from tests.support.image_samples import GOOD, encode, picture

SMALL_SIZE = (32, 32)
SMALL_MODEL = (
    *("--model", "VGG16", "--weights", "random:0", "--layer", "block1_pool", "--image_size", "32x32"),
    *("--rows_per_unit", "5"),
)
"""Two convolutions: loads in no time, and gives 64 floats an image."""


Images = Mapping[str, bytes]
"""File name -> encoded image."""

COUNT = 12
"""Images in the fixture `source` of conftest.py."""


def extract(
    source: str | Path | Iterable[str | Path], output: str | Path, *flags: str, model: Iterable[str] = SMALL_MODEL
) -> int:
    """Run the job in this process; `source` is one pattern or several. Returns the exit code."""
    patterns = [source] if isinstance(source, str | Path) else source
    return run_job("extract", ["--input", *map(str, patterns), "--output", str(output), *model, *flags])


def embeddings(output: str | Path, column: str = "embedding", by: str = "key") -> dict[str, np.ndarray]:
    """Vectors by key (or another column), as DuckDB reads them; a row that comes twice is an error."""
    found = duckdb.execute(f"""select "{by}", "{column}" from '{output}/embeddings/*.parquet'""").fetchall()
    vectors = {name: np.array(vector, np.float32) for name, vector in found}
    assert len(vectors) == len(found)
    return vectors


def failures(output: str | Path) -> dict[str, tuple[str, str]]:
    """(stage, error type) by key."""
    if not list(Path(output, "failures").glob("*.parquet")):
        return {}
    found = duckdb.execute(f"select key, stage, error_type from '{output}/failures/*.parquet'").fetchall()
    kinds = {key: (stage, error_type) for key, stage, error_type in found}
    assert len(kinds) == len(found)
    return kinds


def manifest(output: str | Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(output, "manifest.json").read_text())
    return content


def files_of(output: str | Path) -> dict[str, bytes]:
    """Path below the output -> bytes, of all that is to be the same in any run of the same job.

    Hidden files are left out: a writer killed in the middle leaves one, which no reader sees and a run removes when it
    is an hour old.
    """
    folders = [Path(output, name) for name in ("embeddings", "failures")]
    return {str(path.relative_to(output)): path.read_bytes() for folder in folders for path in folder.glob("[!.]*")}


def small_images(folder: str | Path, count: int) -> Path:
    """JPEGs in two classes."""
    for index in range(count):
        path = Path(folder, "ab"[index % 2], f"{index:04d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(20 + index % 7, 30, seed=index), "JPEG"))
    return Path(folder)


def photographs() -> dict[str, bytes]:
    """File name -> bytes: every kind of file that decodes, and 32 crops of two photographs in all sizes."""
    from sklearn.datasets import load_sample_images

    images = {name: maker() for name, maker in GOOD.items()}
    random = np.random.default_rng(0)
    for index in range(32):
        photo = load_sample_images().images[index % 2]
        height, width = random.integers(32, photo.shape[0]), random.integers(32, photo.shape[1])
        top, left = random.integers(photo.shape[0] - height + 1), random.integers(photo.shape[1] - width + 1)
        crop = PIL.Image.fromarray(photo[top : top + height, left : left + width])
        extension, kind = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")][index // 8]
        images[f"crop{index:02d}.{extension}"] = encode(crop.convert("L") if index % 8 == 7 else crop, kind)
    return images


def write_files(folder: Path, images: Images, shards: int = 1) -> Path:
    """Loose files, in as many folders."""
    for index, (name, data) in enumerate(images.items()):
        path = Path(folder, f"class{index % shards}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tfrecord(folder: Path, images: Images, shards: int = 1) -> Path:
    import tensorflow as tf

    for shard, part in _split(images, shards):
        with tf.io.TFRecordWriter(str(folder / f"images-{shard}.tfrecord.gz"), "GZIP" if shard % 2 else "") as writer:
            for name, data in part:
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                    "label": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode()])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return folder


def write_webdataset(folder: Path, images: Images, shards: int = 1) -> Path:
    for shard, part in _split(images, shards):
        suffix = "tar.gz" if shard % 2 else "tar"
        mode: Literal["w:gz", "w"] = "w:gz" if shard % 2 else "w"
        with tarfile.open(folder / f"images-{shard}.{suffix}", mode) as tar:
            for index, (name, data) in enumerate(part):
                for extension, content in ((name.rpartition(".")[2], data), ("txt", name.encode())):
                    member = tarfile.TarInfo(f"{index:05d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def write_parquet(folder: Path, images: Images, shards: int = 1) -> Path:
    """Every other shard in Hugging Face's layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard, part in _split(images, shards):
        names, data = zip(*part, strict=True)
        column = pa.array([{"bytes": one, "path": None} for one in data]) if shard % 2 else pa.array(data)
        path = folder / f"images-{shard}.parquet"
        pq.write_table(pa.table({"image": column, "label": names}), path, row_group_size=11)
    return folder


def write_manifest(folder: Path, images: Images, shards: int = 1) -> Path:
    write_files(folder, images)
    for shard, part in _split(images, shards):
        with (folder / f"list-{shard}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("uri", "label"), *((f"class0/{name}", name) for name, _ in part)])
    return folder / "*.csv"


WRITERS = {
    "files": write_files,
    "tfrecord": write_tfrecord,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "manifest": write_manifest,
}
"""Input format -> writes images (file name -> bytes) into an empty folder, in so many shards; returns the pattern."""


def _split(images: Images, shards: int) -> list[tuple[int, list[tuple[str, bytes]]]]:
    items = list(images.items())
    return [(shard, items[shard::shards]) for shard in range(shards)]
