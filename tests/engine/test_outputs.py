"""Warnings for outputs that are not logits and for answers that depend on the batch; none for ordinary networks."""

import pytest
import torch
from torch import nn

from robench.evaluation.attack import attack
from tests.combinations import each_once
from tests.models import Linear, images, small_net

NET = small_net()


def codes(model, x, batch_size=8):
    with torch.no_grad():
        y = model(x).float().argmax(1)
    return {
        mark.code for mark in attack("fgsm", model, x, y, threat="Linf:0.001", batch_size=batch_size).health
    }


SQUASHED = {
    "probabilities": (lambda z: z.softmax(1), "softmax-outputs"),
    "float16": (lambda z: z.softmax(1).half(), "softmax-outputs"),
    "bfloat16": (lambda z: z.softmax(1).bfloat16(), "softmax-outputs"),
    "percent": (lambda z: 100 * z.softmax(1), "softmax-outputs"),
    "votes of 37": (lambda z: 37 * (600 * z).softmax(1), "softmax-outputs"),
    "clipped log-probabilities": (lambda z: (600 * z).softmax(1).clamp_min(1e-6).log(), "softmax-outputs"),
    "shifted log-probabilities": (lambda z: ((600 * z).softmax(1) + 1e-8).log(), "softmax-outputs"),
    "sigmoid": (lambda z: torch.sigmoid(40 * z), "bounded-outputs"),
    "gentle sigmoid": (lambda z: torch.sigmoid(z), "bounded-outputs"),
    "tanh": (lambda z: torch.tanh(600 * z), "bounded-outputs"),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_outputs_that_are_not_logits_are_marked(name):
    change, code = SQUASHED[name]
    assert code in codes(lambda x: change(NET(x)), images(24))


@pytest.mark.parametrize(
    "name", ["logits", "small logits", "tiny logits", "log-probabilities", "negative logits", "cosines"]
)
def test_logits_are_not_marked(name):
    change = {
        "logits": lambda z: 30 * z,
        "small logits": lambda z: 0.01 * z,
        "tiny logits": lambda z: 1e-6 * z,
        "log-probabilities": lambda z: (5 * z).log_softmax(1),
        "negative logits": lambda z: 5 * z - 20,
        "cosines": lambda z: nn.functional.normalize(z),
    }[name]
    assert not codes(lambda x: change(NET(x)), images(24)) & {"softmax-outputs", "bounded-outputs"}


def by_batch_statistics():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)
    ).eval()


DEPENDENT = {
    "batch statistics": by_batch_statistics(),
    "centred by the batch": lambda x: NET(x - x.mean(0, keepdim=True)),
    "a scale of the batch": lambda x: NET((x * 20 / x.amax()).round() / 20),
    "the first image's": lambda x: NET(x) - NET(x[:1]),
    "weakly": lambda x: NET(x) * (1 + x.std(0).mean()),
}


@pytest.mark.parametrize(("name", "batch_size"), each_once(DEPENDENT, [2, 24]))
def test_answers_that_depend_on_the_batch_are_marked(name, batch_size):
    assert "batch-dependent" in codes(DEPENDENT[name], images(24), batch_size)


def test_batch_statistics_are_marked_when_images_are_attacked_one_by_one():
    assert "batch-dependent" in codes(by_batch_statistics(), images(6), 1)


ORDINARY = {
    "convolutions": NET,
    "a linear network": Linear(10, (3, 8, 8)),
    "running statistics": nn.Sequential(nn.BatchNorm2d(3), NET).eval(),
    "bfloat16 inside": lambda x: (NET(x).bfloat16() * 3).float(),
    "float64 inside": lambda x: NET(x).double(),
    "huge logits": lambda x: 1e6 * NET(x),
    "random": lambda x: NET(x + 0.1 * torch.randn_like(x)),
    "one image at a time": lambda x: torch.cat([NET(each[None]) for each in x]),
}


@pytest.mark.parametrize(("name", "batch_size"), each_once(ORDINARY, [1, 7, 64]))
def test_ordinary_networks_do_not_depend_on_the_batch(name, batch_size):
    assert "batch-dependent" not in codes(ORDINARY[name], images(24), batch_size)


def test_a_batch_of_one_for_a_network_that_takes_no_other():
    def one(x):
        assert len(x) == 1
        return NET(x)

    with torch.no_grad():
        y = NET(images(2)).argmax(1)
    assert attack("fgsm", one, images(2), y, threat="Linf:0.001", batch_size=1).health == []
