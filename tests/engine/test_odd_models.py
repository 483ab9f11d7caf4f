"""Odd models under an attack of every family: attacked like ordinary ones, or refused in one line."""

import threading
import warnings
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from tests.combinations import each_once
from tests.models import images, small_net

NET = small_net()
X = images(6)
with torch.no_grad():
    Y = NET(X).argmax(1)
    SHIFTED = NET(X - 0.1).argmax(1)
# One attack a family: signed steps, adaptive steps, least distance, random search, estimated gradients, parameters.
ATTACKS = {
    "fgsm": "Linf:0.004",
    "apgd(steps=3)": "Linf:0.004",
    "apgd-l1(steps=4)": "L1:0.6",
    "fab(steps=2)": "L2:0.05",
    "ddn(steps=3)": "L2:0.05",
    "square(queries=12)": "Linf:0.006",
    "spsa(steps=1, samples=4)": "Linf:0.006",
    "sparse-rs(queries=9)": "L0:4",
    "pgd(steps=2)": "fog:0.1",
}


def same(one, other):
    return torch.equal(one.x_adv, other.x_adv) and one.fooled_by == other.fooled_by


@cache
def plain(spec):
    """The outcome on the ordinary model."""
    return attack(spec, NET, X, Y, threat=ATTACKS[spec], batch_size=4)


def subtracting(x):
    return NET(x.sub_(0.1))


buffer = torch.zeros(64, 10)


def buffered(x):
    """The same memory for every answer, as a captured graph gives."""
    out = buffer[: len(x)]
    if torch.is_grad_enabled() and x.requires_grad:
        return NET(x)
    return out.copy_(NET(x))


class PurifierTraining(nn.Module):
    """One step along a gradient of its own before it classifies."""

    def __init__(self, enables):
        super().__init__()
        self.net, self.enables = NET, enables

    def forward(self, x):
        with torch.set_grad_enabled(self.enables or torch.is_grad_enabled()):
            z = x.detach().clone().requires_grad_()
            (grad,) = torch.autograd.grad(self.net(z).logsumexp(1).sum(), z)
        return self.net(x + 0 * grad)


ALIKE = {
    "in place": (subtracting, lambda x: NET(x - 0.1), SHIFTED),
    "one buffer for all answers": (buffered, NET, Y),
    "a gradient inside": (PurifierTraining(True), NET, Y),
    "a gradient inside, not enabled": (PurifierTraining(False), NET, Y),
}


@pytest.mark.parametrize(("name", "spec"), each_once(ALIKE, ATTACKS))
def test_odd_models_are_attacked_like_ordinary_ones(name, spec):
    odd, ordinary, y = ALIKE[name]
    x = X.clone()
    expected = (
        plain(spec) if ordinary is NET else attack(spec, ordinary, X, y, threat=ATTACKS[spec], batch_size=4)
    )
    result = attack(spec, odd, x, y, threat=ATTACKS[spec], batch_size=4)
    assert torch.equal(x, X)
    assert same(result, expected)
    assert [mark.code for mark in result.health] == [mark.code for mark in expected.health]


def test_a_program_of_torch_export_is_attacked_like_its_network():
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(NET.eval(), (X,), dynamic_shapes=({0: batch},)).module()
    for model in (program, nn.Sequential(nn.Identity(), program)):
        result = attack("apgd(steps=3)", model, X, Y, threat="Linf:0.004", batch_size=4)
        assert same(result, plain("apgd(steps=3)"))


def in_thread(run):
    def target():
        torch.set_grad_enabled(False)
        results.append(run())

    results = []
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return results[0]


def under(context):
    def run(function):
        with context():
            return function()

    return run


def with_setting(change, value, back):
    def run(function):
        change(value)
        try:
            return function()
        finally:
            change(back)

    return run


