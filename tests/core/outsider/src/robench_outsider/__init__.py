"""A defense, an attack and a data set of somebody else's."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from robench.attacks import Answer, Ask, Attack, State
from robench.data import Images
from robench.defenses import Defense


class Brightness(nn.Module):
    """Two classes: darker and brighter than the threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        excess = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([-excess, excess], 1)


def shifted(threshold=0.5):
    """A classifier that tells bright images from dark ones."""
    return Defense(Brightness(threshold), num_classes=2, image_size=8)


@dataclass(frozen=True)
class NoiseState(State):
    x: torch.Tensor
    step: torch.Tensor


@dataclass(frozen=True)
class Noise(Attack[NoiseState]):
    """Random points of the ball: the weakest attack there is."""

    steps: int = 10

    def init(self, problem, rows):
        return NoiseState(rows.x, torch.zeros_like(rows.sample))

    def ask(self, problem, rows, state):
        noise = problem.stream.uniform(rows.sample, rows.rank, state.step, tuple(rows.x.shape[1:]))
        return Ask((rows.x + problem.threat.clip(2 * noise - 1)).clamp(0, 1))

    def tell(self, problem, rows, state, answer: Answer):
        return replace(state, step=state.step + 1)

    def finished(self, state):
        return state.step >= self.steps

    def best(self, state):
        return state.x


def two_tones(split="test", data_dir=None):
    """Flat grey images, dark and bright in turn."""
    ids = torch.arange(20)
    tone = torch.where(ids % 2 == 0, 0.3, 0.7)
    return Images(
        "two-tones", split, tone.view(-1, 1, 1, 1).repeat(1, 3, 8, 8), ids % 2, ids, ("dark", "bright")
    )
