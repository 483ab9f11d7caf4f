"""Loaders that need an extra: ONNX files, and RobustBench's zoo. Skipped where it is not installed."""

import sys

import pytest
import torch

from robench.core.errors import ResourceError, UsageError
from robench.defenses import load, load_defense
from robench.defenses.loaders import Source
from robench.defenses.loaders import onnx as onnx_loader
from robench.defenses.loaders import robustbench as robustbench_loader
from tests.defenses import files

# onnx

needs_onnx = pytest.mark.skipif(not files.installed("onnx"), reason=f"ONNX files need {onnx_loader.INSTALL}")


@needs_onnx
@pytest.mark.parametrize(
    ("metadata", "mean", "std"),
    [
        ({}, None, None),
        ({"mean": "[0.4, 0.5, 0.6]", "std": "[0.2, 0.25, 0.3]"}, files.MEAN, files.STD),
        ({"Image.NominalPixelRange": "NominalRange_0_255"}, (0,), (1 / 255,)),
        ({"Image.NominalPixelRange": "Normalized_1_1", "Image.BitmapPixelFormat": "Rgb8"}, (0.5,), (0.5,)),
    ],
)
def test_an_onnx_file_says_how_its_images_are_normalised(tmp_path, metadata, mean, std):
    network = files.write_onnx(tmp_path / "net.onnx", metadata=metadata)
    defense = load_defense(f"onnx:{tmp_path / 'net.onnx'}")
    plain = network if mean is None else files.normalised(network, mean, std)
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(defense(x), plain(x), rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 1}, r"takes \(1, 3, 8, 8\): expected \(N, 3, S, S\), the batch dimension free"),
        ({"metadata": {"Image.BitmapPixelFormat": "Bgr8"}}, "takes Bgr8 images"),
        ({"metadata": {"Image.NominalPixelRange": "NominalRange_16_235"}}, "give mean=... and std=..."),
    ],
)
def test_an_onnx_file_that_does_not_fit_is_refused(tmp_path, options, said):
    files.write_onnx(tmp_path / "net.onnx", **options)
    with pytest.raises(UsageError, match=said):
        load(f"onnx:{tmp_path / 'net.onnx'}")


def edited(path, change):
    """A file of `write_onnx`, changed by a function of its graph."""
    import onnx

    files.write_onnx(path)
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return f"onnx:{path}"


@needs_onnx
def test_a_graph_in_half_precision_takes_images_as_it_declares(tmp_path):
    from onnx import TensorProto, numpy_helper

    def halve(graph):
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        for weight in graph.initializer:
            half = numpy_helper.to_array(weight).astype("float16")
            weight.CopyFrom(numpy_helper.from_array(half, weight.name))

    network = files.write_onnx(tmp_path / "plain.onnx")
    defense = load_defense(edited(tmp_path / "net.onnx", halve))
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(defense(x).float(), network(x), rtol=1e-2, atol=1e-2)


@needs_onnx
@pytest.mark.parametrize(("op", "extra"), [("BatchNormalization", 4), ("Dropout", 2)])
def test_a_graph_in_training_mode_is_refused(tmp_path, op, extra):
    import numpy
    from onnx import helper, numpy_helper

    values = {
        "BatchNormalization": [numpy.ones(3, "float32")] * 4,
        "Dropout": [numpy.float32(0.5), numpy.array(True)],
    }[op]

    def train(graph):
        names = [f"extra{i}" for i in range(extra)]
        graph.initializer.extend(map(numpy_helper.from_array, values, names))
        more = {"training_mode": 1} if op == "BatchNormalization" else {}
        outputs = ["trained", "mean", "var"] if op == "BatchNormalization" else ["trained"]
        graph.node.insert(0, helper.make_node(op, ["images", *names], outputs, **more))
        graph.node[1].input[0] = "trained"

    with pytest.raises(ResourceError, match=f"exported in training mode \\({op}\\)"):
        load(edited(tmp_path / "net.onnx", train))


