"""The law every defense keeps, on a tiny instance of each builder, each purifier and each loader's scheme.

Attacks, engine and `verify` rely on it and never look inside a defense. Whoever registers a builder, a purifier or a
scheme adds one entry to TINY.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.defenses import Defense, Loaded, build_purifier, diffusion, load
from robench.defenses.loaders import onnx, robustbench
from robench.defenses.smoothed import Smoothed
from tests.defenses import files
from tests.models import small_net


@dataclass(frozen=True)
class Tiny:
    """A small defense as a user would name it.

    Attributes:
        name, checkpoint: for `load`.
        plain: the same function of images in [0, 1], put together by hand, normalised once.
    """

    name: str
    plain: Callable[[Tensor], Tensor]
    checkpoint: Path | None = None


def _builder(text: str) -> Callable[[Path], Tiny]:
    """A builder of ours: its network alone is what it should be, since it normalizes nothing."""

    def make(place: Path) -> Tiny:
        torch.manual_seed(0)
        defense = specs.build(specs.parse(text), registry.defenses.get(specs.parse(text).name)).eval()
        for parameter_name, parameter in defense.named_parameters():
            if "gamma" in parameter_name:  # a layer scale that starts near 0 hides the image
                torch.nn.init.ones_(parameter)
        save_file(defense.state_dict(), place / "tiny.safetensors")
        return Tiny(text, defense.classifier, place / "tiny.safetensors")

    return make


def _purifier(text: str) -> Callable[[Path], Tiny]:
    """A purifier of ours for images of 16 px, in front of a classifier that we ship."""

    def make(place: Path) -> Tiny:
        torch.manual_seed(0)
        purifier = build_purifier(specs.parse(text)).eval()
        for parameter in purifier.parameters():  # a last layer that starts at 0 hides the image
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        save_file(purifier.state_dict(), place / "tiny.safetensors")
        classifier = load("standard-digits").defense
        return Tiny(f"{text}+standard-digits", lambda x: classifier(purifier(x)), place / "tiny.safetensors")

    return make


def _smoothed(place: Path) -> Tiny:
    purifier, classifier = Smoothed(0.1), load("standard-digits").defense
    return Tiny("smoothed(sigma=0.1)+standard-digits", lambda x: classifier(purifier(x)))


def _timm(place: Path) -> Tiny:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    save_file(network.state_dict(), place / "tiny.safetensors")
    cfg = network.pretrained_cfg
    plain = files.normalised(network, cfg["mean"], cfg["std"])
    return Tiny("timm:test_vit(num_classes=10, image_size=32)", plain, place / "tiny.safetensors")


def _hub(place: Path) -> Tiny:
    network = files.write_hub_folder(place)
    return Tiny("hf-hub:somebody/tiny", files.normalised(network, files.MEAN, files.STD))


def _torchvision(place: Path) -> Tiny:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=10).eval()
    save_file(network.state_dict(), place / "tiny.safetensors")
    plain = files.normalised(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    name = "torchvision:squeezenet1_1(num_classes=10, image_size=64)"
    return Tiny(name, plain, place / "tiny.safetensors")


def _torchscript(place: Path) -> Tiny:
    network = small_net()
    files.write_torchscript(network, place / "tiny.pt", image_size=8, mean=files.MEAN, std=files.STD)
    return Tiny(f"torchscript:{place / 'tiny.pt'}", files.normalised(network, files.MEAN, files.STD))


def _onnx(place: Path) -> Tiny:
    pytest.importorskip("onnx", reason=f"ONNX files need {onnx.INSTALL}")
    network = files.write_onnx(place / "tiny.onnx")
    name = f"onnx:{place / 'tiny.onnx'}(mean={files.MEAN}, std={files.STD})"
    return Tiny(name, files.normalised(network, files.MEAN, files.STD))


def _python(place: Path) -> Tiny:
    network = files.write_module(place)
    return Tiny("python:tiny_module.build(width=4, image_size=8)", files.normalised(network, 0.5, 0.25))


def _robustbench(place: Path) -> Tiny:
    pytest.importorskip("pyautoattack", reason=robustbench.INSTALL)
    if not files.installed("robustbench"):
        pytest.skip(f"RobustBench's zoo needs {robustbench.INSTALL}")
    network = files.write_robustbench(place / "tiny.pt")
    return Tiny(f"robustbench:{files.ROBUSTBENCH}", network, place / "tiny.pt")


def _diffpure(place: Path) -> Tiny:
    pytest.importorskip("diffusers", reason=f"diffusion purifiers need {diffusion.INSTALL}")
    return _purifier(
        "diffpure(image_size=16, widths=[8, 16], layers=1, attention=[], groups=4, t=100, steps=3)"
    )(place)


TINY: dict[str, Callable[[Path], Tiny]] = {
    "cait": _builder("cait(image_size=8, patch_size=2, width=8, depth=2, heads=2, num_classes=10)"),
    "cnn": _builder("cnn(image_size=8, width=4, hidden=8)"),
    "convit": _builder(
        "convit(image_size=8, patch_size=2, width=8, depth=2, heads=2, local=1, num_classes=10)"
    ),
    "convnext": _builder(
        "convnext(image_size=8, patch_size=1, width=8, depths=[1, 1, 1, 1], num_classes=10)"
    ),
    "dbat": _builder(
        'dbat(base="vit(image_size=8, patch_size=4, width=8, depth=2, heads=2, num_classes=10)")'
    ),
    "maep+": _purifier(
        "maep(image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, "
        "decoder_heads=2)"
    ),
    "de3+": _purifier(
        "de3(image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, "
        "decoder_heads=2, sigma=30)"
    ),
    "swin": _builder(
        "swin(image_size=16, patch_size=2, width=8, depths=[2, 1], heads=[1, 2], window=4, num_classes=10)"
    ),
    "vit": _builder("vit(image_size=8, patch_size=4, width=8, depth=2, heads=2, num_classes=10)"),
    "diffpure+": _diffpure,
    "smoothed+": _smoothed,
    "hf-hub:": _hub,
    "onnx:": _onnx,
    "python:": _python,
    "robustbench:": _robustbench,
    "timm:": _timm,
    "torchscript:": _torchscript,
    "torchvision:": _torchvision,
}


def test_everything_that_is_registered_has_an_entry():
    ours = {name for name in registry.defenses if registry.defenses.holder(name).startswith("robench.")}
    ours |= {
        f"{name}+" for name in registry.purifiers if registry.purifiers.holder(name).startswith("robench.")
    }
    ours |= {f"{name}:" for name in registry.loaders if registry.loaders.holder(name).startswith("robench.")}
    lacking = sorted(ours - set(TINY))
    assert not lacking, f"add a tiny instance of {', '.join(lacking)} to TINY in {__file__}"
    assert not set(TINY) - ours, "an entry of TINY is of nothing that is registered"


def seeded(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The logits, a stochastic defense's noise always the same."""
    torch.manual_seed(0)
    return model(x)


