"""Properties of every transformation: zero parameters, pixel range, gradients, budgets, independent rows."""

import math

import pytest
import torch

from robench.core import registry
from robench.threats.threat import Threat
from tests.models import images

# One of each, with settings for 16 pixels.
SPECS = {
    "blur": "blur(kernel=7, spread=3):0.8",
    "elastic": "elastic:0.5",
    "fog": "fog:0.4",
    "gabor": "gabor(kernel=11):0.05",
    "jpeg": "jpeg:0.05",
    "low-frequency": "low-frequency(ratio=0.25):1.5",
    "pixel": "pixel:3",
    "recolor": "recolor(grid=(3, 4, 5)):0.06",
    "rotation": "rotation:20",
    "snow": "snow(length=5, grid=4, blur=3):2",
    "spatial": "spatial(shift=2):20",
    "stadv": "stadv:0.8",
    "translation": "translation:2",
}
BOTH = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def parameters(threat: Threat, x: torch.Tensor, seed: int = 0, share: float = 0.9) -> torch.Tensor:
    """Points well inside the budget."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(threat.origin(x).shape, generator=generator)
    if threat.coordinates.low == 0:
        theta = theta.abs()
    clipped = threat.clip(theta / theta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 100)
    return threat.moved(x, share * clipped)


def test_every_transformation_is_tested():
    import robench.threats.transformations  # noqa: F401

    assert set(SPECS) == set(registry.transformations)


@BOTH
def test_zero_parameters_leave_images_unchanged(spec):
    threat, x = Threat.parse(spec), images(5, side=16)
    same = threat.image(x, threat.origin(x), torch.arange(5))
    if spec.startswith("snow"):
        # The image is bleached even without flakes.
        grey = 0.2126 * x[:, :1] + 0.7152 * x[:, 1:2] + 0.0722 * x[:, 2:]
        x = 0.85 * x + 0.15 * torch.maximum(x, 1.5 * grey + 0.5)
    assert torch.allclose(same, x.clamp(0, 1), atol=1e-5)


@BOTH
def test_images_stay_in_range_and_change(spec):
    threat, x = Threat.parse(spec), torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for point in (parameters(threat, x), 30 * parameters(threat, x)):
        made = threat.image(x, point, torch.arange(5))
        assert made.shape == x.shape and float(made.min()) >= 0 and float(made.max()) <= 1
        assert ((made - x).abs().flatten(1).amax(1) > 1e-3).all()


@BOTH
def test_gradients_match_finite_differences(spec):
    threat, x = Threat.parse(spec), images(3, side=16).double()
    change, sample = threat.coordinates, torch.arange(3)
    generator = torch.Generator().manual_seed(2)
    # Not at whole pixels, where bilinear sampling is not differentiable.
    point = parameters(threat, x.float(), seed=5, share=0.47).double()
    along = torch.randn(point.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def value(t):
        return (change.apply(x, t, sample) * weight).sum()

    theta = point.requires_grad_()
    (grad,) = torch.autograd.grad(value(theta), theta)
    step = 1e-6
    with torch.no_grad():
        numeric = (value(point + step * along) - value(point - step * along)) / (2 * step)
    assert float((grad * along).sum()) == pytest.approx(float(numeric), rel=2e-4, abs=1e-6)


@BOTH
def test_gradients_of_penalties_match_finite_differences(spec):
    threat, x = Threat.parse(spec), images(2, side=16)
    change = threat.coordinates
    if not change.penalised:
        pytest.skip("its paper has none")
    theta = parameters(threat, x).double().requires_grad_()
    along = torch.randn(theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(change.penalty(theta).sum(), theta)
    with torch.no_grad():
        up, down = change.penalty(theta + 1e-6 * along), change.penalty(theta - 1e-6 * along)
    assert float((grad * along).sum()) == pytest.approx(float((up - down).sum() / 2e-6), rel=1e-4)
    assert float(change.penalty(torch.ones_like(theta)).max()) < 0.1


@BOTH
def test_the_budget_is_the_norm_of_the_parameters(spec):
    threat, x = Threat.parse(spec), images(4, side=16)
    inside, outside = parameters(threat, x, share=1.0), parameters(threat, x, share=1.0).mul(1.001)
    assert threat.contains(x, inside).all()
    if threat.coordinates.high == math.inf:
        assert not threat.contains(x, outside).any()
        assert threat.distance(x, outside).min() > threat.eps
    broken = inside.clone()
    broken[0, 0, 0, 0] = math.nan
    assert threat.contains(x, broken).tolist() == [False, True, True, True]


@BOTH
def test_rounded_parameters_are_recorded_exactly(spec):
    threat, x = Threat.parse(spec), images(4, side=16)
    point = threat.rounded(x, parameters(threat, x))
    assert torch.equal(threat.rounded(x, point), point)
    assert torch.equal(threat.as_recorded(x, point), point)
    assert (point - parameters(threat, x)).abs().max() <= threat.grain[0] * 0.51


@BOTH
def test_rows_are_independent(spec):
    threat, x = Threat.parse(spec), images(11, side=16)
    point, ids = parameters(threat, x), torch.arange(11) * 3
    whole = threat.image(x, point, ids)
    for rows in ([4], [10, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8]):
        assert torch.equal(threat.image(x[rows], point[rows], ids[rows]), whole[rows])


@pytest.mark.parametrize("spec", [SPECS["snow"], SPECS["gabor"]])
def test_random_quantities_depend_on_the_image_alone(spec):
    threat, x = Threat.parse(spec), images(1, side=16).expand(3, -1, -1, -1)
    point = parameters(threat, x[:1]).expand(3, -1, -1, -1)
    made = threat.image(x, point, torch.tensor([7, 8, 7]))
    assert torch.equal(made[0], made[2]) and not torch.allclose(made[0], made[1], atol=1e-2)


@pytest.mark.parametrize("side", [(16, 24), (20, 20), (17, 33)])
@pytest.mark.parametrize("name", [name for name in SPECS if name != "recolor"])
def test_other_image_shapes_work(name, side):
    threat = Threat.parse(SPECS[name])
    x = torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(0))
    assert threat.image(x, parameters(threat, x), torch.arange(2)).shape == x.shape
