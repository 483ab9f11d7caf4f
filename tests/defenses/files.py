"""Small files of every kind that a loader opens, and the networks they hold."""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy
import timm
import torch
from torch import Tensor, nn

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# RobustBench's smallest network with a single published file: a ResNet-18.
ROBUSTBENCH = "Sehwag2021Proxy_R18"


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def normalised(network: nn.Module, mean, std):
    """The network behind a normalization written out by hand."""
    shift = torch.tensor(mean).view(1, -1, 1, 1)
    scale = torch.tensor(std).view(1, -1, 1, 1)

    def plain(x: Tensor) -> Tensor:
        return network((x - shift) / scale)

    return plain


def write_torchscript(network: nn.Module, path: Path, text: str = "", **note) -> None:
    """A scripted module with what it says of itself: `note`, or any `text` in its place."""
    with warnings.catch_warnings():
        # torch speaks of TorchScript as deprecated.
        warnings.simplefilter("ignore")
        said = text or (json.dumps(note) if note else "")
        torch.jit.save(torch.jit.script(network), path, _extra_files={"robench.json": said} if said else {})


def write_traced(network: nn.Module, path: Path, side: int) -> None:
    """A traced module, for networks that cannot be scripted."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, side, side)), path)


def write_onnx(
    path: Path, batch: int | str = "batch", side: int = 8, metadata: dict | None = None
) -> nn.Module:
    """A small graph, written by hand so that no exporter is needed, and the same network in PyTorch."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 10)
    ).eval()
    weights = {
        name.replace(".", "_"): numpy.ascontiguousarray(tensor.numpy())
        for name, tensor in network.state_dict().items()
    }
    nodes = [
        helper.make_node(
            "Conv", ["images", "0_weight", "0_bias"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "4_weight", "4_bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return network


def write_module(place: Path) -> nn.Module:
    """A Python module with builders, in a folder that must be the current one, and what `build` gives."""
    (place / "tiny_module.py").write_text(
        '''
import torch
from torch import nn
from robench.defenses import Defense


def network(width=4):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)
    ).eval()


def build(width=4, image_size=8):
    """A defense that normalises by itself."""
    return Defense(network(width), num_classes=10, image_size=image_size, mean=(0.5,), std=(0.25,))


def number():
    return 3


def fails():
    raise ValueError("no width\\nat all")


def needs(width):
    return network(width)
'''
    )
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
    ).eval()


def write_hub_folder(place: Path) -> nn.Module:
    """config.json and model.safetensors as timm itself writes them for the hub."""
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    network.pretrained_cfg |= {"mean": MEAN, "std": STD, "input_size": (3, 32, 32), "num_classes": 10}
    save_for_hf(network, place / "hub", model_args={"img_size": 32}, safe_serialization=True)
    return network


def serve_hub(patch, place: Path) -> None:
    """Stand in for the network alone: timm asks the hub, and gets the files of `write_hub_folder`."""

    def download(repo_id, filename, **options):
        path = place / "hub" / filename
        if repo_id != "somebody/tiny" or not path.is_file():
            raise OSError("no network in tests")
        return str(path)

    patch.setattr("timm.models._hub.hf_hub_download", download)


def write_robustbench(path: Path, name: str = ROBUSTBENCH) -> nn.Module:
    """A checkpoint as RobustBench publishes them, with random weights, and its network."""
    from robench.defenses.loaders import Source
    from robench.defenses.loaders.robustbench import import_robustbench

    import_robustbench(Source("robustbench", name))
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    torch.manual_seed(0)
    network = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf][name]["model"]().eval()
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, path)
    return network
