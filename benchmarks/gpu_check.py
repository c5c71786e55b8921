"""What a GPU gives: bare and end-to-end rates, share of its peak, parity with a CPU, memory, tails, too large batches.

    KERAS_BACKEND=jax python -m benchmarks.gpu_check [--models VGG16 ResNet50 MobileNetV2] [--limit_s 500] [--json FILE]

It runs on any of Keras' backends, with TensorFlow installed or not, and on a CPU in small form (`--images 64
--rows_per_unit 4`). Every figure is printed, and written to `--json`, as soon as it is known; what matters most comes
first, and what the time limit leaves out is named. This process does not use the GPU: others do, one after the other.

* bare: the Keras model alone on one uint8 batch that lies on the device, as many calls as fit in a second.
* decode: reading, decoding and resizing the JPEGs in one process on all cores, with a model that costs nothing; its
  ceiling: decoding and resizing alone, in as many processes as there are cores.
* extract: JPEG files in, Parquet out, in one and in several processes: rows per second by the times at which parts were
  written, from a third of the parts to the last but as many as there are processes. By then every process has compiled
  its model, unless one took as long for that as the others for a third of the parts; and none has run out of units.
* peak: of a bfloat16 matrix product of 8192 x 8192 x 8192 in this run. Operations of a model are two for each
  multiplication of its convolutions and dense layers.
* out of memory: a batch of 512 of the first model at float32, in a process that may use a twentieth of the memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from benchmarks import gpu_bare
from benchmarks.common import publish, write_jpegs
from pipelines.options.extraction import OutputOptions
from pipelines.options.workers import parse_local_workers, suggested
from transforms.core.batching import available_cores
from transforms.core.engines import PrecisionChoice
from transforms.core.spec import Precision

Pair = tuple[str, Precision]

FIRST: list[Pair] = [
    ("VGG16", Precision.FLOAT32),
    ("VGG16", Precision.BFLOAT16),
    ("ResNet50", Precision.BFLOAT16),
    ("ResNet50", Precision.FLOAT32),
    ("MobileNetV2", Precision.BFLOAT16),
]
"""What is measured before all else."""

DIFFERENT_JPEGS = 1024
DECODED = 2048
UNITS, UNITS_A_PROCESS = 12, 6
"""Units of an extract at least: in all, and for each of its processes."""
MARK = "IMAGEBEAM_GPU_CHECK"
"""A variable in the environment of every process that is started here."""


class Report:
    """Figures, printed and written as they come, and whether there is time for more."""

    def __init__(self, limit: float, path: Path | None) -> None:
        self._started = time.perf_counter()
        self._limit = limit
        self._path = path
        self.left_out: list[str] = []
        self.figures: dict[str, Any] = {"left_out": self.left_out}

    def add(self, label: str, found: Any) -> None:
        """Keep a figure; those of a label that are there already are added to."""
        self._say(f"{label}: {found}")
        self.figures[label] = {**self.figures.get(label, {}), **found} if isinstance(found, dict) else found
        self._write()

    @contextmanager
    def step(self, what: str, seconds: float) -> Iterator[bool]:
        """Whether there is time for something that takes so long; notes what is left out, or fails in it."""
        allowed = time.perf_counter() - self._started + seconds < self._limit
        self._say(f"{what} ..." if allowed else f"{what}: no time left")
        if not allowed:
            self.left_out.append(what)
        try:
            yield allowed
        except RuntimeError as error:  # such as no memory for so many processes
            self.left_out.append(f"{what}: {error}")
            self._say(self.left_out[-1])
        self._write()

    def _say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._started:5.1f} s] {text}", flush=True)

    def _write(self) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps(self.figures, indent=2))


# ---- decode


def decode_rate(jpegs: Path, images: int) -> float:
    """Images/s of a unit's way to the model, with a model that costs nothing."""
    from benchmarks.decode_ceiling import Nothing
    from transforms.embed.embed_units import EmbedOptions, embed_records
    from transforms.images.decode import ImageOptions
    from transforms.inputs.plan import plan
    from transforms.readers.options import ReadOptions
    from transforms.readers.read import open_records

    unit = next(iter(plan([str(jpegs)], None, images)))
    options = EmbedOptions(ImageOptions(image_size=(gpu_bare.SIZE, gpu_bare.SIZE)), 128)
    started = time.perf_counter()
    embed_records(open_records(unit, ReadOptions()), Nothing(), options)  # type: ignore[arg-type]
    return images / (time.perf_counter() - started)


def decode_ceiling(jpegs: Path) -> float:
    """Images/s of decoding and resizing in as many processes as there are cores."""
    pieces = [[str(path) for path in sorted(jpegs.glob("*/*.jpg"))]] * available_cores()
    with multiprocessing.get_context("spawn").Pool(available_cores()) as pool:
        pool.map(_decode_all, [piece[:8] for piece in pieces])
        started = time.perf_counter()
        pool.map(_decode_all, pieces, chunksize=1)
        return sum(map(len, pieces)) / (time.perf_counter() - started)


