"""Costs of attacks on an image that is never fooled, counted by running them on a dummy network."""

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

# Small enough to be fast, large enough for the windows and resizing of every attack.
_SHAPE = (3, 8, 8)
_SLOPE = 1e-6


class NeverFooled(nn.Module):
    """A classifier that predicts class 0 for every image in [0, 1] and has nonzero gradients.

    The logits are 1 for class 0 and 0 for the others, plus 1e-6 times a linear function of the image.
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
    """Constant "random" numbers, which are fast; the counts do not depend on them."""

    def bits(self, sample: Tensor, rank: Tensor, step: Tensor | int, count: int) -> Tensor:
        return sample.new_full((len(sample), count), 1 << 30)

    def uniform(self, sample: Tensor, rank: Tensor, step: Tensor | int, shape: tuple[int, ...]) -> Tensor:
        return torch.full((len(sample), *shape), 0.25, device=sample.device)

    normal = uniform


@dataclass(frozen=True)
class Passes:
    """The forward and backward passes of one attack on one image, with its canonical spec."""

    spec: str
    forward: int
    backward: int


@cache
def passes(attacks: tuple[str, ...], threat: Threat, classes: int) -> tuple[Passes, ...]:
    """Count the passes of each attack on an image that no attack fools; attacks of other libraries are left out.

    Args:
        attacks: specs.

    Raises:
        UsageError: if an attack is unknown, has an invalid argument, or does not support the threat's norm.
    """
    return tuple(
        Passes(spec, *_count(attack, threat, classes))
        for spec, attack in build_attacks(list(attacks), threat)
        if not isinstance(attack, ForeignAttack)
    )


def _count(attack: Attack, threat: Threat, classes: int) -> tuple[int, int]:
    """Count the forward and backward passes of all rows of one image, which run in parallel."""
    ranks, group = attack.ranks(classes), min(attack.group, 2)
    model = NeverFooled(classes)
    generator = torch.Generator().manual_seed(0)
    # Images labeled with each other class, for attacks that need reference images; they are not attacked.
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