@needs_onnx
def test_a_graph_for_bytes_is_refused(tmp_path):
    from onnx import TensorProto, helper

    def take_bytes(graph):
        graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        graph.node.insert(0, helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT))
        graph.node[1].input[0] = "cast"

    with pytest.raises(UsageError, match="takes images of uint8: expected floats"):
        load(edited(tmp_path / "net.onnx", take_bytes))


@needs_onnx
def test_weights_in_another_file_are_refused_with_the_mend(tmp_path):
    import onnx

    files.write_onnx(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(UsageError, match=r"onnx\.save\(onnx\.load\(FILE\), NEW\)"):
        load(f"onnx:{tmp_path / 'two.onnx'}")
    onnx.save(onnx.load(tmp_path / "two.onnx"), tmp_path / "one.onnx")
    x = torch.rand(2, 3, 8, 8)
    one = load_defense(f"onnx:{tmp_path / 'one.onnx'}")
    torch.testing.assert_close(one(x), load_defense(f"onnx:{tmp_path / 'net.onnx'}")(x))


@needs_onnx
def test_a_damaged_onnx_file_is_refused(tmp_path):
    files.write_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:200])
    with pytest.raises(ResourceError, match="is not a complete ONNX file") as caught:
        load(f"onnx:{tmp_path / 'net.onnx'}")
    assert "\n" not in str(caught.value)


# robustbench

needs_robustbench = pytest.mark.skipif(
    not files.installed("robustbench"), reason=f"RobustBench's zoo needs {robustbench_loader.INSTALL}"
)


@pytest.mark.skipif(files.installed("robustbench"), reason="robustbench is installed")
def test_without_robustbench_it_says_how_to_install_it():
    with pytest.raises(ResourceError, match=r"robustbench:Carmon2019Unlabeled needs .*pip install") as caught:
        load("robustbench:Carmon2019Unlabeled")
    assert "\n" not in str(caught.value)


@needs_robustbench
def test_robustbench_is_really_imported_and_leaves_nothing_behind():
    module = robustbench_loader.import_robustbench(Source("robustbench", "x"))
    assert module is sys.modules["robustbench"] and callable(module.load_model)
    assert "autoattack" not in sys.modules
    from robustbench.loaders import make_custom_dataset

    # The one thing that it wants of pkg_resources: the list of its 5,000 ImageNet images.
    assert len(make_custom_dataset(".", "helper_files/imagenet_test_image_ids.txt", _AnyClass())) == 5000


class _AnyClass(dict):
    def __missing__(self, key):
        return 0


@needs_robustbench
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("robustbench:Carmon2019", r"did you mean Carmon2019Unlabeled"),
        ("robustbench:Carmon2019Unlabeled@cifar11/Linf", "did you mean cifar10"),
        ("robustbench:Carmon2019Unlabeled@cifar10/Linv", "did you mean Linf"),
        ("robustbench:@cifar10/Linf", "expected robustbench:NAME"),
    ],
)
def test_unknown_names_of_robustbench(name, said):
    with pytest.raises(UsageError, match=said):
        load(name)


@needs_robustbench
def test_a_checkpoint_of_robustbench_must_be_whole(tmp_path):
    files.write_robustbench(tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt", weights_only=True)
    del state["module.linear.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ResourceError, match=r"part\.pt does not fit robustbench:.*linear\.weight") as caught:
        load(f"robustbench:{files.ROBUSTBENCH}", checkpoint=tmp_path / "part.pt")
    assert "\n" not in str(caught.value)


@needs_robustbench
def test_what_robustbench_loads_leniently_must_be_whole_too(tmp_path):
    """For some models it goes on without keys that are missing, when another key is there that it expects."""
    name = "Wong2020Fast"
    files.write_robustbench(tmp_path / "part.pt", name)
    state = torch.load(tmp_path / "part.pt", weights_only=True)
    del state["module.linear.weight"]
    state["module.model_preact_hl1.1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ResourceError, match=r"lacks linear\.weight"):
        load(f"robustbench:{name}", checkpoint=tmp_path / "part.pt")
