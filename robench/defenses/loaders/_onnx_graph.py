"""An ONNX graph as a module, with its weights as parameters.

We do not use onnx2torch: release 1.5.15 supports operators up to opset 17, and torch now exports opset 20.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from robench.core.errors import ResourceError
from robench.defenses.loaders._onnx_ops import OPS, TYPES, Node


class Graph(nn.Module):
    """The function of a graph with one input and one output.

    Args:
        model: an `onnx.ModelProto`, its weights inside.

    Raises:
        ResourceError: if it uses an operator that is not in OPS, or was exported in training mode.
    """

    def __init__(self, model: Any):
        super().__init__()
        model = importlib.import_module("onnx.inliner").inline_local_functions(model)
        opsets = {opset.domain: opset.version for opset in model.opset_import}
        opset = opsets.get("", opsets.get("ai.onnx", 1))
        self.constants: dict[str, Tensor] = {}
        self.weights: dict[str, str] = {}
        for weight in model.graph.initializer:
            self._keep(weight.name, _tensor(weight))
        nodes = []
        for proto in model.graph.node:
            attributes = {a.name: _attribute(a) for a in proto.attribute}
            if proto.op_type == "Constant":
                (value,) = attributes.values()
                self._keep(proto.output[0], value if isinstance(value, Tensor) else torch.tensor(value))
            else:
                nodes.append(Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, opset))
                if proto.domain not in ("", "ai.onnx") or proto.op_type not in OPS:
                    name = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
                    raise ResourceError(
                        f"the operator {name} is not among the {len(OPS)} that robench supports: export the "
                        "network differently, or load it as torchscript: or python:"
                    )
        self.nodes = tuple(nodes)
        for node in nodes:
            if self._is_training(node):
                raise ResourceError(
                    f"it was exported in training mode ({node.op}): export the network in evaluation mode"
                )
        (entry,) = (i for i in model.graph.input if i.name not in {*self.weights, *self.constants})
        self.input = entry.name
        self.dtype = TYPES.get(entry.type.tensor_type.elem_type, torch.float32)
        self.output = model.graph.output[0].name

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Weights follow the module to its device; shapes and indices are needed on the CPU."""
        if tensor.is_floating_point():
            self.weights[name] = f"weight{len(self.weights)}"
            self.register_parameter(self.weights[name], nn.Parameter(tensor, requires_grad=False))
        else:
            self.constants[name] = tensor

    def _is_training(self, node: Node) -> bool:
        """Whether a node computes batch statistics, or drops values at random."""
        flag = self.constants.get(node.inputs[2]) if node.op == "Dropout" and len(node.inputs) > 2 else None
        return bool(node.get("training_mode", 0)) or (flag is not None and bool(flag))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the graph on its input; images in float32 are cast to the type that the graph declares."""
        known = {self.input: x.to(self.dtype) if x.dtype == torch.float32 else x, **self.constants}
        known |= {name: getattr(self, attribute) for name, attribute in self.weights.items()}
        for node in self.nodes:
            given = [known[name] if name else None for name in node.inputs]
            result = OPS[node.op](node, *given)
            outputs = result if isinstance(result, tuple) else (result,)
            known.update(zip(node.outputs, outputs, strict=False))
        return known[self.output]


def _tensor(proto: Any) -> Tensor:
    return torch.from_numpy(importlib.import_module("onnx.numpy_helper").to_array(proto).copy())


def _attribute(attribute: Any) -> Any:
    onnx = importlib.import_module("onnx")
    kinds = onnx.AttributeProto
    if attribute.type == kinds.TENSOR:
        return _tensor(attribute.t)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if attribute.type in (kinds.INTS, kinds.FLOATS) else value
