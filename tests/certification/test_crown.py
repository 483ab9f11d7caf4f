"""CROWN and intervals: exact where a closed form exists, sound against brute force and samples, refused elsewhere."""

import dataclasses
import operator

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from robench.certification import Case
from robench.certification._graph import steps_of
from robench.certification.crown import Ball, Crown, IntervalBounds, Relaxation
from robench.core.errors import UsageError
from robench.data import Images, load_dataset
from robench.defenses import Defense, Loaded
from robench.engine.setup import Setup
from robench.threats.threat import Threat
from tests.certification import cases
from tests.data.test_cifar10 import REAL

NORMS = ("Linf", "L2", "L1")


class Residual(nn.Module):
    """All operations for which bounds are known, with a residual connection and functions in place of modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.again = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.relu, self.pool, self.linear = nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Linear(12, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.weight.data.normal_()

    def forward(self, x):
        x = self.relu(self.norm(self.conv((x - 0.5) / 0.25)))
        out = F.relu(self.again(x))
        out += F.pad(x[:, :2], (0, 0, 0, 0, 0, 1))
        out = self.pool(out * 0.5)
        return self.linear(out.view(out.size(0), -1)) + out.mean((1, 2, 3))[:, None]


class Attention(nn.Module):
    def forward(self, x):
        return x.flatten(1).softmax(1)


def small(seed: int, **sizes: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return Residual().eval(), torch.rand(1, 2, 4, 4)


def points(x: torch.Tensor, norm: str, eps: float, count: int) -> torch.Tensor:
    """Random images of the ball, most of them on its edge."""
    delta = torch.randn(count, *x.shape[1:])
    if norm == "Linf":
        delta = delta.sign() * eps
    elif norm == "L2":
        delta *= eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    else:
        delta = (
            torch.zeros_like(delta).flatten(1).scatter_(1, torch.randint(delta[0].numel(), (count, 1)), eps)
        )
        delta = (delta * torch.randn(count, 1).sign()).view(count, *x.shape[1:])
    return (x + delta).clamp(0, 1)


def case_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor, threat: str) -> Case:
    defense = Defense(model, num_classes=2, image_size=x.shape[-1], channels=x.shape[1]).eval()
    images = Images("own", "test", x, y, torch.arange(len(x)), ("0", "1"))
    setup = Setup(defense, 0, torch.device("cpu"), 8)
    return Case(Loaded("own", defense, None, "", None, ""), images, setup, Threat.parse(threat))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tight", [False, True])
def test_all_values_lie_within_their_bounds(norm, tight):
    for seed in range(3):
        model, x = small(seed)
        eps = 0.05 if norm == "Linf" else 0.3
        steps = steps_of(model, x)
        relaxation = Relaxation(steps, Ball(x.double(), norm, eps), tight)
        low, high = relaxation.interval(steps[-1].name)
        with torch.no_grad():
            logits = model(points(x, norm, eps, 500)).double()
        assert bool(((logits >= low) & (logits <= high)).all())
        for label in range(3):
            margins = logits[:, label, None] - logits[:, [k for k in range(3) if k != label]]
            bound = relaxation.margins(label)
            assert bool((margins >= bound).all())
            # The bound is no constant: at a hundredth of the radius it is close to the margin.
            near = Relaxation(steps, Ball(x.double(), norm, eps / 1000), tight).margins(label)
            with torch.no_grad():
                own = model(x).double()[0]
            actual = own[label] - own[[k for k in range(3) if k != label]]
            assert bool((actual - near < 0.01 * (1 + actual.abs())).all()) and bool((near > bound).all())


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_of_a_linear_network_are_exact(norm):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2) * 0.2 + 0.4
    eps = 0.05
    (bound,) = Relaxation(steps_of(model, x), Ball(x.double(), norm, eps), True).margins(0)
    weight = (model[1].weight[0] - model[1].weight[1]).double()
    dual = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    exact = weight @ x.flatten().double() + (model[1].bias[0] - model[1].bias[1]) - eps * weight.norm(dual)
    assert exact - 1e-5 < bound < exact


def test_bounds_of_one_neuron_are_exact():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for module, weight, bias in ((model[1], [[1.0]], [-0.5]), (model[3], [[1.0], [-1.0]], [0.1, 0.0])):
            module.weight.copy_(torch.tensor(weight))
            module.bias.copy_(torch.tensor(bias))
    x = torch.full((1, 1, 1, 1), 0.55)
    # The margin is 2 * relu(x - 0.5) + 0.1; its least value over the ball is 0.1, and CROWN's lower slope is 1.
    (bound,) = Relaxation(steps_of(model, x), Ball(x.double(), "Linf", 0.1), True).margins(0)
    (below,) = Relaxation(steps_of(model, x), Ball(x.double(), "Linf", 0.04), True).margins(0)
    assert bound.item() == pytest.approx(0.1 - 2 * 0.05, abs=1e-5) and below.item() == pytest.approx(
        0.12, abs=1e-5
    )


@pytest.mark.parametrize(("certifier", "share"), [(Crown(), 0.5), (IntervalBounds(), 0.05)])
def test_what_is_proven_holds_on_a_grid_of_the_whole_ball(certifier, share):
    """Two pixels: brute force over a grid that contains the corners."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    x = torch.rand(40, 1, 1, 2)
    with torch.no_grad():
        # The decision boundary passes through the middle of the images.
        logits = model(x)
        model[5].bias[0] -= (logits[:, 0] - logits[:, 1]).median()
    y = model(x).argmax(1)
    case = case_of(model, x, y, "Linf:0.05")
    bounds = certifier.bounds(case, range(40))
    steps = torch.linspace(-0.05, 0.05, 41)
    grid = torch.cartesian_prod(steps, steps).view(-1, 1, 1, 2)
    with torch.no_grad():
        robust = torch.tensor(
            [
                bool((model((row + grid).clamp(0, 1)).argmax(1) == label).all())
                for row, label in zip(x, y, strict=True)
            ]
        )
    proven = bounds.radius > case.threat.eps
    assert not (proven & ~robust).any() and proven.sum() >= share * robust.sum() > 0
    assert not robust.all()


