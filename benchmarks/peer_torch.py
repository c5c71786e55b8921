"""PyTorch with the model and the decoding of `peers`: channels last, a DataLoader with a process a core.

    python -m benchmarks.peer_torch VGG16 MODEL.keras FOLDER [--compile]

It is a process of its own, without TensorFlow, whose LLVM and that of PyTorch's compiler do not go into one. For each
line of its input, the path of a file, it embeds the folder, writes the vectors there and answers with a line.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_common import BATCH, Vectors, decode, load, paths_in, saved

if TYPE_CHECKING:
    import keras

CAFFE_MEANS = (123.68, 116.779, 103.939)
"""Red, green, blue; `keras.applications.imagenet_utils` subtracts them from blue, green, red."""


class PyTorch:
    """The peer; its process starts at the first call, and ends with this object.

    Args:
        name: of the architecture.
        compiled: by `torch.compile`.
    """

    def __init__(self, name: str, *, compiled: bool) -> None:
        self._name, self._compiled = name, compiled
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, model: keras.Model, folder: Path, scratch: Path) -> Vectors:
        """Vectors by path."""
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.peer_torch", self._name, saved(model, scratch), str(folder)]
            self._process = subprocess.Popen(
                [*command, *(["--compile"] if self._compiled else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "KERAS_BACKEND": "torch"},
            )
        output = scratch / "torch.npy"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(output, file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():
            raise RuntimeError(f"benchmarks.peer_torch ended with exit code {self._process.wait()}")
        return dict(zip(paths_in(folder), np.load(output), strict=True))

    def __del__(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    import torch

    module = torch_module(args.name, load(args.model))
    if args.compile:
        module = torch.compile(module)
    loader = torch.utils.data.DataLoader(
        _Files(paths_in(args.folder)),
        batch_size=BATCH,
        num_workers=torch.get_num_threads(),
        prefetch_factor=2,
        persistent_workers=True,
    )
    for output in sys.stdin:
        with torch.inference_mode():
            # A compiled module reads some bytes beyond its input: a crash at the end of a DataLoader's shared memory.
            vectors = [module(batch.clone()).numpy() for batch in loader]
        np.save(output.rstrip("\n"), np.concatenate(vectors))
        print("done", flush=True)


if __name__ == "__main__":
    main()