STATES = {
    "inference_mode": under(torch.inference_mode),
    "no_grad": under(torch.no_grad),
    "autocast": under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "default dtype": with_setting(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": with_setting(torch.set_default_device, "meta", None),
    "a device context": under(lambda: torch.device("meta")),
    "matmul precision": with_setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": with_setting(torch.use_deterministic_algorithms, True, False),
    "anomaly": under(lambda: torch.autograd.set_detect_anomaly(True)),
    "a thread without gradients": in_thread,
}


@pytest.mark.parametrize(("name", "spec"), each_once(STATES, ATTACKS))
def test_the_state_of_torch_changes_no_attack_and_is_restored(name, spec):
    calls = set()

    def model(x):
        logits = NET(x)
        calls.add((logits.dtype, torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        return logits

    def state():
        kinds = torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()
        return *kinds, *modes, torch.is_autocast_enabled("cpu")

    def run():
        before = state()
        outcome = attack(spec, model, X, Y, threat=ATTACKS[spec], batch_size=4)
        assert state() == before
        return outcome

    expected = plain(spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection")
        result = STATES[name](run)
    assert same(result, expected) and not result.x_adv.is_inference()
    assert result.health == expected.health
    assert calls == {(torch.float32, False, False)}


def linear(size=192):
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 10))


def fixed_batch(x):
    assert len(x) == 5, "the batch must be 5"
    return NET(x)


def born_in_inference_mode():
    with torch.inference_mode():
        return linear()


def frozen_script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.script(linear(64).eval()))


def raising(x):
    raise ValueError("first line\nsecond line" + "x" * 1000)


NONE = linear(64)
REFUSED = {
    "double": (lambda: linear().double(), "model.float()"),
    "half": (lambda: linear().half(), "model.float()"),
    "bfloat16": (lambda: linear().bfloat16(), "x.to(torch.bfloat16)"),
    "another number of channels": (lambda: linear(64), "(8, 3, 8, 8)"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "call the model once"),
    "meta": (lambda: linear().to("meta"), "meta device"),
    "a fixed batch": (lambda: fixed_batch, "batch_size"),
    "born in inference mode": (born_in_inference_mode, "outside"),
    "frozen": (frozen_script, "shapes"),
    "raising": (lambda: raising, "ValueError"),
    "a tuple": (lambda: lambda x: (x, NET(x)), "[1]"),
    "a dict": (lambda: lambda x: {"logits": NET(x)}, "['logits']"),
    "an object": (lambda: lambda x: SimpleNamespace(logits=NET(x)), ".logits"),
    "nothing": (lambda: lambda x: None, "return a torch tensor"),
    "one logit": (lambda: lambda x: NET(x)[:, :1], "two classes"),
    "one number": (lambda: lambda x: NET(x)[:, 0], "two classes"),
    "classes": (lambda: lambda x: NET(x).argmax(1), "classes have no gradients, so return the logits"),
    "maps": (lambda: lambda x: x, "(8, 3, 8, 8)"),
    "sparse": (lambda: lambda x: NET(x).to_sparse(), "to_dense"),
    "on meta": (lambda: lambda x: NET(x).to("meta"), "meta device"),
    "complex": (lambda: lambda x: NET(x) + 0j, "real numbers"),
}


@pytest.mark.parametrize(("name", "spec"), each_once(REFUSED, ["fgsm", "square(queries=2)"]))
def test_models_that_cannot_be_called_are_refused_in_one_line(name, spec):
    build, mend = REFUSED[name]
    with pytest.raises(UsageError) as error:
        attack(spec, build(), X, Y, threat="Linf:0.01")
    assert mend in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700


def test_a_gradient_that_fails_is_refused_in_one_line():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            raise NotImplementedError("no backward pass here")

    with pytest.raises(UsageError, match=r"gradient raised NotImplementedError.*no backward pass"):
        attack("fgsm", lambda x: NET(Broken.apply(x)), X, Y, threat="Linf:0.01")
    assert (
        len(attack("square(queries=2)", lambda x: NET(Broken.apply(x)), X, Y, threat="Linf:0.01").robust) == 6
    )
