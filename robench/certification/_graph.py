"""A network as a list of affine steps and ReLUs, traced by torch.fx, for bounds on its outputs."""

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from robench.core.errors import UsageError

# Unit roundoff of float32. The bounds are computed in float64, whose errors the slack of one thousandth covers.
_UNIT, _SLACK = 2.0**-24, 1.001
# Float32 roundings of an elementwise operation at the most; batch normalisation has the most.
_ELEMENTWISE = 8

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Operations by kind: "exact" ones only copy values, and "mean" ones add values with weights that are not negative.
_KINDS: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys(_WEIGHTED, "weighted"),
    **dict.fromkeys(_NORMALISATIONS, "normalisation"),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d), "exact"),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze), "exact"),
    **dict.fromkeys((torch.unsqueeze, torch.cat, operator.getitem, operator.neg, torch.neg, F.pad), "exact"),
    **dict.fromkeys(("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze"), "exact"),
    "contiguous": "exact",
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d), "mean"),
    **dict.fromkeys((torch.mean, torch.sum, "mean", "sum"), "mean"),
    **dict.fromkeys((operator.add, operator.sub, torch.add, torch.sub, "add", "sub"), "sum"),
    **dict.fromkeys((operator.mul, operator.truediv, torch.mul, torch.div, "mul", "div"), "scaling"),
}
_DIVISIONS = (operator.truediv, torch.div, "div")
_IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_IN_PLACE |= {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div"}
# Attributes and methods of an intermediate value that do not depend on the image.
_CONSTANTS = ("shape", "size", "dim", "ndim", "dtype", "device")


@dataclass(frozen=True)
class Step:
    """One operation on values that depend on the image.

    Attributes:
        name: name of its output.
        inputs: names of its inputs; "" is the image.
        apply: the affine function, in float64; None for a ReLU.
        spread: maps the radii of the inputs' intervals to the radius of the output's.
        rounding: bounds the float32 rounding error of the output, given bounds on the inputs' absolute values.
    """

    name: str
    inputs: tuple[str, ...]
    apply: Callable[..., Tensor] | None = None
    spread: Callable[..., Tensor] = lambda radius: radius
    rounding: Callable[..., Tensor] = lambda bound: torch.zeros_like(bound)


def steps_of(model: nn.Module, x: Tensor) -> list[Step]:
    """The steps from an image (1, C, H, W) to the logits, in order; the last one returns the logits.

    Raises:
        UsageError: naming the first operation for which no bound is known.
    """
    # The copy computes in float64, so that only the float32 arithmetic of the model itself rounds noticeably.
    model = copy.deepcopy(model).cpu().double().eval()
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"no bound known for {type(model).__name__}: it cannot be traced ({reason})"
        ) from error
    with torch.no_grad():
        return list(_steps(model, graph, x.detach().cpu().double()))


def _steps(model: nn.Module, graph: fx.Graph, x: Tensor) -> Iterator[Step]:
    values: dict[fx.Node, Any] = {}
    names: dict[fx.Node, str] = {}
    for node in graph.nodes:
        active = [other for other in node.all_input_nodes if other in names]
        if node.op == "output":
            if [names.get(other) for other in node.all_input_nodes] != [step_name(names)]:
                raise UsageError("no bound known for a network whose last operation is not its output")
            return
        if node.op == "placeholder":
            if not names:
                values[node], names[node] = x, ""
            elif node.args:
                values[node] = node.args[0]
            else:
                raise UsageError("no bound known for a network with several inputs")
            continue
        if node.op == "get_attr":
            values[node] = operator.attrgetter(node.target)(model)
            continue
        target: Any = model.get_submodule(node.target) if node.op == "call_module" else node.target
        if node.op != "call_module":
            target = _IN_PLACE.get(target, target)
        kind = _kind(node, target, active)
        if kind == "relu":
            values[node], names[node] = values[active[0]].relu(), node.name
            yield Step(node.name, (names[active[0]],))
            continue
        call = partial(_call, node, target, values, active)
        values[node] = call(*(values[other] for other in active))
        if kind != "constant":
            step = _affine(kind, target, call, [values[other] for other in active])
            names[node] = node.name
            yield Step(node.name, tuple(names[other] for other in active), *step)


def step_name(names: dict[fx.Node, str]) -> str:
    """The name of the last step."""
    return list(names.values())[-1]


def _call(node: fx.Node, target: Any, values: dict[fx.Node, Any], active: list[fx.Node], *inputs: Any) -> Any:
    """The output of a node for some inputs; its other arguments are constants."""
    given = {**values, **dict(zip(active, inputs, strict=True))}
    args, kwargs = map_arg((node.args, node.kwargs), lambda other: given[other])
    return (
        getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
    )


def _kind(node: fx.Node, target: Any, active: list[fx.Node]) -> str:
    """The kind of an operation, or "constant" for one that does not depend on the image.

    Raises:
        UsageError: if no bound is known for it.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    if not active or name in _CONSTANTS or (target is getattr and node.args[1] in _CONSTANTS):
        return "constant"
    kind = _KINDS.get(type(target) if isinstance(target, nn.Module) else target)
    if kind == "scaling" and (len(active) > 1 or (target in _DIVISIONS and node.args[0] not in active)):
        kind = None
    if kind is None or (kind == "normalisation" and getattr(target, "running_mean", None) is None):
        raise UsageError(f"no bound known for {name}")
    return kind


def _affine(
    kind: str, target: Any, call: Callable[..., Tensor], centers: list[Tensor]
) -> tuple[Any, Any, Any]:
    """`apply`, `spread` and `rounding` of an affine operation."""
    zeros = [torch.zeros_like(center) for center in centers]
    offset = call(*zeros)

    def spread(*radii: Tensor) -> Tensor:
        # Each output depends on one value of an input, or on several with weights of one sign.
        parts = [call(*zeros[:k], radius, *zeros[k + 1 :]) - offset for k, radius in enumerate(radii)]
        return torch.stack([part.abs() for part in parts]).sum(0)

    if kind == "weighted":
        absolute = copy.deepcopy(target)
        absolute.weight.abs_()
        absolute.bias = None
        spread = absolute
        count = target.weight[0].numel() + 2
    else:
        count = {"exact": 0, "mean": centers[0].numel()}.get(kind, _ELEMENTWISE)
    size = offset.abs()
    if kind == "normalisation":
        # The offset may be small although its parts, which are rounded, are not.
        mean = target.running_mean.abs().view(1, -1, *[1] * (centers[0].dim() - 2)).expand_as(centers[0])
        beta = 0 if target.bias is None else target.bias.abs().view(1, -1, *[1] * (centers[0].dim() - 2))
        size = spread(mean) + beta

    # Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1: in any order of summation.
    relative = _SLACK * count * _UNIT / (1 - count * _UNIT)

    def rounding(*bounds: Tensor) -> Tensor:
        return relative * (spread(*bounds) + size)

    return call, spread, rounding
