"""The ONNX operators that exported classifiers use, in PyTorch: differentiable, on any device.

The semantics are those of ONNX's operator specification, versions 7 to 23 of its default domain. Shapes and
indices stay on the CPU, whatever the device of the images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# TensorProto's type numbers.
TYPES = {1: torch.float32, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16,
          11: torch.float64, 16: torch.bfloat16, 2: torch.uint8, 3: torch.int8}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operation of a graph; the name of an omitted optional input is empty."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


Op = Callable[..., Any]


def _on_one_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Move tensors to one device: those computed from shapes to those computed from images."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1:
        return tensors
    (device,) = {device for device in devices if device.type != "cpu"}
    return tuple(tensor.to(device) for tensor in tensors)


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda node, x: function(x)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def op(node: Node, *tensors: Tensor) -> Tensor:
        first, *rest = _on_one_device(*tensors)
        for tensor in rest:
            first = function(first, tensor)
        return first

    return op


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = _on_one_device(a, b)
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


def _ints(node: Node, name: str, given: Tensor | None) -> list[int] | None:
    """A value that older versions of an operator take as an attribute, newer ones as an input."""
    return node.get(name) if given is None else given.flatten().tolist()


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Op:
    def op(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = _ints(node, "axes", axes)
        if not dims:
            if node.get("noop_with_empty_axes", 0):
                return x
            dims = list(range(x.dim()))
        return function(x, dims, bool(node.get("keepdims", 1)))

    return op


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


def _along(function: Callable[[Tensor, int], Tensor]) -> Op:
    """Softmax and its variants: before version 13 they flatten from `axis` on."""

    def op(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.get("axis", -1))
        return function(x.flatten(node.get("axis", 1)), -1).reshape(x.shape)

    return op


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = node.get("min") if low is None else low, node.get("max") if high is None else high
    for bound, clamp in zip(bounds, (torch.clamp_min, torch.clamp_max), strict=True):
        if bound is not None:
            x = clamp(x, bound.to(x.device) if isinstance(bound, Tensor) else bound)
    return x


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (t.T if node.get(name, 0) else t for t, name in ((a, "transA"), (b, "transB")))
    product = node.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + node.get("beta", 1.0) * c


def _padding(node: Node, x: Tensor, window: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Padding before and after each spatial dimension, first to last, interleaved."""
    kind = node.get("auto_pad", "NOTSET")
    sides = len(window)
    if kind == "VALID":
        return [0] * (2 * sides)
    if kind == "NOTSET":
        pads = node.get("pads", [0] * (2 * sides))
        return [pads[i + half] for i in range(sides) for half in (0, sides)]
    pads = []
    for size, width, stride, dilation in zip(x.shape[2:], window, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less = total // 2
        pads += [less, total - less] if kind == "SAME_UPPER" else [total - less, less]
    return pads


def _pad_by(x: Tensor, pads: list[int], value: float) -> Tensor:
    """Pad by `pads` in the order of `_padding`; F.pad takes the last dimension first."""
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    flat = [n for pair in reversed(pairs) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    sides = weight.dim() - 2
    strides, dilations = node.get("strides", [1] * sides), node.get("dilations", [1] * sides)
    pads = _padding(node, x, list(weight.shape[2:]), strides, dilations)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[sides]
    if pads[::2] == pads[1::2]:
        return convolve(x, weight, bias, strides, pads[::2], dilations, node.get("group", 1))
    return convolve(_pad_by(x, pads, 0.0), weight, bias, strides, 0, dilations, node.get("group", 1))


def _max_pool(node: Node, x: Tensor) -> Tensor:
    x, window, strides, dilations = _pooled(node, x, -torch.inf)
    return F.max_pool2d(x, window, strides, dilation=dilations, ceil_mode=bool(node.get("ceil_mode", 0)))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    ceil = bool(node.get("ceil_mode", 0))
    ones = torch.ones_like(x[:1, :1])
    padded, window, strides, dilations = _pooled(node, x, 0.0)
    if any(d != 1 for d in dilations):
        raise NotImplementedError("AveragePool with dilations")
    total = F.avg_pool2d(padded, window, strides, ceil_mode=ceil)
    if node.get("count_include_pad", 0):
        return total
    share = F.avg_pool2d(_pooled(node, ones, 0.0)[0], window, strides, ceil_mode=ceil)
    return total / share


def _pooled(node: Node, x: Tensor, value: float) -> tuple[Tensor, list[int], list[int], list[int]]:
    if x.dim() != 4:
        raise NotImplementedError(f"{node.op} of {x.dim()} dimensions")
    window = node.get("kernel_shape")
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    return _pad_by(x, _padding(node, x, window, strides, dilations), value), window, strides, dilations


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[node.get("axis", -1) :]
    plain = F.layer_norm(x, shape, eps=node.get("epsilon", 1e-5)) * scale
    return plain if bias is None else plain + bias


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    # Up to version 20 there is one scale per group.
    if len(scale) != x.shape[1]:
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(tuple(sizes))


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _ints(node, "axes", axes)
    return x.squeeze() if dims is None else x.squeeze(tuple(dims))


def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _ints(node, "axes", axes) or []
    for dim in sorted(d % (x.dim() + len(dims)) for d in dims):
        x = x.unsqueeze(dim)
    return x


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, lengths = node.get("axis", 0), _ints(node, "split", sizes)
    return x.split(lengths or -(-x.shape[axis] // len(node.outputs)), axis)


def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = _ints(node, "starts", starts) or [], _ints(node, "ends", ends) or []
    dims = _ints(node, "axes", axes) or list(range(len(first)))
    for start, end, dim, step in zip(
        first, last, dims, _ints(node, "steps", steps) or [1] * len(first), strict=True
    ):
        chosen = range(x.shape[dim])[slice(start, end if end > -(2**31) else None, step)]
        if step > 0:
            index = (slice(None),) * (dim % x.dim()) + (slice(chosen.start, chosen.stop, step),)
            x = x[index]
        else:
            x = x.index_select(dim, torch.tensor(list(chosen), device=x.device, dtype=torch.int64))
    return x


def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    indices = indices.to(x.device)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    rows = x.index_select(axis, indices.reshape(-1).long())
    return rows.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _pad(node: Node, x: Tensor, pads: Tensor | None = None, value: Any = None, axes: Any = None) -> Tensor:
    amounts, mode = _ints(node, "pads", pads) or [], node.get("mode", "constant")
    dims = [d % x.dim() for d in axes.tolist()] if axes is not None else list(range(x.dim()))
    flat = [0] * (2 * x.dim())
    for i, dim in enumerate(dims):
        flat[2 * (x.dim() - 1 - dim)], flat[2 * (x.dim() - 1 - dim) + 1] = amounts[i], amounts[i + len(dims)]
    if mode == "constant":
        return F.pad(x, flat, value=float(value) if value is not None else node.get("value", 0.0))
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return F.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value", torch.zeros(1))
    return torch.full(shape.tolist(), value.item(), dtype=value.dtype)


OPS: dict[str, Op] = {
    **{name: _unary(getattr(torch, name.lower())) for name in (
        "Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Floor", "Ceil", "Reciprocal",
        "Sin", "Cos", "Sign", "Round",
    )},
    "Identity": _unary(lambda x: x),
    "Dropout": lambda node, x, *rest: x,
    "Not": _unary(torch.logical_not),
    "Softplus": _unary(F.softplus),
    "HardSwish": _unary(F.hardswish),
    "Mish": _unary(F.mish),
    "Gelu": lambda node, x: F.gelu(x, approximate=node.get("approximate", "none")),
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "Elu": lambda node, x: F.elu(x, node.get("alpha", 1.0)),
    "PRelu": lambda node, x, slope: torch.where(x < 0, x * slope, x),
    "HardSigmoid": lambda node, x: (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0, 1),
    "Clip": _clip,
    "Softmax": _along(torch.softmax),
    "LogSoftmax": _along(torch.log_softmax),
    "Add": _fold(torch.add), "Sub": _fold(torch.sub), "Mul": _fold(torch.mul), "Div": _fold(_div),
    "Pow": _fold(lambda a, b: torch.pow(a, b).to(a.dtype)),
    "Min": _fold(torch.minimum), "Max": _fold(torch.maximum), "Sum": _fold(torch.add),
    "Equal": _fold(torch.eq), "Less": _fold(torch.lt), "Greater": _fold(torch.gt),
    "LessOrEqual": _fold(torch.le), "GreaterOrEqual": _fold(torch.ge),
    "And": _fold(torch.logical_and), "Or": _fold(torch.logical_or),
    "Mod": _mod,
    "Where": lambda node, condition, a, b: torch.where(*_on_one_device(condition, a, b)),
    "MatMul": _fold(torch.matmul), "Gemm": _gemm, "Conv": _conv,
    "Einsum": lambda node, *tensors: torch.einsum(node.get("equation"), *tensors),
    "BatchNormalization": lambda node, x, scale, bias, mean, var: F.batch_norm(
        x, mean, var, scale, bias, eps=node.get("epsilon", 1e-5)
    ),
    "InstanceNormalization": lambda node, x, scale, bias: F.instance_norm(
        x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5)
    ),
    "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm,
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _unary(lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)),
    "ReduceMean": _reduce(lambda x, dims, keep: x.mean(dims, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, dims, keep: x.sum(dims, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, dims, keep: x.amax(dims, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, dims, keep: x.amin(dims, keepdim=keep)),
    "ReduceL1": _reduce(lambda x, dims, keep: x.abs().sum(dims, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, dims, keep: torch.linalg.vector_norm(x, dim=dims, keepdim=keep)),
    "ReduceSumSquare": _reduce(lambda x, dims, keep: x.square().sum(dims, keepdim=keep)),
    "ReduceProd": _reduce(_prod),
    "ArgMax": lambda node, x: x.argmax(node.get("axis", 0), keepdim=bool(node.get("keepdims", 1))),
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Transpose": lambda node, x: x.permute(node.get("perm", list(range(x.dim()))[::-1])),
    "Unsqueeze": _unsqueeze, "Split": _split, "Slice": _slice, "Gather": _gather, "Pad": _pad,
    "Concat": lambda node, *tensors: torch.cat(_on_one_device(*tensors), node.get("axis")),
    "Expand": lambda node, x, shape: x.expand(torch.broadcast_shapes(x.shape, torch.Size(shape.tolist()))),
    "Tile": lambda node, x, repeats: x.repeat(repeats.tolist()),
    "Shape": lambda node, x: torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64),
    "Size": lambda node, x: torch.tensor(x.numel()),
    "ConstantOfShape": _constant_of_shape,
    "Range": lambda node, start, limit, delta: torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype
    ),
    "Cast": lambda node, x: x.to(TYPES[node.get("to")]),
    "CastLike": lambda node, x, like: x.to(like.dtype),
}  # fmt: skip
