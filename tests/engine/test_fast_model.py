"""Compiled networks and channels last: verdicts stay those of the network as it is."""

import functools

import pytest
import torch
from torch import nn

from robench.engine.batched_model import Network
from robench.engine.fast_model import FastModel, has_convolutions
from robench.evaluation.attack import attack
from tests.models import images, small_net

X = images(16)
Y = small_net()(X).argmax(1)


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its compiler, which takes a minute."""
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_search_gives_the_same_verdicts(traced):
    for spec in ("apgd(steps=3)", "fab(steps=2)", "square(queries=6)"):
        plain = attack(spec, small_net(), X, Y, threat="Linf:0.01", batch_size=8)
        compiled = attack(spec, small_net(), X, Y, threat="Linf:0.01", batch_size=8, compile=True)
        assert torch.equal(plain.robust, compiled.robust)
        assert compiled.search["compiled"] and compiled.search["repeats"] == "bits"


@pytest.mark.slow
def test_halved_batches_are_compiled_too(traced):
    model = FastModel(small_net(), compiles=True)
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12):
        assert model(images(size)).shape == (size, 10)
        assert not model.failure


def test_without_a_compiler_the_network_is_called_as_it_is(monkeypatch):
    def broken(model, **options):
        def fails(x):
            raise RuntimeError("no compiler\nand a long story")

        return fails

    monkeypatch.setattr("torch.compile", broken)
    model = FastModel(small_net(), compiles=True)
    assert torch.equal(model(X), small_net()(X))
    assert model.failure == "RuntimeError: no compiler"


class Conv(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.flatten = nn.Conv2d(3, 4, 3), nn.Linear(144, 10), flatten

    def forward(self, x):
        return self.head(self.flatten(self.conv(x).relu()))


@pytest.mark.parametrize("flatten", [nn.Flatten(), lambda x: x.view(len(x), -1)], ids=["any", "contiguous"])
def test_channels_last_changes_only_the_rounding(flatten):
    plain, ids = Conv(flatten).eval(), torch.arange(len(X))
    fast = FastModel(plain, channels_last=True)
    expected = Network(plain, 8).logits(X, ids)
    assert torch.allclose(Network(fast, 8).logits(X, ids), expected, atol=1e-5)
    # A network that needs images in the usual order gets them.
    assert bool(fast.failure) == (not isinstance(flatten, nn.Module))


def test_only_networks_with_convolutions_have_channels_last():
    patches = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(32, 10))
    assert has_convolutions(Conv(nn.Flatten())) and not has_convolutions(patches)
    assert not has_convolutions(lambda x: x)


def test_other_attributes_are_the_networks():
    model = small_net()
    model.features = lambda x: x.flatten(1)
    fast = FastModel(model, compiles=True)
    assert fast.features(X).shape == (16, 192) and not hasattr(fast, "logits_and_features")
    assert list(fast.parameters()) == []


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_verdicts():
    torch._dynamo.reset()
    plain = attack("apgd(steps=6)", small_net(), X, Y, threat="Linf:0.01", batch_size=8)
    compiled = attack("apgd(steps=6)", small_net(), X, Y, threat="Linf:0.01", batch_size=8, compile=True)
    assert torch.equal(plain.robust, compiled.robust) and compiled.search["compiled"]
