"""Jobs in processes that can be killed, forked from one that has imported everything: a start costs no import."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import classify
from pipelines.cli import run_job
from pipelines.runtime import launch, model_loader, model_staging  # noqa: F401 - what a job imports when it starts
from tests.support.plain_runs import StagedFake, stage_fake
from transforms.classify import predictions, staged  # noqa: F401
from transforms.core.spec import EmbedderSpec
from transforms.embed import embed_units  # noqa: F401
from transforms.training.head import LABELS_FILE

LABELS = ("red", "green", "blue")


@dataclass
class Shares:
    """A classifier that costs nothing: the share of each channel in an image's brightness."""

    spec: EmbedderSpec = field(default_factory=lambda: StagedFake().spec)
    dimensions: dict[str, int] = field(default_factory=lambda: {"probabilities": 3})

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        means = images.mean(axis=(1, 2), dtype=np.float64)
        return {"probabilities": (means / means.sum(axis=1, keepdims=True)).astype(np.float32)}


def write_classifier(folder: str | Path) -> None:
    """What `classify --classifier` looks at; the models themselves are never loaded."""
    folder = Path(folder)
    folder.mkdir()
    about = {"labels": LABELS, "multi_label": False, "embedding_column": "embedding", "spec": Shares().spec.to_dict()}
    (folder / LABELS_FILE).write_text(json.dumps(about))
    (folder / "metrics.json").write_text("{}")
    with zipfile.ZipFile(folder / "classifier.keras", "w") as archive:
        archive.writestr(LABELS_FILE, json.dumps(about))


def run(name: str, argv: list[str], log: str) -> Any:
    """The target of a process: one job, with models that cost nothing."""
    sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115 - for as long as the process lives
    model_staging.stage_model = stage_fake  # type: ignore[assignment]
    staged.stage_classifier = lambda *_, **__: StagedFake(Shares())  # type: ignore[assignment]
    model_loader.settle_staged = lambda embedder, *_, **__: embedder
    assert classify
    os._exit(run_job(name, argv))


def processes() -> multiprocessing.context.ForkServerContext:
    """What starts them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.killable"])
    return context


def workers(pid: int) -> list[int]:
    """Numbers of the worker processes of Beam's local runner, below a launcher's process."""
    found, below = [], [pid]
    while below:
        number = below.pop()
        for child in _children(number):
            below.append(child)
            if b"sdk_worker_main" in _command(child):
                found.append(child)
    return found


def wait_until_gone(pids: Iterable[int], seconds: float = 30) -> None:
    """Wait for processes to end, whoever is to reap them.

    Raises:
        TimeoutError: naming those that stay.
    """
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _command(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there after {seconds} s: {left}")
        time.sleep(0.05)


def _command(pid: int) -> bytes:
    """Its command line; nothing of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except FileNotFoundError:
        return []


def _words(path: Path) -> list[str]:
    return path.read_text().split()
