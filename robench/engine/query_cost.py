"""What an attack costs on an image that is never fooled: counted by playing it, on a dummy in place of a network."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from robench.attacks._base import Attack, Problem
from robench.attacks._external import ForeignAttack
from robench.attacks.build import build_attacks
from robench.core.rng import Stream
from robench.engine.attack_context import AttackContext, SampleResults, Samples
from robench.engine.attack_loop import Loop
from robench.engine.batched_model import Judge, Network
from robench.threats.threat import Threat

# Small enough to cost nothing, large enough for every attack's windows and resizings.
_SHAPE = (3, 8, 8)
_SLOPE = 1e-6


class NeverFooled(nn.Module):
    """A classifier so sure of class 0 that no image in [0, 1] fools it, with a gradient all the same.

    Logits are 1 for class 0 and 0 for the others, and a millionth of a linear function of the image each.
    """

    def __init__(self, classes: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, _SHAPE[0] * _SHAPE[1] * _SHAPE[2], generator=generator)
        self.weight = nn.Parameter(_SLOPE * weight, requires_grad=False)
        self.bias = nn.Parameter((torch.arange(classes) == 0).float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def logits_and_features(self, x: Tensor, layers: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self(x), (x.flatten(1),)


class Still(Stream):
    """Random numbers that are all the same: counts do not depend on them, and they cost nothing."""

    def bits(self, sample: Tensor, rank: Tensor, step: Tensor | int, count: int) -> Tensor:
        return sample.new_full((len(sample), count), 1 << 30)

    def uniform(self, sample: Tensor, rank: Tensor, step: Tensor | int, shape: tuple[int, ...]) -> Tensor:
        return torch.full((len(sample), *shape), 0.25, device=sample.device)

    normal = uniform


@dataclass(frozen=True)
class Passes:
    """Of one attack on one image: its canonical spec, and forward and backward passes."""

    spec: str
    forward: int
    backward: int


@cache
def passes(attacks: tuple[str, ...], threat: Threat, classes: int) -> tuple[Passes, ...]:
    """What each attack costs on an image that no attack fools; other libraries' attacks are left out.

    Args:
        attacks: specs.

    Raises:
        UsageError: for an unknown attack, a wrong argument, or one not defined in the threat's norm.
    """
    return tuple(
        Passes(spec, *_played(attack, threat, classes))
        for spec, attack in build_attacks(list(attacks), threat)
        if not isinstance(attack, ForeignAttack)
    )


def _played(attack: Attack, threat: Threat, classes: int) -> tuple[int, int]:
    """Forward and backward passes of all the rows of one image, side by side."""
    ranks, group = attack.ranks(classes), min(attack.group, 2)
    model = NeverFooled(classes)
    generator = torch.Generator().manual_seed(0)
    # An image of each other class as well, said to be one, for attacks that look at some; they are not attacked.
    y = torch.cat([torch.zeros(group, dtype=torch.int64), torch.arange(1, classes)])
    x = torch.rand(len(y), *_SHAPE, generator=generator)
    ids = torch.arange(len(y))
    batch_size = -(-max(ranks, attack.horizon) // group) * group
    network = Network(model, batch_size)
    context = AttackContext(
        attack=attack,
        problem=Problem(threat, classes, Still((0, 0)), group),
        network=network,
        judge=Judge(network),
        surrogate_is_judge=True,
        no_verdict_feedback=False,
        samples=Samples(x, y, ids),
        clean_logits=torch.where(y[:, None] > 0, torch.eye(classes)[y], network.logits(x, ids)),
        device=torch.device("cpu"),
    )
    results = SampleResults.empty(len(y), ranks)
    Loop(context, list(range(group)), results).play(lambda loop: None)
    return int(results.forward[0].sum()), int(results.backward[0].sum())