@dataclass(frozen=True)
class Case:
    loaded: Loaded
    plain: Callable[[Tensor], Tensor]

    @property
    def defense(self) -> Defense:
        return self.loaded.defense

    def images(self, n: int = 3, low: float = 0.0, high: float = 1.0) -> Tensor:
        side = self.defense.image_size
        generator = torch.Generator().manual_seed(n)
        return low + (high - low) * torch.rand(n, 3, side, side, generator=generator)


@pytest.fixture(scope="module", params=sorted(TINY))
def case(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        files.serve_hub(patch, place)
        tiny = TINY[request.param](place)
        yield Case(load(tiny.name, checkpoint=tiny.checkpoint), tiny.plain)


def test_logits_are_one_row_of_float32_an_image(case):
    for n in (1, 3):
        logits = case.defense(case.images(n))
        assert logits.shape == (n, case.defense.num_classes)
        assert logits.dtype == torch.float32 and logits.isfinite().all()


def test_every_pixel_value_counts_and_none_is_clipped(case):
    corners = case.images().round()
    assert case.defense(corners).isfinite().all()
    for outside in (case.images(low=1.05, high=1.5), case.images(low=-0.5, high=-0.05)):
        assert not torch.allclose(case.defense(outside), case.defense(outside.clamp(0, 1)), atol=1e-5)


def test_it_is_ready_for_evaluation(case):
    assert not any(module.training for module in case.defense.modules())
    assert not any(parameter.requires_grad for parameter in case.defense.parameters())


def test_images_are_normalised_exactly_once(case):
    x = case.images()
    torch.testing.assert_close(seeded(case.defense, x), seeded(case.plain, x), rtol=1e-4, atol=1e-4)


def test_the_same_images_get_the_same_logits_unless_stochastic(case):
    x = case.images()
    first, second = case.defense(x), case.defense(x)
    assert torch.equal(first, second) != case.defense.stochastic


def test_a_row_does_not_depend_on_its_neighbours(case):
    if case.defense.stochastic:
        pytest.skip("its noise is drawn by the batch")
    x = case.images()
    torch.testing.assert_close(case.defense(x)[1:2], case.defense(x[1:2]), rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_the_logits(case):
    if not case.defense.differentiable:
        pytest.skip("it says that there is no exact gradient")
    defense, x = copy.deepcopy(case.defense).double(), case.images(2, 0.2, 0.8).double()
    x.requires_grad_()
    weights = torch.linspace(-1, 1, case.defense.num_classes, dtype=torch.float64)
    loss = (seeded(defense, x) * weights).sum()
    (grad,) = torch.autograd.grad(loss, x)
    assert (grad.flatten(1).norm(dim=1) > 0).all()
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = ((seeded(defense, x + step) - seeded(defense, x - step)) * weights).sum() / 2e-6
    torch.testing.assert_close(slope, (grad * direction).sum(), rtol=1e-3, atol=1e-6)


def test_features_lead_back_to_the_image_or_are_refused_clearly(case):
    x = case.images().requires_grad_()
    if not callable(getattr(case.defense.classifier, "forward_features", None)):
        with pytest.raises(UsageError, match="has no features"):
            case.defense.features(x)
        return
    features = case.defense.features(x)
    assert len(features) == len(x) and features.dim() >= 2 and features.isfinite().all()
    (grad,) = torch.autograd.grad(features.square().sum(), x)
    assert (grad.flatten(1).norm(dim=1) > 0).all()


def test_features_come_with_the_logits_and_are_the_same(case):
    if not callable(getattr(case.defense.classifier, "forward_features", None)):
        pytest.skip("it has no features")
    defense, x = case.defense, case.images()
    if defense.stochastic:
        pytest.skip("two calls draw other noise")
    for layers, features in (("last", (defense.features(x),)), ("all", defense.all_features(x))):
        logits, heard = defense.logits_and_features(x, layers)
        assert torch.equal(logits, defense(x))
        assert len(heard) == len(features) and all(map(torch.equal, heard, features))
    assert torch.equal(defense(x), logits)  # nothing is left hooked
    point = x.clone().requires_grad_()
    for each in defense.all_features(point):
        (grad,) = torch.autograd.grad(each.square().sum(), point, retain_graph=True)
        assert (grad.flatten(1).norm(dim=1) > 0).all()


def test_logits_are_the_same_without_a_graph(case):
    x = case.images()
    with torch.enable_grad():
        with_graph = seeded(case.defense, x.clone().requires_grad_()).detach()
    with torch.no_grad():
        assert torch.equal(seeded(case.defense, x), with_graph)
    with torch.inference_mode():
        assert torch.equal(seeded(case.defense, x), with_graph)


def test_it_makes_no_tensor_on_another_device(case):
    """On a GPU that is not there: a tensor left on the CPU is refused, up to the first branch on a value."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in case.defense.modules()):
        pytest.skip("TorchScript does not run on fake tensors")
    # Weights and images without values, which say that they are on a GPU.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    defense = copy.deepcopy(case.defense)
    for module in defense.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None:
                    with mode:
                        tensors[name] = torch.empty_like(tensor, device="cuda")
    with mode, torch.no_grad(), contextlib.suppress(DataDependentOutputException):
        side = defense.image_size
        assert defense(torch.rand(2, 3, side, side, device="cuda")).device.type == "cuda"


@pytest.mark.gpu
def test_it_works_on_a_gpu_in_bf16(case):
    defense, x = copy.deepcopy(case.defense).cuda(), case.images(8).cuda().requires_grad_()
    exact = seeded(defense, x).detach()
    if not case.defense.stochastic:  # the devices draw other numbers
        torch.testing.assert_close(exact.cpu(), case.defense(x.detach().cpu()), rtol=1e-2, atol=1e-2)
    with torch.autocast("cuda", torch.bfloat16):
        rough = seeded(defense, x).float()
    (grad,) = torch.autograd.grad(rough.square().sum(), x)
    assert grad.isfinite().all() and (grad.flatten(1).norm(dim=1) > 0).all()
    # bf16 keeps eight bits: each of a network's layers loses a part in 256.
    assert (rough.detach() - exact).norm() < 0.1 * exact.norm()


class Normalising(nn.Module):
    """A network whose first layer normalizes, as many published ones do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.tensor(files.MEAN).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(files.STD).view(1, 3, 1, 1))
        self.network = small_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mu) / self.sigma)


def test_a_network_that_normalises_by_itself_is_not_normalised_again(tmp_path):
    nested = nn.Sequential(Normalising(), nn.Identity()).eval()
    with pytest.raises(ValueError, match=r"normalizes by itself, with its 0\.mu"):
        Defense(nested, num_classes=10, image_size=8, mean=files.MEAN, std=files.STD)
    files.write_torchscript(nested, tmp_path / "own.pt", image_size=8)
    defense = load(f"torchscript:{tmp_path / 'own.pt'}").defense
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(defense(x), nested(x))
    with pytest.raises(UsageError, match="normalizes by itself"):
        load(f"torchscript:{tmp_path / 'own.pt'}(mean=0.5, std=0.5)")


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 2, (0.5,) * 2), ((0.5,) * 3, (0.5, 0.0, 0.5)), ((0.5,), (-1,))]
)
def test_a_normalisation_that_cannot_be_is_refused(mean, std):
    with pytest.raises(ValueError, match="one per channel"):
        Defense(nn.Flatten(), num_classes=2, image_size=2, mean=mean, std=std)


def test_batch_norm_is_no_normalisation_of_pixels():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    assert Defense(network, num_classes=2, image_size=2, mean=files.MEAN, std=files.STD).mean is not None