def test_the_bound_covers_float32_rounding():
    """The two logits differ by less than the rounding error of a long sum, which float64 alone would call a proof."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        model[1].weight.copy_(torch.ones_like(model[1].weight) * 0.1)
        model[1].weight[1] = model[1].weight[0].flip(0)
        model[1].bias.copy_(torch.tensor([1e-5, 0.0]))
    (bound,) = Relaxation(steps_of(model, x), Ball(x.double(), "Linf", 1e-9), True).margins(0)
    assert -1 < bound < 0


def test_a_misclassified_image_is_not_proven():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    x = torch.full((2, 3, 1, 1), 0.5)
    right = model(x[:1]).argmax(1).item()
    bounds = Crown().bounds(case_of(model, x, torch.tensor([right, 1 - right]), "Linf:0.000001"), [0, 1])
    assert bounds.radius[0] > 1e-6 and bounds.radius[1] == 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Attention(), "no bound known for softmax"),
        (nn.Sequential(nn.Flatten(), nn.GELU()), "no bound known for GELU"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), "no bound known for MaxPool2d"),
        (cases.Sometimes(), "no bound known for"),
    ],
)
def test_networks_without_a_known_bound_are_named(model, reason):
    case = case_of(model, torch.rand(1, 3, 4, 4), torch.tensor([0]), "Linf:0.1")
    with pytest.raises(UsageError, match=reason):
        Crown().check(case)


class Flat(nn.Module):
    """A function of the flattened image."""

    def __init__(self, function, *layers: nn.Module):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x.flatten(1), *self.layers)


def changed(change):
    """A network that changes a value in place and then reads it under its old name."""

    def function(h):
        value = h - 0.9
        return torch.cat([h - 0.45, change(value) + value], 1)

    return Flat(function)


def hooked(where):
    """A layer or a network whose hook computes something that a trace does not show."""
    layer = nn.utils.spectral_norm(nn.Linear(12, 2)) if where == "layer" else nn.Linear(12, 2)
    model = Flat(lambda h, layer: layer(h), layer)
    if where == "network":
        model.register_forward_hook(lambda module, given, output: output.sin())
    return model


LOOKS_AFFINE = {
    "mean of the batch": Flat(lambda h: h - 0.9 * h.mean(0, keepdim=True)),
    "a batch of one": Flat(lambda h: h.view(1, 12)),
    "a dict": Flat(lambda h: {"logits": h}),
    "square": Flat(lambda h: h * h),
    "square by keyword": Flat(lambda h: torch.mul(h, other=h)),
    "ratio": Flat(lambda h: h / h),
    "inverse": Flat(lambda h: 1 / (1 + h)),
    "floor": Flat(lambda h: torch.div(h, 0.6, rounding_mode="floor")),
    "integers": Flat(lambda h: torch.sum(h * 9, 1, keepdim=True, dtype=torch.int64) * torch.ones(1, 2)),
    "F.relu_": changed(F.relu_),
    "torch.relu_": changed(torch.relu_),
    "relu_": changed(lambda value: value.relu_()),
    "F.relu, inplace": changed(lambda value: F.relu(value, inplace=True)),
    "F.relu, True": changed(lambda value: F.relu(value, True)),
    "add_": changed(lambda value: value.add_(0.3)),
    "mul_ of a view": changed(lambda value: value.view(-1, 12).mul_(0.3)),
    "+=": changed(lambda value: operator.iadd(value, 0.3)),
    "residual around a ReLU in place": Flat(lambda h, relu: relu(h) + h, nn.ReLU(inplace=True)),
    "spectral norm": hooked("layer"),
    "hook of the network": hooked("network"),
}


@pytest.mark.parametrize("name", LOOKS_AFFINE)
def test_no_bound_is_given_for_what_only_looks_affine(name):
    model = LOOKS_AFFINE[name].eval().requires_grad_(False)
    with pytest.raises(UsageError, match="no bound known for"):
        steps_of(model, torch.full((1, 3, 2, 2), 0.5))


class Block(nn.Module):
    """A residual block whose changes in place are harmless, as in torchvision's ResNets."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Linear(12, 2)

    def forward(self, x):
        h = self.relu(self.one(x))
        h = self.norm(self.two(h))
        h += x
        return self.head(self.relu(h).flatten(1))


