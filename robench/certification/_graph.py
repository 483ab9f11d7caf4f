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

from robench.core.errors import UsageError, one_line
from robench.core.torch_state import evaluating

# Unit roundoff of float32. The bounds are computed in float64, whose errors the slack of one thousandth covers.
_UNIT, _SLACK = 2.0**-24, 1.001
# Float32 roundings of an elementwise operation at the most; batch normalization has the most.
_ELEMENTWISE = 8

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Operations by kind: "exact" ones only copy values, and "mean" ones add values with weights that are not negative.
_KINDS: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), "relu"),
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
# Exact operations whose output never shares memory with an input.
_COPIES = (torch.cat, operator.neg, torch.neg, F.pad)
_IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_IN_PLACE |= {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div"}
_IN_PLACE |= {F.relu_: F.relu, torch.relu_: torch.relu, "relu_": "relu"}
# Attributes and methods of an intermediate value that do not depend on the image.
_CONSTANTS = ("shape", "size", "dim", "ndim", "dtype", "device")
# Images on which the steps are compared with the network, and the largest difference in float64.
_PROBES, _DIFFERENCE = 4, 1e-9


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
    model = evaluating(copy.deepcopy(model).cpu().double())
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        reason = one_line(error, 160)
        raise UsageError(
            f"no bound known for {type(model).__name__}: it cannot be traced ({reason})"
        ) from error
    for name, module in model.named_modules():
        leaf = not name or not any(True for _ in module.children())
        if leaf and (module._forward_hooks or module._forward_pre_hooks):
            raise UsageError(f"no bound known for hooks such as those of {name or type(model).__name__}")
    with torch.no_grad():
        steps = list(_steps(model, graph, x.detach().cpu().double()))
        _check(steps, model, x)
    return steps


def _check(steps: list[Step], model: nn.Module, x: Tensor) -> None:
    """Compare the steps with the network on random images: their values, and that affine steps vary as they promise.

    The rules for operations do not see all that an argument or Python code may do.

    Raises:
        UsageError: where they differ.
    """
    generator = torch.Generator().manual_seed(0)
    before: dict[str, Tensor] = {}
    images, outputs = [], []
    for probe in range(_PROBES):
        image = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        # Half of them are corners of the box, which activate other ReLUs.
        values = {"": image.round() if probe % 2 else image}
        for step in steps:
            inputs = [values[name] for name in step.inputs]
            values[step.name] = inputs[0].relu() if step.apply is None else step.apply(*inputs)
            if step.apply is not None and before:
                changes = [value - before[name] for value, name in zip(inputs, step.inputs, strict=True)]
                _check_affine(step, inputs, changes)
        expected = model(values[""].clone())
        if not isinstance(expected, Tensor) or not _same(values[steps[-1].name], expected, expected):
            raise UsageError(f"no bound known for {type(model).__name__}: its trace computes something else")
        before = values
        images.append(values[""])
        outputs.append(expected)
    _check_rows(model, torch.cat(images), torch.cat(outputs))


def _check_rows(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Refuse a network whose logits depend on the other images of a batch: the steps are those of a single image."""
    try:
        together = model(images)
    except Exception as error:
        reason = one_line(error, 160)
        raise UsageError(
            f"no bound known for {type(model).__name__}: it cannot take several images ({reason})"
        ) from error
    if not _same(together, expected, expected):
        raise UsageError(
            f"no bound known for {type(model).__name__}: logits depend on the other images of a batch"
        )


def _check_affine(step: Step, inputs: list[Tensor], changes: list[Tensor]) -> None:
    assert step.apply is not None
    here = step.apply(*inputs)
    there = step.apply(*(value - change for value, change in zip(inputs, changes, strict=True)))
    middle = step.apply(*(value - change / 2 for value, change in zip(inputs, changes, strict=True)))
    radius = step.spread(*(change.abs() for change in changes))
    size = here.abs() + there.abs()
    if not _same(middle, (here + there) / 2, size) or bool(
        ((here - there).abs() > radius + _DIFFERENCE * (1 + size)).any()
    ):
        raise UsageError(f"no bound known for {step.name}: it is not affine")


def _same(left: Tensor, right: Tensor, size: Tensor) -> bool:
    return left.shape == right.shape and bool(((left - right).abs() <= _DIFFERENCE * (1 + size.abs())).all())


def _steps(model: nn.Module, graph: fx.Graph, x: Tensor) -> Iterator[Step]:
    values: dict[fx.Node, Any] = {}
    names: dict[fx.Node, str] = {}
    # The values that may share memory with a value.
    shared: dict[fx.Node, set[fx.Node]] = {}
    order = {node: place for place, node in enumerate(graph.nodes)}
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
        in_place = _in_place(node, target)
        if in_place:
            _check_in_place(node, shared, order)
        shared[node] = {node}
        if in_place or (kind == "exact" and target not in _COPIES):
            # Whether such a step copies its inputs or shares their memory is not known.
            shared[node] = {node}.union(*(shared.get(other, {other}) for other in active))
            for other in shared[node]:
                shared[other] = shared[node]
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
    if not active or target in _CONSTANTS or (target is getattr and node.args[1] in _CONSTANTS):
        return "constant"
    kind = _KINDS.get(type(target) if isinstance(target, nn.Module) else target)
    # A value may stand in several arguments, as in h * h.
    uses = [other for other in _arguments(node) if other in active]
    if kind == "scaling" and (
        len(uses) > 1
        or (target in _DIVISIONS and node.args[:1] != (uses[0],))
        or node.kwargs.get("rounding_mode") is not None
    ):
        kind = None
    if "out" in node.kwargs:
        kind = None
    if kind is None or (kind == "normalisation" and getattr(target, "running_mean", None) is None):
        raise UsageError(f"no bound known for {name}")
    return kind


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The values among the arguments of a node, in order, each as often as it occurs."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _in_place(node: fx.Node, target: Any) -> bool:
    """Whether an operation changes its first input. `target` is the operation that makes a new value instead."""
    if isinstance(target, nn.Module):
        return isinstance(target, nn.ReLU) and target.inplace
    asked = node.kwargs.get("inplace") or (target is F.relu and node.args[1:] and node.args[1])
    return target is not node.target or bool(asked)


def _check_in_place(node: fx.Node, shared: dict[fx.Node, set[fx.Node]], order: dict[fx.Node, int]) -> None:
    """Refuse a change of a value that is read afterwards under another name.

    Raises:
        UsageError: if it is.
    """
    changed = _arguments(node)[0]
    readers = {user for other in shared.get(changed, {changed}) for user in other.users}
    if changed.op == "get_attr" or any(order[user] > order[node] for user in readers):
        raise UsageError(f"no bound known for {node.name}: it changes a value in place that is used again")


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
