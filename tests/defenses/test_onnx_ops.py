"""Each operator against ONNX's own reference implementation, and its gradient against finite differences."""

import numpy
import pytest
import torch

from robench.core.errors import ResourceError
from robench.defenses.loaders import onnx as onnx_loader

onnx = pytest.importorskip("onnx", reason=f"ONNX files need {onnx_loader.INSTALL}")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from robench.defenses.loaders._onnx_graph import Graph  # noqa: E402

IMAGE = (2, 4, 6, 6)


def ints(*values):
    return numpy.array(values, dtype=numpy.int64)


def floats(*shape, low=-1.0, seed=7):
    return numpy.random.default_rng(seed).uniform(low, 1.0, shape).astype(numpy.float32)


def scalar(value):
    return numpy.array(value, dtype=numpy.float32)


# Operator, what comes behind its first input, attributes, opset.
CASES = [
    *[(name, [], {}, 17) for name in (
        "Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "Floor", "Ceil", "Sin", "Cos", "Sign", "Round",
        "Identity", "Softplus", "HardSwish", "Elu", "LeakyRelu", "HardSigmoid", "Reciprocal", "Flatten",
        "Transpose", "GlobalAveragePool", "GlobalMaxPool", "Dropout",
    )],
    ("Mish", [], {}, 18),
    ("Gelu", [], {}, 20),
    ("Gelu", [], {"approximate": "tanh"}, 20),
    ("LeakyRelu", [], {"alpha": 0.3}, 17),
    ("Elu", [], {"alpha": 0.7}, 17),
    ("PRelu", [floats(4, 1, 1)], {}, 17),
    ("Clip", [scalar(-0.2), scalar(0.5)], {}, 17),
    ("Clip", [], {"min": -0.2, "max": 0.5}, 6),
    ("Softmax", [], {}, 17),
    ("Softmax", [], {"axis": 1}, 17),
    ("LogSoftmax", [], {"axis": 1}, 17),
    *[(name, [floats(4, 1, 1, low=0.5)], {}, 17) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max")],
    ("Sum", [floats(2, 4, 6, 6), floats(6)], {}, 17),
    ("Pow", [scalar(2.0)], {}, 17),
    ("MatMul", [floats(6, 3)], {}, 17),
    ("Conv", [floats(3, 4, 3, 3)], {"kernel_shape": [3, 3]}, 17),
    ("Conv", [floats(3, 4, 3, 3), floats(3)], {"pads": [0, 1, 2, 1], "strides": [2, 1]}, 17),
    ("Conv", [floats(4, 1, 3, 3)], {"group": 4, "dilations": [2, 1], "auto_pad": "SAME_UPPER"}, 17),
    ("Conv", [floats(4, 2, 2, 2)], {"group": 2, "auto_pad": "SAME_LOWER"}, 17),
    ("BatchNormalization", [floats(4), floats(4), floats(4), floats(4, low=0.5)], {"epsilon": 1e-3}, 17),
    ("LayerNormalization", [floats(6), floats(6)], {"epsilon": 1e-3}, 17),
    ("LayerNormalization", [floats(6, 6)], {"axis": 2}, 17),
    ("InstanceNormalization", [floats(4), floats(4)], {}, 17),
    ("GroupNormalization", [floats(4), floats(4)], {"num_groups": 2}, 21),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 17),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, 17),
    ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, 17),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 17),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 17),
    *[(name, [ints(2, 3)], {"keepdims": 0}, 18) for name in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd",
    )],
    ("ReduceMean", [], {"axes": [-1]}, 13),
    ("ReduceSum", [], {}, 13),
    ("Reshape", [ints(0, -1)], {}, 17),
    ("Reshape", [ints(2, 4, 36)], {"allowzero": 1}, 17),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}, 17),
    ("Flatten", [], {"axis": 2}, 17),
    ("Unsqueeze", [ints(0, -1)], {}, 17),
    ("Unsqueeze", [], {"axes": [1]}, 11),
    ("Slice", [ints(1, 0), ints(2**31, -1), ints(2, 3), ints(2, 1)], {}, 17),
    ("Slice", [ints(-1), ints(-(2**63)), ints(3), ints(-1)], {}, 17),
    ("Slice", [], {"starts": [1], "ends": [3], "axes": [1]}, 9),
    ("Gather", [ints(-1, 0)], {"axis": 1}, 17),
    ("Gather", [numpy.array(2)], {"axis": 3}, 17),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {}, 17),
    ("Pad", [ints(1, 2, 0, 1), scalar(0.5), ints(2, 3)], {}, 18),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}, 17),
    ("Concat", [floats(2, 1, 6, 6)], {"axis": 1}, 17),
    ("Expand", [ints(3, 2, 1, 6, 6)], {}, 17),
    ("Tile", [ints(1, 2, 1, 3)], {}, 17),
    ("Einsum", [floats(4, 3)], {"equation": "bchw,ck->bkhw"}, 17),
    ("Cast", [], {"to": TensorProto.DOUBLE}, 17),
]  # fmt: skip


def model(op, behind, attributes, opset, name="x"):
    names = [f"c{i}" for i in range(len(behind))]
    graph = helper.make_graph(
        [helper.make_node(op, [name, *names], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, IMAGE)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, each) for array, each in zip(behind, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(("op", "behind", "attributes", "opset"), CASES)
def test_an_operator_is_what_the_reference_says(op, behind, attributes, opset):
    x = floats(*IMAGE, seed=1)
    written = model(op, behind, attributes, opset)
    (expected,) = ReferenceEvaluator(written).run(None, {"x": x})
    found = Graph(written)(torch.from_numpy(x)).detach().numpy()
    assert found.dtype == expected.dtype
    numpy.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "behind", "attributes", "opset"), CASES[26:])
def test_an_operator_passes_its_gradient_on(op, behind, attributes, opset):
    graph = Graph(model(op, behind, attributes, opset)).double()
    x = torch.from_numpy(floats(*IMAGE, seed=1)).double().requires_grad_()
    weights = torch.rand_like(graph(x))
    direction = torch.randn_like(x)
    (grad,) = torch.autograd.grad((graph(x) * weights).sum(), x)
    with torch.no_grad():
        slope = ((graph(x + 1e-7 * direction) - graph(x - 1e-7 * direction)) * weights).sum() / 2e-7
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=1e-5)


def test_softmax_of_old_graphs_flattens_from_its_axis_on():
    """Version 11 of the operator: coerced to two dimensions at `axis`, 1 if not said."""
    x = torch.from_numpy(floats(*IMAGE, seed=1))
    found = Graph(model("Softmax", [], {}, 11))(x)
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(2))
    torch.testing.assert_close(found, x.flatten(1).softmax(1).reshape(x.shape))


def test_shapes_that_are_computed_follow_the_batch():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"]),
        helper.make_node("Unsqueeze", ["count", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Split", ["flat"], ["left", "right"], axis=1),
        helper.make_node("Sub", ["left", "right"], ["difference"]),
        helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "one"], ["column"]),
        helper.make_node("Add", ["difference", "column"], ["y"]),
    ]
    constants = {"first": numpy.array(0), "zero": ints(0), "minus": ints(-1), "one": ints(1)}
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    run = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    for n in (1, 5):
        x = torch.rand(n, 3, 4, 4)
        left, right = x.flatten(1).chunk(2, 1)
        torch.testing.assert_close(run(x), left - right)


def test_an_unknown_operator_is_named():
    with pytest.raises(ResourceError, match="the operator NonMaxSuppression is not among the"):
        Graph(model("NonMaxSuppression", [], {}, 17))
