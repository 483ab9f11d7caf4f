"""Who is asked in a run: which networks draw noise, of which stream, and when the surrogate is the judge."""

import pytest
import torch

from robench.engine.knowledge import Attacker
from robench.engine.setup import Setup
from tests.models import images, small_net

CPU = torch.device("cpu")


def parties(stochastic=False, surrogate=None, precision="fp32"):
    setup = Setup(small_net(), 3, CPU, 8, Attacker(surrogate=surrogate), stochastic, precision)
    return setup.parties()


@pytest.mark.parametrize(
    ("options", "is_judge", "draws_noise"),
    [
        ({}, True, False),
        ({"precision": "bf16"}, False, False),
        ({"stochastic": True}, False, True),
        ({"surrogate": small_net(seed=1)}, False, True),
    ],
)
def test_the_surrogate_is_the_judge_only_where_both_give_the_same_logits(options, is_judge, draws_noise):
    asked = parties(**options)
    assert asked.surrogate_is_judge == is_judge
    assert (asked.surrogate.stream is not None) == draws_noise


def test_every_attack_draws_noise_of_its_own_and_the_judges_stay():
    asked = parties(stochastic=True)
    first, second = (asked.for_attack(spec, 1) for spec in ("pgd()", "apgd()"))
    zero = torch.zeros(1, dtype=torch.int64)
    streams = [party.surrogate.stream for party in (first, second, asked)]
    words = [stream.bits(zero, zero, zero, 2).tolist() for stream in streams if stream is not None]
    assert words[0] != words[1] != words[2] != words[0]
    assert first.judges is second.judges is asked.judges


def test_a_batch_of_whole_groups_separates_surrogate_and_judge():
    asked = parties()
    assert asked.for_attack("pgd()", 4) is asked
    grouped = asked.for_attack("pgd-mi()", 3)
    assert grouped.surrogate.batch_size == 6
    assert not grouped.surrogate_is_judge


def test_a_model_that_draws_is_noticed():
    class Draws(torch.nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 10)

    x, ids = images(8), torch.arange(8)
    assert Setup(Draws(), 0, CPU, 8).checked(x, ids).stochastic
    assert not Setup(small_net(), 0, CPU, 8).checked(x, ids).stochastic
