"""Peers that are packages of their own: PyTorch, Ray Data and Daft, each with the model and the decoding of `peers`.

    pip install torch 'ray[data]' daft

into an environment of the development lock; what is missing is left out, with a line that says so.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_common import BATCH, Vectors, decode, load, paths_in, read, saved

if TYPE_CHECKING:
    import keras

Peer = Callable[["keras.Model", Path, Path], Vectors]

CAFFE_MEANS = (123.68, 116.779, 103.939)
"""Red, green, blue; `keras.applications.imagenet_utils` subtracts them from blue, green, red."""


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


class PyTorch:
    """PyTorch: the same weights in a module of its own, channels last, a DataLoader with a process a core.

    Not compiled: Triton's LLVM and TensorFlow's do not go into one process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: Any = None

    def __call__(self, model: keras.Model, folder: Path, scratch: Path) -> Vectors:
        """Vectors by path; the module is made at the first call."""
        import torch

        del scratch
        if self._module is None:
            self._module = torch_module(self._name, model)
        names = paths_in(folder)
        loader = torch.utils.data.DataLoader(
            _Files(names), batch_size=BATCH, num_workers=torch.get_num_threads(), prefetch_factor=2
        )
        found: list[np.ndarray] = []
        with torch.inference_mode():
            for images in loader:
                found.extend(self._module(images).numpy())
        return dict(zip(names, found, strict=True))


class _Files:
    """What a DataLoader reads."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(decode(self._names[index])[1])


def torch_module(name: str, model: keras.Model) -> Any:
    """The embedder `model` of a `keras.applications` architecture as a PyTorch module: uint8 [n, height, width, 3] in.

    Raises:
        NotImplementedError: for a layer that has no counterpart here.
    """
    import keras
    import torch

    height, width = model.inputs[0].shape[1:3]
    backbone = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_shape=(height, width, 3)
    )
    backbone.set_weights(model.get_weights())
    modules = torch.nn.ModuleDict()
    steps: list[tuple[str, list[str]]] = []
    for layer in backbone.layers[1:]:
        arguments = layer._inbound_nodes[0].input_tensors
        modules[layer.name] = _counterpart(layer)
        steps.append((layer.name, [tensor._keras_history.operation.name for tensor in arguments]))
    first, is_caffe = backbone.layers[0].name, name in ("VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152")

    class Module(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.modules_by_name = modules
            self.register_buffer("means", torch.tensor(CAFFE_MEANS))

        def forward(self, images: Any) -> Any:
            pixels = images.float()
            pixels = (pixels - self.means).flip(-1) if is_caffe else pixels / 127.5 - 1.0
            outputs = {first: pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)}
            for step, arguments in steps:
                outputs[step] = self.modules_by_name[step](*(outputs[one] for one in arguments))
            return outputs[steps[-1][0]]

    return Module().eval().to(memory_format=torch.channels_last)


def _counterpart(layer: Any) -> Any:
    """The PyTorch module of one Keras layer, with its weights."""
    import torch

    nn = torch.nn
    kind = type(layer).__name__
    weights = [torch.from_numpy(np.asarray(weight)) for weight in layer.get_weights()]
    if kind in ("Conv2D", "DepthwiseConv2D"):
        depthwise = kind == "DepthwiseConv2D"
        kernel = weights[0].permute(2, 3, 0, 1) if depthwise else weights[0].permute(3, 2, 0, 1)
        inside = layer.input.shape[-1]
        convolution = nn.Conv2d(
            inside,
            inside if depthwise else layer.filters,
            layer.kernel_size,
            layer.strides,
            groups=inside if depthwise else 1,
            bias=layer.use_bias,
        )
        with torch.no_grad():
            convolution.weight.copy_(kernel)
            if layer.use_bias:
                convolution.bias.copy_(weights[1])
        return nn.Sequential(*_padding(layer), convolution, *_activation(layer.activation.__name__))
    if kind == "BatchNormalization":
        normalization = nn.BatchNorm2d(layer.input.shape[-1], eps=layer.epsilon)
        targets = (normalization.weight, normalization.bias, normalization.running_mean, normalization.running_var)
        with torch.no_grad():
            for target, weight in zip(targets, weights, strict=True):
                target.copy_(weight)
        return normalization
    if kind == "ReLU":
        return nn.ReLU6() if layer.max_value == 6 else nn.ReLU()
    if kind == "Activation":
        return nn.Sequential(*_activation(layer.activation.__name__))
    if kind == "ZeroPadding2D":
        (top, bottom), (left, right) = layer.padding
        return nn.ZeroPad2d((left, right, top, bottom))
    if kind == "MaxPooling2D" and layer.padding == "valid":
        return nn.MaxPool2d(layer.pool_size, layer.strides)
    if kind == "Add":
        return _Add()
    if kind == "GlobalAveragePooling2D":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    raise NotImplementedError(f"{layer.name}: {kind} has no counterpart in this benchmark")


def _activation(name: str) -> list[Any]:
    import torch

    if name not in ("linear", "relu"):
        raise NotImplementedError(name)
    return [torch.nn.ReLU()] if name == "relu" else []


def _padding(layer: Any) -> list[Any]:
    """Keras' "same": what is odd goes to the right and to the bottom."""
    import torch

    if layer.padding == "valid":
        return []
    sides = []
    for size, kernel, stride in zip(layer.input.shape[1:3], layer.kernel_size, layer.strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        sides.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = sides
    return [torch.nn.ZeroPad2d((left, right, top, bottom))] if any((top, bottom, left, right)) else []


def _Add() -> Any:  # noqa: N802 - a module without weights.
    import torch

    class Add(torch.nn.Module):  # type: ignore[misc]
        def forward(self, first: Any, second: Any) -> Any:
            return first + second

    return Add()


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def peers(name: str) -> dict[str, Peer]:
    """Those whose packages are installed; a line for each that is missing."""
    known: dict[str, tuple[str, Peer]] = {
        "PyTorch, channels last, DataLoader": ("torch", PyTorch(name)),
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
