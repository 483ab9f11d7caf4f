import numpy as np
import pytest
import torch

from robench.core.hsic import nhsic, nhsic_shares


def by_the_formula(x, y, sigma=5.0, eps=1e-5):
    """The formula in NumPy float64, with explicit H and explicit inverses."""
    m = len(x)
    centring = np.eye(m) - np.ones((m, m)) / m
    ratios = []
    for rows in (x.reshape(m, -1), y.reshape(m, -1)):
        distances = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
        kernel = np.exp(-distances / (2 * sigma**2 * rows.shape[1])) @ centring
        ratios.append(kernel @ np.linalg.inv(kernel + eps * m * np.eye(m)))
    return np.trace(ratios[0] @ ratios[1])


@pytest.mark.parametrize("m", [2, 9, 32])
def test_nhsic_matches_the_formula(m):
    rng = np.random.default_rng(m)
    x, y = rng.normal(size=(m, 5, 3)), rng.random((m, 3, 4, 4))
    expected = by_the_formula(x, y)
    assert float(nhsic(torch.from_numpy(x), torch.from_numpy(y))) == pytest.approx(expected, rel=1e-8)
    single = nhsic(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=2e-3)


def test_nhsic_at_batch_size_128_has_the_published_magnitude():
    """On random data with m = 128 the official code gives 37 to 88."""
    torch.manual_seed(0)
    value = float(nhsic(torch.randn(128, 65, 192), torch.rand(128, 3, 32, 32)))
    assert 30 < value < 100


def test_the_gradient_matches_the_formula():
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y = torch.rand(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: nhsic(z, y), x)


def test_half_precision_does_not_overflow():
    x = torch.full((4, 224 * 224 * 3), 0.9, dtype=torch.float16)
    x[1:] -= torch.rand(3, 1).half() / 2
    assert float(x.float().square().sum(1).max()) > torch.finfo(torch.float16).max
    assert float(nhsic(x, x)) > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nhsic_is_zero_if_not_finite(bad):
    x = torch.randn(4, 3, requires_grad=True)
    value = nhsic(x * torch.tensor([1.0, 1.0, bad]), torch.rand(4, 3))
    assert float(value) == 0
    assert not value.requires_grad


def test_nhsic_needs_two_rows():
    with pytest.raises(ValueError, match=r"len\(x\)=1"):
        nhsic(torch.rand(1, 3), torch.rand(1, 3))


def test_shares_sum_to_the_nhsic_of_each_group():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 5, 4, 2)), rng.random((3, 5, 3, 2, 2))
    shares = nhsic_shares(torch.from_numpy(x), torch.from_numpy(y))
    assert shares.shape == (3, 5)
    for group in range(3):
        assert float(shares[group].sum()) == pytest.approx(by_the_formula(x[group], y[group]), rel=1e-8)


def test_a_group_that_is_not_finite_does_not_affect_the_others():
    x = torch.randn(3, 4, 6, requires_grad=True)
    y = torch.rand(3, 4, 5)
    spoilt = x * torch.tensor([1.0, torch.nan, 1.0]).view(3, 1, 1)
    shares = nhsic_shares(spoilt, y)
    assert (shares[1] == 0).all()
    (grad,) = torch.autograd.grad(shares[[0, 2]].sum(), x, retain_graph=True)
    (alone,) = torch.autograd.grad(sum(nhsic(x[i].double(), y[i].double()) for i in (0, 2)), x)
    torch.testing.assert_close(grad[[0, 2]], alone[[0, 2]], rtol=1e-5, atol=1e-7)
