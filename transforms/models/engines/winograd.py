"""Winograd's convolutions as a rewriting of OpenVINO's graphs: its CPU plugin has no kernel of them for x86-64.

F(4 x 4, 3 x 3) computes a tile of 4 x 4 outputs of a 3 x 3 convolution with 36 products where the sum has 144 (Lavin
and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016). A tile's transforms cost memory traffic, which
many channels repay: docs/engines.md has what was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial.polynomial import polyfromroots

from transforms.models.engines.openvino_model import import_openvino

if TYPE_CHECKING:
    import openvino

FEWEST_CHANNELS = 160
"""Least harmonic mean of the channels in and out of a convolution for which this is faster."""

_LEAST_SHARE = 0.5
"""Least share of a model's multiplications in such convolutions that makes a rewritten model worth a try."""

_TILE, _SIDE = 4, 6
"""Height and width of a tile of outputs, and of the inputs that it is computed from."""

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where a tile's polynomials are evaluated, beside infinity: exact in binary, and with half the rounding error of the
usual 0, 1, -1, 2, -2, as tests/transforms/models/engines/test_winograd.py measures it. How points matter: Barabasz and
others, Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks, 2020."""


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cook and Toom's transforms of a row of inputs [6, 6], of a kernel's row [6, 3], and of products back [4, 6]."""
    points = np.array(_POINTS)
    others = [np.delete(points, number) for number in range(len(points))]
    inputs = [*(np.append(polyfromroots(other), 0) for other in others), polyfromroots(points)]
    kernel = [point ** np.arange(3) / np.prod(point - other) for point, other in zip(points, others, strict=True)]
    outputs = np.column_stack([np.vander(points, _TILE, increasing=True).T, np.eye(_TILE)[-1]])
    return np.array(inputs), np.array([*kernel, [0, 0, 1]]), outputs


_INPUTS, _KERNEL, _OUTPUTS = _matrices()


def with_winograd(model: openvino.Model, fewest_channels: int = FEWEST_CHANNELS) -> openvino.Model | None:
    """The same model with Winograd's convolutions, where they do at least half of its multiplications.

    Args:
        model: what `openvino_model.convert` gave, not changed.
        fewest_channels: see `FEWEST_CHANNELS`.

    Returns:
        The new model, whose numbers take no more space: OpenVINO transforms the kernels when it compiles them. None
        where the model has too few such convolutions, or takes images of any size.
    """
    copy = model.clone()
    costs = {node.get_name(): _multiplications(node) for node in copy.get_ordered_ops()}
    wide = [node for node in copy.get_ordered_ops() if costs[node.get_name()] and _is_wide(node, fewest_channels)]
    if not wide or sum(costs[node.get_name()] for node in wide) < _LEAST_SHARE * sum(costs.values()):
        return None
    names = [output.get_names() for output in copy.outputs]
    graph = _Rewriter()
    for node in wide:  # in the order of the computation, so that one finds what the one before gave
        graph.replace(node)
    copy.validate_nodes_and_infer_types()
    for output, known_as in zip(copy.outputs, names, strict=True):
        output.get_tensor().set_names(known_as)
    return copy


def _multiplications(node: openvino.Node) -> int:
    """Of one image; 0 for what is no convolution, or one of an unknown size."""
    if node.get_type_name() not in ("Convolution", "GroupConvolution"):
        return 0
    found = node.output(0).get_partial_shape()
    weights = node.input_value(1).get_partial_shape()
    if weights.is_dynamic or found[2].is_dynamic or found[3].is_dynamic:
        return 0
    return int(math.prod(weights.to_shape())) * int(found[2].get_length()) * int(found[3].get_length())


def _is_wide(node: openvino.Node, fewest_channels: int) -> bool:
    """Whether Winograd's form is faster: 3 x 3, stride 1, "same" padding, many channels."""
    if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    about = node.get_attributes()
    filters, channels, *kernel = node.input_value(1).get_shape()
    return (
        kernel == [3, 3]
        and list(about["strides"]) == list(about["dilations"]) == [1, 1]
        and list(about["pads_begin"]) == list(about["pads_end"]) == [1, 1]
        and 2 * channels * filters / (channels + filters) >= fewest_channels
    )


