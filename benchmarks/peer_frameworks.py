"""Peers that are packages of their own: PyTorch, Ray Data and Daft, each with the model and the decoding of `peers`.

    pip install torch 'ray[data]' daft

into an environment of the development lock; what is missing is left out, with a line that says so.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_common import BATCH, Vectors, decode, load, paths_in, read, saved
from benchmarks.peer_torch import PyTorch

if TYPE_CHECKING:
    import keras

Peer = Callable[["keras.Model", Path, Path], Vectors]


def ray_data(model: keras.Model, folder: Path, scratch: Path) -> Vectors:
    """Ray Data: files read and decoded by tasks, one actor with the model, Parquet written."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
    output = _emptied(scratch / "ray")
    path = saved(model, scratch)

    class Embed:
        def __init__(self) -> None:
            self._call = load(path).predict_on_batch

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"uri": batch["uri"], "embedding": np.asarray(self._call(np.stack(list(batch["image"]))))}

    def decoded(row: dict[str, Any]) -> dict[str, Any]:
        name, pixels = decode(row["item"])
        return {"uri": name, "image": pixels}

    dataset = ray.data.from_items(paths_in(folder), override_num_blocks=8).map(decoded)
    dataset.map_batches(Embed, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=1)).write_parquet(str(output))
    return read(output)


def daft_frame(model: keras.Model, folder: Path, scratch: Path) -> Vectors:
    """Daft: a function that decodes, a class with the model, Parquet written."""
    import daft

    output = _emptied(scratch / "daft")
    path = saved(model, scratch)
    vectors = daft.DataType.list(daft.DataType.float32())

    @daft.cls(max_concurrency=1)
    class Embed:
        def __init__(self) -> None:
            self._call = load(path).predict_on_batch

        @daft.method.batch(return_dtype=vectors, batch_size=BATCH)  # type: ignore[untyped-decorator]
        def embed(self, images: Any) -> list[list[float]]:
            found: list[list[float]] = np.asarray(self._call(np.stack(images.to_pylist()))).tolist()
            return found

    @daft.func(return_dtype=daft.DataType.python())  # type: ignore[untyped-decorator]
    def pixels(name: str) -> Any:
        return decode(name)[1]

    frame = daft.from_pydict({"uri": paths_in(folder)}).into_partitions(2)
    frame = frame.with_column("image", pixels(frame["uri"]))
    frame = frame.with_column("embedding", Embed().embed(frame["image"]))
    frame.select("uri", "embedding").write_parquet(str(output))
    return read(output)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def peers(name: str) -> dict[str, Peer]:
    """Those whose packages are installed; a line for each that is missing."""
    known: dict[str, tuple[str, Peer]] = {
        "PyTorch, channels last, DataLoader": ("torch", PyTorch(name, compiled=False)),
        "PyTorch, the same, compiled": ("torch", PyTorch(name, compiled=True)),
        "Ray Data map_batches": ("ray", ray_data),
        "Daft": ("daft", daft_frame),
    }
    found = {}
    for way, (package, peer) in known.items():
        if importlib.util.find_spec(package) is None:
            print(f"!!! SKIPPED: {way}: {package} is not installed")
        else:
            found[way] = peer
    return found