HARMLESS = {
    "block": Block(),
    "sum": Flat(lambda h: h + h - h.mean(1, keepdim=True) / 3),
    "own value": Flat(lambda h: torch.cat([h, F.relu_(h * 2 - 1)], 1)),
    "view": Flat(lambda h: F.relu_((h - 0.5).view(-1, 12))),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_changes_in_place_have_bounds(name):
    model, x = HARMLESS[name].eval().requires_grad_(False), torch.full((1, 3, 2, 2), 0.5)
    steps = steps_of(model, x)
    # Points of float32 lie up to 1e-7 outside of the ball.
    relaxation = Relaxation(steps, Ball(x.double(), "Linf", 0.1 + 1e-6), True)
    low, high = relaxation.interval(steps[-1].name)
    logits = model(points(x, "Linf", 0.1, 200)).double()
    assert bool(((logits >= low) & (logits <= high)).all()) and bool((high - low < 3).all())


def test_randomised_defenses_and_other_threats_are_refused():
    with pytest.raises(UsageError, match="randomized"):
        Crown().check(cases.case())
    case = case_of(nn.Flatten(), torch.rand(1, 3, 4, 4), torch.tensor([0]), "L0:3")
    with pytest.raises(UsageError, match="no bound known for L0:3"):
        Crown().check(case)
    assert (
        dataclasses.replace(case, threat=Threat.parse("L2:1"))
        and Crown().check(dataclasses.replace(case, threat=Threat.parse("L2:1"))) is None
    )


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "weights").is_dir(), reason="the weights of CNN-A are not here")
def test_cnn_a_is_certified_as_often_as_by_auto_lirpa():
    """alpha-beta-CROWN's CNN-A at Linf 2/255 on 200 images: auto_LiRPA's CROWN 28.5 %, IBP 0 %."""
    network = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                            nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10))  # fmt: skip
    network.load_state_dict(load_file(REAL / "weights" / "cnn_a_adv_cifar10.safetensors"))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    defense = Defense(network, num_classes=10, image_size=32, mean=mean, std=std).eval()
    images = load_dataset("cifar10", "test", 200, str(REAL))
    setup = Setup(defense, 0, torch.device("cpu"), 64)
    case = Case(Loaded("cnn-a", defense, None, "", None, ""), images, setup, Threat.parse("Linf:2/255"))
    assert not (IntervalBounds().bounds(case, range(200)).radius > 0).any()
    assert abs(int((Crown().bounds(case, range(200)).radius > 0).sum()) - 57) <= 1
