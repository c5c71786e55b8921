"""What is damaged, and what must hold of each damaged file."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import random
import re
import struct
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.hostile.mutate import mutate
from tests.support.image_samples import BAD, GOOD, picture
from tests.support.planned import shard_at
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Record
from transforms.images.decode import ImageError, ImageOptions, decode_image
from transforms.inputs.plan import cut_shard
from transforms.readers.options import ReadOptions
from transforms.readers.read import read_records
from transforms.readers.sniff import masked_crc
from transforms.readers.units import WorkUnit

CANARY = b"a canary that no output may hold"
SOUND = b"\xff\xd8 an image"
"""What stands for a sound image: neighbours of a hostile record hold it."""

Target = Callable[[random.Random, Path], str]
"""Does one seeded damage in an empty folder; says the outcome, raises AssertionError where something does not hold."""


def attack_image(source: random.Random, folder: Path) -> str:
    """A damaged image: pixels or an `ImageError`, nothing else."""
    del folder
    samples = _images()
    data = mutate(samples[source.choice(sorted(samples))], source)
    try:
        image = decode_image(data, ImageOptions((32, 32), max_image_pixels=1 << 24))
    except ImageError as error:
        return (
            "ended decoders" if re.search(r"decoder (crashes|never)|takes too long", str(error)) else error.error_type
        )
    assert image.pixels.shape == (32, 32, 3)
    return "decoded"


@functools.cache
def _images() -> dict[str, bytes]:
    samples = {name: make() for name, make in GOOD.items()} | {name: make() for name, (_, make) in BAD.items()}
    try:
        import pillow_heif
    except ImportError:
        return samples
    stream = io.BytesIO()
    pillow_heif.from_pillow(PIL.Image.fromarray(picture())).save(stream)
    return {**samples, "rgb.heic": stream.getvalue()}


def attack_shard(source: random.Random, folder: Path) -> str:
    """A shard of damaged bytes: as many outcomes as records were planned, and no exception."""
    kind = source.choice(sorted(_SHARDS))
    path = folder / f"x{kind}"
    data = _shard(kind, [SOUND] * 5, source)
    path.write_bytes(gzip.compress(mutate(data, source)) if source.random() < 0.1 else mutate(data, source))
    found = _outcomes(path, _SHARDS[kind])
    return "all records" if len(found) >= 5 and not any(found) else "failures"


def attack_record(source: random.Random, folder: Path) -> str:
    """One hostile record among sound ones, in a whole shard: it costs itself."""
    kind = source.choice(sorted(_SHARDS))
    place = source.randrange(5)
    values: list[bytes | None] = [SOUND] * 5
    values[place] = None  # stands for what is hostile
    (folder / f"x{kind}").write_bytes(_shard(kind, values, source))
    found = _outcomes(folder / f"x{kind}", _SHARDS[kind])
    assert len(found) == 5, f"{kind}: {len(found)} outcomes of 5 records"
    lost = [index for index, error in enumerate(found) if error and index != place]
    assert not lost, f"{kind}: record {place} cost {lost}: {found}"
    return found[place] or "taken"


def attack_manifest(source: random.Random, folder: Path) -> str:
    """Rows of a manifest that name what is outside, or are no rows: the others are embedded, the canary is not."""
    (folder / "data").mkdir()
    (folder / "outside").mkdir()
    (folder / "outside" / "canary.jpg").write_bytes(CANARY)
    (folder / "data" / "a.jpg").write_bytes(SOUND)
    (folder / "data" / "link").symlink_to(folder / "outside")
    suffix = source.choice(("csv", "jsonl", "parquet"))
    path = folder / "data" / f"x.{suffix}"
    names = ["a.jpg", _hostile_name(source, folder), "a.jpg"]
    if suffix == "csv":
        text = io.StringIO()
        labels = ["cat", _hostile_text(source), "dog"]
        csv.writer(text).writerows([["uri", "label"], *zip(names, labels, strict=True)])
        data = text.getvalue().encode("utf-8", "surrogateescape")
    elif suffix == "jsonl":
        rows = [json.dumps({"uri": "a.jpg"}).encode(), _hostile_json(source, names[1]), b'{"uri": "a.jpg"}']
        data = b"\n".join(rows) + b"\n"
    else:
        stream = io.BytesIO()
        pq.write_table(pa.table({"uri": [name.encode(errors="replace").decode() for name in names]}), stream)
        data = stream.getvalue()
    is_damaged = source.random() < 0.3
    path.write_bytes(mutate(data, source) if is_damaged else data)
    found = _outcomes(path, InputFormat.MANIFEST)
    if not is_damaged:
        assert [found[0], found[-1]] == [None, None], f"{suffix}: neighbours of {names[1]!r}: {found}"
    return next((error for error in found if error), "all records")


def attack_weights(source: random.Random, folder: Path) -> str:
    """A damaged file of weights: its arrays, or one line that refuses it."""
    from transforms.models.weights.files import open_weights

    name = source.choice(sorted(_weights()))
    path = folder / name
    path.write_bytes(mutate(_weights()[name], source))
    try:
        with open_weights(path, name) as stored:
            arrays = [*stored.by_name.values(), *stored.by_place.values()]
            for array in [*arrays, *(one for layer in stored.by_layer.values() for one in layer)]:
                if array.shape in ((3, 4), (4,)):  # Only what fits the model is read.
                    assert array.read().shape == array.shape
    except ImagebeamError as error:
        if len(str(error).splitlines()) > 1:
            raise ValueError(f"a refusal of several lines: {error}") from error
        return "refused"
    return "taken"


@functools.cache
def _weights() -> dict[str, bytes]:
    import h5py
    from onnx import helper, numpy_helper

    kernel, bias = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros(4, np.float32)
    npz, hdf5 = io.BytesIO(), io.BytesIO()
    np.savez_compressed(npz, **{"dense/kernel": kernel, "dense/bias": bias})  # type: ignore[arg-type]
    with h5py.File(hdf5, "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = kernel, bias
    header = {"dense/kernel": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}
    text = json.dumps(header).encode()
    tensors = [numpy_helper.from_array(kernel, "m/dense/MatMul"), numpy_helper.from_array(bias, "m/dense/BiasAdd")]
    return {
        "a.npz": npz.getvalue(),
        "a.weights.h5": hdf5.getvalue(),
        "a.safetensors": len(text).to_bytes(8, "little") + text + kernel.tobytes(),
        "a.onnx": helper.make_model(helper.make_graph([], "m", [], [], tensors)).SerializeToString(),
    }


def attack_config(source: random.Random, folder: Path) -> str:
    """A damaged --config: the flags, or one line that refuses it; never a flag of Beam that nobody declared."""
    from pipelines import extract
    from pipelines.common.flags import JobParser, parse

    path = folder / "x.yaml"
    path.write_bytes(mutate(source.choice(_CONFIGS), source))
    parser = JobParser("extract", beam=True)
    extract.add_arguments(parser)
    try:
        parse(parser, ["--config", str(path), "--input", "in", "--output", "out"])
    except ImagebeamError:
        return "refused"
    return "taken"


_CONFIGS = (
    b"model: VGG16\nbatch_size: 32\nimage_size: 224x224\nkeep_columns: [a, b]\nmax_failure_rate: 0.1\n",
    b"a: &a [x, x]\nb: &b [*a, *a, *a]\nmodel: [*b, *b, *b]\n",
    b"model: !!python/object/apply:os.system ['echo owned']\n",
    b"{model: VGG16, 'batch_size': 1e3, rows_per_unit: 0x10, output: ~}\n",
)


def _hostile_text(source: random.Random) -> str:
    return source.choice(("", "cat", "\x1b[2J", "\u202e123", "a\0b", "x" * 50_000, '"', "\udcff", "$x^2$", "=1+1"))


def _hostile_name(source: random.Random, folder: Path) -> str:
    outside = f"{folder}/outside/canary.jpg"
    names = (
        outside,
        f"file://{outside}",
        "../outside/canary.jpg",
        "link/canary.jpg",
        "./link/../../outside/canary.jpg",
    )
    others = ("http://169.254.169.254/latest", "gs://other/x", "/etc/passwd", "/proc/self/environ", "a.jpg\0", "", ".")
    return source.choice((*names, *others, "x" * 5_000, "\x1b[2J.jpg", "~/x.jpg", "//host/x", "file:///dev/zero"))


def _hostile_json(source: random.Random, name: str) -> bytes:
    nested = b"[" * source.choice((10, 5_000, 200_000))
    rows = (
        json.dumps({"uri": name}).encode(),
        nested,
        b'{"uri":' * 3_000,
        b'{"uri": "a.jpg", "label": ' + b"9" * 5_000 + b"}",
    )
    return source.choice((*rows, b"\xff\xfe", b'{"uri": {"a": 1}}', b"[1]", b"NaN", b'{"uri": "\\ud83d"}'))


def _shard(kind: str, values: Sequence[bytes | None], source: random.Random) -> bytes:
    return {".tar": _tar, ".tfrecord": _tfrecord, ".parquet": _parquet}[kind](values, source)


_SHARDS = {".tar": InputFormat.WEBDATASET, ".tfrecord": InputFormat.TFRECORD, ".parquet": InputFormat.PARQUET}


def _tar(values: Sequence[bytes | None], source: random.Random) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for index, value in enumerate(values):
            members = {f"{index}.jpg": SOUND}
            if value is None:
                suffix = source.choice(("json", "cls", "txt"))
                text = _hostile_text(source).encode("utf-8", "surrogateescape")
                members[f"{index}.{suffix}"] = _hostile_json(source, "x") if suffix == "json" else text
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _tfrecord(values: Sequence[bytes | None], source: random.Random) -> bytes:
    def field(number: int, data: bytes) -> bytes:
        length, size = b"", len(data)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    records = []
    for value in values:
        entry = field(1, b"image") + field(2, field(1, field(1, SOUND)))
        payload = field(1, field(1, entry))
        if value is None:
            payload = mutate(payload, source)
        head = struct.pack("<Q", len(payload))
        records.append(head + struct.pack("<I", masked_crc(head)) + payload + struct.pack("<I", masked_crc(payload)))
    return b"".join(records)


def _parquet(values: Sequence[bytes | None], source: random.Random) -> bytes:
    rows: list[dict[str, bytes | str | None]] = [{"bytes": SOUND, "path": None}] * len(values)
    labels = ["cat"] * len(values)
    for index, value in enumerate(values):
        if value is None:
            name = _hostile_name(source, Path("/nowhere")).encode(errors="replace").decode()
            rows[index] = {"bytes": None, "path": name}
            labels[index] = _hostile_text(source).encode(errors="replace").decode()
    stream = io.BytesIO()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": labels}), stream, row_group_size=3)
    return stream.getvalue()


def _outcomes(path: Path, input_format: InputFormat) -> list[str | None]:
    """The error type of each record; None where there is none."""
    options = ReadOptions()
    found: list[str | None] = []
    for unit in cut_shard(shard_at(path, input_format), 2, options):
        items = list(read_records(unit, options)) if isinstance(unit, WorkUnit) else []
        assert not isinstance(unit, WorkUnit) or len(items) == unit.count
        for item in items:
            shown = item.data if isinstance(item, Record) else f"{item.message}{item.sha256}".encode()
            assert CANARY not in shown, "the canary shows up"
            if isinstance(item, Failure):
                assert item.message.isprintable(), f"raw text in a message: {item.message!r}"
            found.append(item.error_type if isinstance(item, Failure) else None)
    return found


TARGETS: dict[str, Target] = {
    "images": attack_image,
    "shards": attack_shard,
    "records among sound ones": attack_record,
    "manifests": attack_manifest,
    "weights files": attack_weights,
    "configurations": attack_config,
}


def attack(name: str, seed: int) -> str:
    """One seeded attack."""
    with tempfile.TemporaryDirectory() as folder:
        return TARGETS[name](random.Random(f"{name}/{seed}"), Path(folder))
