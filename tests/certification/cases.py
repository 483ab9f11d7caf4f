"""Defenses whose smoothed classifier has a closed form, and images that they classify correctly."""

import numpy as np
import torch
from torch import Tensor, nn

from robench.certification._base import Case
from robench.data import Images
from robench.defenses import Defense, Loaded
from robench.defenses.smoothed import Smoothed
from robench.engine.setup import Setup
from robench.threats.threat import Threat
from tests.models import Linear, images

SIDE = 8


def linear() -> Linear:
    """Two classes, divided by a plane: the majority vote under Gaussian noise has the same plane."""
    return Linear(2, (3, SIDE, SIDE))


def relus() -> nn.Sequential:
    """The linear classifier behind a layer of ReLUs that passes every image on."""
    model = linear()
    weight = next(p for p in model.state_dict().values() if p.numel() == 2 * 3 * SIDE * SIDE).reshape(2, -1)
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(weight.shape[1], 2))
    with torch.no_grad():
        network[2].weight.copy_(weight)
        network[2].bias.copy_(model(torch.zeros(1, 3, SIDE, SIDE))[0])
    return network


class Sometimes(nn.Module):
    """NaN logits for about half of the noisy images."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1)
        logits[x.flatten(1).mean(1) > 0.5] = torch.nan
        return logits


def labelled(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    x = images(n, SIDE)
    with torch.no_grad():
        return x, model(x).nan_to_num(-1).argmax(1)


def case(
    n: int = 12, sigma: float = 0.25, seed: int = 0, batch_size: int = 64, model: nn.Module | None = None
) -> Case:
    model = model or linear()
    x, y = labelled(model, n)
    defense = Defense(model, num_classes=2, image_size=SIDE, purifier=Smoothed(sigma), stochastic=True).eval()
    loaded = Loaded("smoothed+linear", defense, None, "", None, "")
    own = Images("own", "test", x, y, torch.arange(n), ("0", "1"))
    setup = Setup(defense, seed, torch.device("cpu"), batch_size, stochastic=True)
    return Case(loaded, own, setup, Threat.parse("L2:0.1"))


def write_images(path, n: int = 12) -> None:
    x, y = labelled(linear(), n)
    np.savez(path, x=x.numpy(), y=y.numpy())
