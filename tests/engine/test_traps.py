"""The reference's traps, each reproduced there and none of them here."""

import sys

import pytest
import torch
from torch import nn

from robench.core.errors import ResourceError
from robench.evaluation.attack import attack
from tests.combinations import each_once
from tests.engine.caught import Shattered
from tests.models import Linear, images, small_net


def codes(result):
    return [mark.code for mark in result.health]


class Wrapped(nn.Module):
    """A model with something done to its logits."""

    def __init__(self, change, classes=10):
        super().__init__()
        self.model, self.change = small_net(classes), change

    def forward(self, x):
        return self.change(self.model(x))


def test_nan_logits_never_count_as_robust():
    # The argmax of NaN is class 0: images of that class would all survive.
    model = Wrapped(lambda logits: logits * float("nan"))
    result = attack("pgd(steps=2)", model, images(6), torch.zeros(6).long(), threat="Linf:0.1")
    assert not result.robust.any() and set(result.fooled_by) == {"clean"}
    assert (result.clean_prediction == -1).all()
    assert "nonfinite-logits" in codes(result)


def test_nan_on_hard_inputs_is_a_wrong_answer_and_is_marked():
    model, x = small_net(), images(8)
    y = model(x).argmax(1)

    def fragile(point):
        logits = model(point)
        return torch.where((point - x[: len(point)] != 0).flatten(1).any(1)[:, None], torch.nan, logits)

    result = attack("apgd(steps=3)", fragile, x, y, threat="Linf:0.001", batch_size=8)
    assert not result.robust.any() and result.clean_accuracy == 1
    assert "nonfinite-logits" in codes(result)