class _Rewriter:
    """Replaces convolutions, and keeps images with their channels last from one to the next.

    OpenVINO's convolutions take [n, channels, height, width], the products want the channels last. What stands between
    two convolutions that were replaced, such as a bias and an activation, is repeated with the channels last, so that
    nothing is transposed there.
    """

    def __init__(self) -> None:
        self._ops: Any = import_openvino().opset13
        self._last: dict[tuple[str, int], openvino.Output] = {}  # of [n, c, h, w] -> the same as [n, h, w, c]

    def replace(self, node: openvino.Node) -> None:
        """Put Winograd's form in the place of a convolution."""
        ops = self._ops
        weights = node.input_value(1).get_node().get_data()
        filters, channels = weights.shape[:2]
        height, width = (node.output(0).get_partial_shape()[axis].get_length() for axis in (2, 3))
        rows, columns = -(-height // _TILE), -(-width // _TILE)
        tiles = self._tiles(self._channels_last(node.input_value(0)), (height, width), (rows, columns))
        kernels = weights.transpose(2, 3, 1, 0).reshape(9, -1)
        products = ops.matmul(
            self._reshape(self._transform(_INPUTS, tiles), [_SIDE**2, -1, channels]),
            self._reshape(self._transform(_KERNEL, self._numbers(kernels)), [_SIDE**2, channels, filters]),
            transpose_a=False,
            transpose_b=False,
        )
        sums = self._transform(_OUTPUTS, self._reshape(products, [_SIDE**2, -1]))
        sums = self._reshape(sums, [_TILE, _TILE, -1, rows, columns, filters])
        sums = ops.transpose(sums, self._integers([2, 3, 0, 4, 1, 5]))
        sums = self._reshape(sums, [-1, rows * _TILE, columns * _TILE, filters])
        if (height, width) != (rows * _TILE, columns * _TILE):
            sums = self._cut(sums, [0, 0], [height, width], [1, 1])
        found = ops.transpose(sums, self._integers([0, 3, 1, 2]))
        found.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(found.output(0))
        self._last[_name(found.output(0))] = sums.output(0)

    def _tiles(self, images: Any, size: tuple[int, int], counts: tuple[int, int]) -> Any:
        """[n, height, width, c] -> [36, n * rows * columns * c], the inputs of every tile."""
        ops = self._ops
        far = [count * _TILE + 1 - length for count, length in zip(counts, size, strict=True)]
        padded = ops.pad(
            images, self._integers([0, 1, 1, 0]), self._integers([0, *far, 0]), "constant", self._numbers(0)
        )
        spans = [(count - 1) * _TILE + 1 for count in counts]
        places = [
            ops.unsqueeze(
                self._cut(padded, [top, left], [top + spans[0], left + spans[1]], [_TILE, _TILE]), self._integers([0])
            )
            for top in range(_SIDE)
            for left in range(_SIDE)
        ]
        return self._reshape(ops.concat(places, 0), [_SIDE**2, -1])

    def _transform(self, matrix: np.ndarray, values: Any) -> Any:
        """The transform of rows and of columns at once."""
        return self._ops.matmul(self._numbers(np.kron(matrix, matrix)), values, transpose_a=False, transpose_b=False)

    def _channels_last(self, output: openvino.Output) -> Any:
        found = self._known_channels_last(output)
        if found is None:
            found = self._ops.transpose(output, self._integers([0, 2, 3, 1])).output(0)
            self._last[_name(output)] = found
        return found

    def _known_channels_last(self, output: openvino.Output) -> openvino.Output | None:
        """The same with its channels last, where it comes from a replaced convolution value by value."""
        if (known := self._last.get(_name(output))) is not None:
            return known
        node = output.get_node()
        kind = node.get_type_name()
        if kind not in ("Add", "Multiply", "Relu"):
            return None
        before = self._known_channels_last(node.input_value(0))
        if before is None:
            return None
        if kind == "Relu":
            found = self._ops.relu(before)
        else:
            other = node.input_value(1).get_node()
            if other.get_type_name() != "Constant" or (values := other.get_data()).ndim != 4:
                return None
            combine = {"Add": self._ops.add, "Multiply": self._ops.multiply}[kind]
            found = combine(before, self._numbers(values.transpose(0, 2, 3, 1)))
        self._last[_name(output)] = found.output(0)
        return found.output(0)

    def _cut(self, values: Any, start: list[int], stop: list[int], step: list[int]) -> Any:
        """Of height and width."""
        bounds = (self._integers(one) for one in (start, stop, step, [1, 2]))
        return self._ops.slice(values, *bounds)

    def _reshape(self, values: Any, shape: list[int]) -> Any:
        return self._ops.reshape(values, self._integers(shape), special_zero=False)

    def _numbers(self, values: Any) -> Any:
        return self._ops.constant(np.array(values, np.float32, order="C"))

    def _integers(self, values: list[int]) -> Any:
        return self._ops.constant(np.array(values, np.int64))


def _name(output: openvino.Output) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()
