"""`make flink-demo`: extract on a real Flink cluster on this machine, and what becomes of it when parts are killed.

Runs `imagebeam extract` over the same small images locally, on the cluster, on the cluster while Python workers are
killed (`--worker_kills`), and on the cluster while one of its task managers is killed; each must give the same rows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import namespaces
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from cluster import Cluster
from jars import install
from PIL import Image

from pipelines.common.console import say
from transforms.core.errors import JobError

SIZE = 64
"""Height and width of the images, in pixels: large enough for a run to last until it is killed."""

ROWS_PER_UNIT = 8
JOB_SECONDS = 400.0
STAGE = "{Embed units, Finish}"
"""The stage that embeds the units, as Beam names it: it goes from where they were spread to their reports."""

NOT_RUN = 77
"""Exit code where Java, a package or namespaces cannot be had; test harnesses take it for "skipped"."""


class Demo:
    """The runs, each with an output folder and a log of its own under `folder`."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder = folder
        self.images = images
        self.summary: dict[str, object] = {}

    def make_images(self) -> None:
        """Write noise in five classes, the same in every run."""
        generator = np.random.default_rng(4)
        for number in range(self.images):
            path = self.folder / "images" / f"class-{number % 5}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)

    def output(self, run: str) -> Path:
        """The output folder of a run."""
        return self.folder / run

    @property
    def units(self) -> int:
        """Units of every run: those of the local one."""
        return self.committed("local")

    def committed(self, run: str) -> int:
        """Units committed so far."""
        return sum(1 for _ in self.output(run).glob("embeddings/*.parquet"))

    @contextlib.contextmanager
    def extract(self, run: str, flags: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """`imagebeam extract` in a process of its own; waits for it when the block ends.

        Raises:
            JobError: if it fails, or takes longer than `JOB_SECONDS`.
        """
        command = [
            *(sys.executable, "-m", "pipelines.extract"),
            *("--input", str(self.folder / "images"), "--output", str(self.output(run))),
            *("--model", "VGG16", "--weights", "random:1", "--image_size", f"{SIZE}x{SIZE}"),
            *("--rows_per_unit", str(ROWS_PER_UNIT), *flags),
        ]
        log = self.folder / f"{run}.log"
        with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT) as process:
            try:
                yield process
                code = process.wait(JOB_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise JobError(f"{run}: not done after {JOB_SECONDS:.0f} s. See {log}.") from error
            finally:
                process.kill()
        if code != 0:
            raise JobError(f"{run}: extract gave exit code {code}. See {log}.")

    def rows(self, run: str) -> pa.Table:
        """Every row of a run, by key."""
        return ds.dataset(self.output(run) / "embeddings", format="parquet").to_table().sort_by("key")

    def check(self, run: str) -> None:
        """Hold a run's rows against the local run's: none missing, none doubled, equal to the last bit.

        Raises:
            JobError: where they differ.
        """
        rows = self.rows(run)
        if len(rows) != self.images or len(set(rows["key"].to_pylist())) != self.images:
            raise JobError(f"{run}: {len(rows)} rows for {self.images} images.")
        if not rows.equals(self.rows("local")):
            raise JobError(f"{run}: rows differ from the local run's.")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Poll until `condition` holds, the process has ended, or `JOB_SECONDS` are up."""
    deadline = time.monotonic() + JOB_SECONDS
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def run_locally(demo: Demo) -> None:
    """The rows every other run is held against."""
    with demo.extract("local"):
        pass
    say(f"local: {len(demo.rows('local'))} rows in {demo.committed('local')} units")


def run_on_cluster(demo: Demo, cluster: Cluster) -> None:
    """An undisturbed run, with units on every task manager."""
    with demo.extract("cluster", cluster.beam_flags):
        pass
    demo.check("cluster")
    job = cluster.job(STAGE)
    if len(job.units) < len(cluster.task_managers) or not all(job.units.values()):
        raise JobError(f"cluster: units did not spread over the task managers: {dict(job.units)}.")
    say(f"cluster: same rows; units by task manager: {dict(job.units)}")
    demo.summary["cluster"] = dataclasses.asdict(job)


def kill_workers(demo: Demo, cluster: Cluster, kills: int) -> None:
    """One run a kill; a run whose workers had ended by then does not count."""
    generator = random.Random(20)
    done: list[dict[str, int]] = []
    for attempt in range(2 * kills):
        if len(done) == kills:
            break
        run = f"worker-killed-{attempt:02d}"
        committed = kill_a_worker(demo, cluster, run, generator)
        demo.check(run)
        if committed is None:
            say(f"{run}: ended before it could be killed; same rows")
        else:
            restarts = len(cluster.job(STAGE).failures)
            say(f"{run}: with {committed} of {demo.units} units committed, {restarts} restarts; same rows")
            done.append({"committed": committed, "restarts": restarts})
        shutil.rmtree(demo.output(run))
    if len(done) < kills:
        raise JobError(f"Only {len(done)} of {kills} workers could be killed in time. Use more --images.")
    demo.summary["worker_kills"] = done


def kill_a_worker(demo: Demo, cluster: Cluster, run: str, generator: random.Random) -> int | None:
    """SIGKILL to a Python worker picked at random, at a random moment of a run.

    Returns:
        The units committed at that moment, or None where there was no worker any more.
    """
    wanted, later = generator.randrange(demo.units), generator.uniform(0, 0.5)
    with demo.extract(run, cluster.beam_flags) as process:
        wait_until(lambda: bool(cluster.workers()) and demo.committed(run) >= wanted, process)
        time.sleep(later)
        victims = cluster.workers()
        if victims:
            os.kill(generator.choice(victims), signal.SIGKILL)
        committed = demo.committed(run)
    return committed if victims else None


def kill_task_manager(demo: Demo, cluster: Cluster) -> None:
    """One of the task managers dies in the middle; the other takes over."""
    run, victim = "task-manager-killed", cluster.task_managers[0].name
    with demo.extract(run, cluster.beam_flags) as process:
        wait_until(lambda: demo.committed(run) >= demo.units // 3, process)
        cluster.kill_task_manager(victim)
        committed = demo.committed(run)
    demo.check(run)
    job = cluster.job(STAGE)
    if not job.failures:
        raise JobError(f"{run}: the job never noticed that {victim} was gone.")
    say(f"{run}: {victim} killed with {committed} units committed; same rows; Flink saw {', '.join(job.failures)}")
    demo.summary[run] = {"victim": victim, "committed": committed, **dataclasses.asdict(job)}


def main() -> None:
    """Run everything; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/flink-demo"), help="emptied first")
    parser.add_argument("--images", type=int, default=480, help="how many images to embed")
    parser.add_argument("--worker_kills", type=int, default=0, help="runs in which a Python worker is killed")
    args = parser.parse_args()
    installation = install()
    namespaces.enter()
    folder = args.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    demo = Demo(folder, args.images)
    demo.make_images()
    run_locally(demo)
    say(f"Starting {installation}; logs in {folder / 'flink'}")
    with Cluster.start(installation, folder / "flink") as cluster:
        run_on_cluster(demo, cluster)
        kill_workers(demo, cluster, args.worker_kills)
        kill_task_manager(demo, cluster)
    (folder / "summary.json").write_text(json.dumps(demo.summary, indent=2), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except namespaces.UnavailableError as error:
        say(f"flink-demo: NOT RUN: {error}")
        sys.exit(NOT_RUN)
    except JobError as error:
        say(f"flink-demo: {error}")
        sys.exit(1)