@pytest.mark.parametrize(
    ("spec", "norm"),
    [
        ("pgd(steps=40)", "Linf"),
        ("mifgsm(steps=40)", "Linf"),
        ("apgd", "L2"),
        ("pgd(steps=40)", "L2"),
        ("ddn", "L2"),
        ("fmn", "L2"),
        ("cw(steps=20)", "L2"),
        ("fab", "L2"),
        ("apgd-l1", "L1"),
        ("fmn", "L1"),
    ],
)
def test_a_gradient_with_nan_leaves_the_other_pixels_to_be_attacked(spec, norm):
    model, x = Linear(3, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    # Without the left column, whose gradient is NaN, it is the same linear model with no weights there.
    rest = Linear(3, (3, 8, 8))
    with torch.no_grad():
        rest.weight.view(3, 3, 8, 8)[..., 0] = 0
    eps = float(1.5 * rest.distances(x, y, norm).max())
    result = attack(spec, lambda x: model(Shattered.apply(x)), x, y, threat=f"{norm}:{eps}")
    assert not result.robust.any() and "nonfinite-gradients" in codes(result)
    assert "nonfinite-logits" not in codes(result)


@pytest.mark.parametrize(("classes", "norm"), each_once([2, 3, 4], ["Linf", "L2", "L1"]))
def test_few_classes_run_through_and_say_so(classes, norm):
    model, x = Linear(classes, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    suite = (
        "apgd-l1(steps=5)+apgd-l1(steps=5, loss='dlr', targets=9)"
        if norm == "L1"
        else "apgd(steps=5)+apgd(steps=5, loss='dlr', targets=9)"
    )
    result = attack(suite + "+fab(steps=5, targets=9)+square(queries=5)", model, x, y, threat=f"{norm}:0.001")
    assert result.robust.all()
    assert ("few-classes" in codes(result)) == (classes < 4)


def test_a_gradient_that_is_not_contiguous_is_taken():
    net = small_net()
    result = attack(
        "apgd(steps=3, loss='dlr')+fab(steps=3)",
        lambda x: net(x.transpose(2, 3).flip(3).transpose(2, 3)),
        images(4),
        torch.zeros(4).long(),
        threat="L2:0.01",
    )
    assert len(result.robust) == 4


class Noisy(nn.Module):
    """Logits that sway by chance: some draws are right and some are not."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        margin = 1 + self.size * torch.randn(len(x))
        return torch.stack([margin, -margin, -margin - 1, -margin - 2], 1)


def test_a_randomised_defense_is_not_judged_by_one_draw():
    x, y = images(40), torch.zeros(40).long()
    # One draw in six is wrong: a single noisy look would count one image in six as lost for no attack at all.
    result = attack("pgd(steps=1)", Noisy(1.0), x, y, threat="Linf:0.0001", seed=3)
    assert {"undeclared-randomness", "deterministic-attack"} <= set(codes(result))
    again = attack("pgd(steps=1)", Noisy(1.0), x, y, threat="Linf:0.0001", seed=3)
    assert torch.equal(result.robust, again.robust) and result.fooled_by == again.fooled_by
    assert "clean" not in attack("pgd(steps=1)", Noisy(0.3), x, y, threat="Linf:0.0001").fooled_by


def test_the_result_does_not_depend_on_the_clock_or_the_global_generator():
    model, x = small_net(), images(8)
    y = model(x).argmax(1)
    torch.manual_seed(1)
    one = attack("apgd(steps=5)+square(queries=20)", model, x, y, threat="Linf:0.004")
    torch.manual_seed(2)
    two = attack("apgd(steps=5)+square(queries=20)", model, x, y, threat="Linf:0.004")
    assert torch.equal(one.x_adv, two.x_adv) and one.fooled_by == two.fooled_by


def test_tracing_is_left_alone():
    calls = []

    def trace(frame, event, argument):
        calls.append(event)
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        attack("pgd(steps=1)", small_net(), images(2), torch.zeros(2).long(), threat="Linf:0.001")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


def test_checks_are_data_in_the_result():
    x = images(8)
    probabilities = Wrapped(lambda logits: logits.softmax(1))
    y = probabilities(x).argmax(1)
    assert "softmax-outputs" in codes(attack("pgd(steps=2)", probabilities, x, y, threat="Linf:0.001"))
    flat = Wrapped(lambda logits: logits.detach().round())
    y = flat(x).argmax(1)
    assert "zero-gradients" in codes(attack("apgd(steps=2)", flat, x, y, threat="Linf:0.001"))
    honest = small_net()
    y = honest(x).argmax(1)
    assert codes(attack("apgd(steps=2)+square(queries=5)", honest, x, y, threat="Linf:0.001")) == []


@pytest.mark.parametrize(
    ("spec", "threat"),
    [
        ("apgd(steps=5)+square(queries=300)", "Linf:0.01"),
        pytest.param("apgd(steps=5)+nes(steps=10, samples=20)", "Linf:0.01", marks=pytest.mark.slow),
        pytest.param(
            "apgd(steps=5)+spsa(steps=10, samples=20, step_size=0.002)", "Linf:0.01", marks=pytest.mark.slow
        ),
        pytest.param("apgd(steps=5)+hopskipjump(queries=500)", "L2:0.2", marks=pytest.mark.slow),
        ("sigma-zero(steps=10)+sparse-rs(queries=300)", "L0:12"),
    ],
)
def test_an_attack_without_gradients_that_beats_the_gradient_is_marked(spec, threat):
    # The gradient leads away from the boundary; random search does not ask for it.
    model = Wrapped(lambda logits: 2 * logits.detach() - logits)
    x = images(16)
    y = model(x).argmax(1)
    code = f"{spec.split('+')[1].split('(')[0]}-beats-white-box"
    assert code in codes(attack(spec, model, x, y, threat=threat))


def test_weights_and_modes_are_put_back_as_they_were():
    model = nn.Sequential(small_net(), nn.Dropout(0.5)).train()
    model[0][0].weight.requires_grad_(False)
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    attack("pgd(steps=2)", model, images(4), torch.zeros(4).long(), threat="Linf:0.001")
    assert model.training and model[1].training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learning
    assert all(p.grad is None for p in model.parameters())


NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: out of memory"),
    MemoryError("Unable to allocate 3 GiB for an array"),
)


class Greedy(nn.Module):
    """A model that runs out of memory on more than a few images."""

    def __init__(self, most, error=NO_MEMORY[0]):
        super().__init__()
        self.model, self.most, self.error = small_net(), most, error

    def forward(self, x):
        if len(x) > self.most:
            raise self.error
        return self.model(x)


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_out_of_memory_backs_off_and_loses_nothing(error):
    model, x = Greedy(3, error), images(12)
    y = model.model(x).argmax(1)
    result = attack("apgd(steps=4)", model, x, y, threat="Linf:0.004", batch_size=16)
    assert result.batch_size == 2
    whole = attack("apgd(steps=4)", model.model, x, y, threat="Linf:0.004", batch_size=2)
    assert torch.equal(result.robust, whole.robust)
    with pytest.raises(ResourceError, match="ran out of memory"):
        attack("apgd(steps=4)", Greedy(0), x, y, threat="Linf:0.004")
