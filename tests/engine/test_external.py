"""Attacks of other libraries: seeded, kept inside the ball whatever they do to their images, refused in one line."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robench.attacks._external import ForeignAttack
from robench.core import registry
from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from tests.models import images, small_net

NET, X = small_net(), images(12)
Y = NET(X).argmax(1)


@dataclass(frozen=True)
class Library(ForeignAttack):
    """An attack of somebody else's, in one of several manners."""

    manner: str = "random"

    def perturb(self, model, x, y, threat, seed, batch_size):
        noise = torch.rand_like(x) + np.random.rand() + random.random() - 1.5  # noqa: NPY002
        moved = (x + threat.eps * noise.sign()).clamp(0, 1)
        return {
            "random": lambda: moved,
            "in place": lambda: x.copy_((x - 0.4).clamp(0, 1)),
            "double": lambda: moved.double(),
            "shape": lambda: moved[:-1],
            "array": lambda: moved.numpy(),
        }[self.manner]()


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setitem(registry.attacks._builders, "library", Library)


def play(manner, seed=0):
    return attack(f'library(manner="{manner}")', NET, X, Y, threat="Linf:0.05", seed=seed, batch_size=4)


def test_the_same_seed_gives_the_same_images_and_the_callers_generators_are_left_alone():
    one = play("random")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = play("random")
    assert torch.equal(one.x_adv, again.x_adv) and bool((~one.robust).any())
    assert not torch.equal(one.x_adv, play("random", seed=1).x_adv)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_images_changed_in_place_are_compared_with_the_clean_ones():
    result = play("in place")
    assert (NET((X - 0.4).clamp(0, 1)).argmax(1) != Y).any()
    assert bool(result.robust.all())


def test_doubles_are_judged_as_float32():
    assert torch.equal(play("double").x_adv, play("random").x_adv)


@pytest.mark.parametrize(
    ("manner", "said"), [("shape", r"returned \(11, 3, 8, 8\)"), ("array", "returned ndarray")]
)
def test_what_is_not_images_is_refused_in_one_line(manner, said):
    with pytest.raises(UsageError, match=f"Library {said}: expected images"):
        play(manner)