def _decode_all(paths: list[str]) -> None:
    from transforms.images.decode import ImageOptions, decode_image

    options = ImageOptions(image_size=(gpu_bare.SIZE, gpu_bare.SIZE))
    for path in paths:
        decode_image(Path(path).read_bytes(), options)


# ---- extract


def extract(jpegs: Path, output: Path, workers: int, **flags: object) -> dict[str, float]:
    """Run `imagebeam extract` in processes of its own.

    Returns:
        Images/s (see `steady_rate`), seconds of the whole command, and how many times a process halved its batches.

    Raises:
        RuntimeError: with the end of its stderr, where it fails, or where there were too few parts.
    """
    command = [sys.executable, "-m", "pipelines", "extract", f"--input={jpegs}/*/*.jpg", f"--output={output}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    command += ["--weights=random:0", f"--local_workers={workers}"]
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout)[-2000:])
    totals = json.loads((output / "manifest.json").read_text())["totals"]
    if totals["equal"] or totals["failures"]:
        raise RuntimeError(f"not every image was embedded: {totals}")
    parts = list((output / "embeddings").iterdir())
    rate = steady_rate([(path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in parts], workers)
    return {"images_s": rate, "seconds": seconds, "halved": done.stderr.count(gpu_bare.HALVED)}


def steady_rate(parts: Iterable[tuple[float, int]], workers: int) -> float:
    """Rows/s from a third of the parts to the last but `workers`, given each part's time in seconds and its rows.

    Raises:
        RuntimeError: for fewer than two parts in between.
    """
    parts = sorted(parts)
    between = parts[len(parts) // 3 : len(parts) - workers]
    seconds = between[-1][0] - between[0][0] if between else 0.0
    if seconds <= 0:
        raise RuntimeError(f"{len(parts)} parts by {workers} processes are too few to tell a rate")
    return sum(rows for _, rows in between[1:]) / seconds


def write_copies(jpegs: Path, folder: Path, count: int) -> Path:
    """`count` files in a folder: those of `jpegs` again and again, each with a comment of its own.

    Equal bytes would be embedded once.
    """
    if not folder.exists():
        originals = [(path.parent.name, path.read_bytes()) for path in sorted(jpegs.glob("*/*.jpg"))]
        for number, (label, data) in zip(range(count), itertools.cycle(originals)):
            copy = folder / label / f"{number:06d}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + data[2:])
    return folder


# ---- all of it


@contextmanager
def gpu_process() -> Iterator[Callable[..., Any]]:
    """What calls functions in one process, which ends with the block: no other holds memory of the GPU then."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_take_memory_as_needed) as executor:
        yield lambda function, *arguments: executor.submit(_told, function, *arguments).result()


def _take_memory_as_needed() -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def _told(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; its errors in a form that another process can read."""
    try:
        return function(*arguments)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {str(error)[-2000:]}") from None


class Check:
    """The steps, and what they share."""

    def __init__(self, args: argparse.Namespace, report: Report, scratch: Path) -> None:
        self._args = args
        self._report = report
        self._scratch = scratch
        self._jpegs = scratch / "jpegs"
        self._batch_size = 0
        self._gpu: str | None = None
        self._checks = not args.rates_only
        chosen: list[Pair] = [(name, precision) for name in args.models for precision in args.precision]
        self._first = [pair for pair in FIRST if pair in chosen]
        self._rest = [pair for pair in chosen if pair not in FIRST]

    def run(self) -> None:
        """All steps, the most important first."""
        with self._report.step("jpegs", 10):
            write_jpegs(self._jpegs, min(self._args.images or DIFFERENT_JPEGS, DIFFERENT_JPEGS))
        for name, pairs in itertools.groupby(self._first, lambda pair: pair[0]):
            precisions = [precision for _, precision in pairs]
            self._bare(name, precisions)
            for precision in precisions:
                self._extract(name, precision, self._args.local_workers[0])
        with self._report.step("decode", 30) as allowed:
            if allowed:
                self._decode()
        for name, pairs in itertools.groupby(self._rest, lambda pair: pair[0]):
            self._bare(name, [precision for _, precision in pairs])
        for workers, pair in itertools.product(self._args.local_workers, [*self._first, *self._rest]):
            if pair[1] != Precision.FLOAT16:
                self._extract(*pair, workers)
        self._left()

    def _bare(self, name: str, precisions: list[Precision]) -> None:
        with gpu_process() as call:
            for precision in precisions:
                with self._report.step(f"{name} {precision}", 45) as allowed:
                    if not allowed:
                        continue
                    if not self._batch_size:
                        self._begin(call, name)
                    peak = self._report.figures["peak_tflops"]
                    found = call(gpu_bare.bare, name, precision, self._batch_size, peak, self._scratch, self._checks)
                    self._report.add(f"{name} {precision}", found)

    def _begin(self, call: Callable[..., Any], name: str) -> None:
        """What is asked of the device once, in the first model's process."""
        self._gpu = call(gpu_bare.gpu_name)
        self._batch_size = self._args.batch_size if self._gpu else 8
        self._report.add("backend", call(gpu_bare.backend_name))
        self._report.add("gpu", self._gpu)
        self._report.add("peak_tflops", call(gpu_bare.peak_tflops))
        if self._gpu and self._checks:
            with self._report.step("out_of_memory", 60) as allowed:
                if allowed:
                    folder = call(gpu_bare.stage, name, Precision.FLOAT32, self._scratch)
                    self._report.add("out_of_memory", gpu_bare.out_of_memory(folder))

    def _extract(self, name: str, precision: Precision, wanted: int | Literal["auto"]) -> None:
        label = f"{name} {precision}"
        workers = suggested(PrecisionChoice(precision), self._batch_size) if wanted == "auto" else wanted
        key = f"extract_{workers}"
        if key in self._report.figures.get(label, {}) or label not in self._report.figures:
            return
        with self._report.step(f"{label} extract in {workers} processes", 45) as allowed:
            if not allowed:
                return
            rows = self._args.rows_per_unit
            count = max(UNITS, UNITS_A_PROCESS * workers) * rows
            count = min(count, self._args.images or count)
            jpegs = write_copies(self._jpegs, self._scratch / f"jpegs-{count}", count)
            flags = {"model": name, "precision": precision, "batch_size": self._batch_size, "rows_per_unit": rows}
            self._report.add(label, {key: extract(jpegs, self._scratch / "out", workers, **flags)})

    def _decode(self) -> None:
        few = min(self._args.images or DECODED, DECODED)
        jpegs = write_copies(self._jpegs, self._scratch / f"jpegs-{few}", few)
        decode_rate(jpegs, few)
        self._report.add("decode_images_s", [decode_rate(jpegs, few) for _ in range(3)])
        self._report.add("decode_ceiling_images_s", decode_ceiling(self._jpegs))

    def _left(self) -> None:
        deadline = time.perf_counter() + 10
        while (found := left_processes()) and time.perf_counter() < deadline:
            time.sleep(0.5)
        self._report.add("left_processes", found)
        self._report.add("left_on_gpu", processes_on_gpu())


def left_processes() -> list[str]:
    """Command lines of the processes that were started here and are still there; Linux only."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={os.getpid()}".encode() in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # gone meanwhile, or another user's
            continue
        if marked and "multiprocessing.resource_tracker" not in command:  # which ends with this process
            found.append(f"{folder.name}: {command[:200]}")
    return found


def processes_on_gpu() -> list[str]:
    """What nvidia-smi says of processes that compute; empty where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The models' figures as rows."""
    rows = [
        (
            f"{figures.get('gpu') or 'CPU'}, {figures.get('backend')}",
            "bare | share of peak | extract | over bare | cosine",
        )
    ]
    for label, found in figures.items():
        if not isinstance(found, dict) or "bare_images_s" not in found:
            continue
        bare = statistics.median(found["bare_images_s"])
        fastest = max((run["images_s"] for key, run in found.items() if key.startswith("extract_")), default=math.nan)
        share, cosine = found["share_of_matmul_peak"], found.get("parity", {}).get("lowest_cosine", math.nan)
        rows.append((label, f"{bare:9.1f} | {share:6.1%} | {fastest:8.1f} | {fastest / bare:5.2f} | {cosine:.7f}"))
    if "decode_images_s" in figures:
        rows.append(("decode alone, images/s", f"{statistics.median(figures['decode_images_s']):9.1f}"))
    if "decode_ceiling_images_s" in figures:
        rows.append(("its ceiling", f"{figures['decode_ceiling_images_s']:9.1f}"))
    if "peak_tflops" in figures:
        rows.append(("matrix product, TFLOP/s", f"{figures['peak_tflops']:9.1f}"))
    rows += [("left out", what.splitlines()[0]) for what in figures["left_out"]]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["VGG16", "ResNet50", "MobileNetV2"])
    parser.add_argument(
        "--precision",
        type=Precision,
        nargs="+",
        default=[Precision.BFLOAT16, Precision.FLOAT32, Precision.FLOAT16],
    )
    parser.add_argument("--images", type=int, help="files that an extract reads at most (default: as units need)")
    parser.add_argument("--rows_per_unit", type=int, default=OutputOptions.rows_per_unit, help="as extract's flag")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--local_workers",
        type=parse_local_workers,
        nargs="+",
        default=["auto", 1],
        help="processes of extract, as its flag; the first is measured before the others",
    )
    parser.add_argument(
        "--rates_only", action="store_true", help="no parity, TensorFloat-32, tails, or batches that do not fit"
    )
    parser.add_argument("--limit_s", type=float, default=540.0, help="no measurement begins that would end later")
    parser.add_argument("--json", type=Path, help="file that every figure is written to as soon as it is known")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    os.environ[MARK] = str(os.getpid())
    report = Report(args.limit_s, args.json)
    report.add("cores", available_cores())
    with tempfile.TemporaryDirectory() as folder:
        Check(args, report, Path(folder)).run()
    publish(f"gpu_check_{report.figures.get('backend')}", report.figures, table(report.figures))
    return 1 if report.figures["left_processes"] or report.figures["left_on_gpu"] else 0


if __name__ == "__main__":
    sys.exit(main())
