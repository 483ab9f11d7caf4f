"""The normalisation that a network carries inside itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What modules that normalise call their two constants, and how many numbers they hold: one a channel.
_NAMES = (("mean", "std"), ("mu", "sigma"), ("mean", "sigma"), ("mu", "std"))
_CHANNELS = (1, 3)

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Normalisation:
    """A pair of constants of a module, as float32 numbers.

    Attributes:
        names: of the two, with the module's own name before them.
    """

    names: tuple[str, str]
    mean: Numbers
    std: Numbers


def own_normalisations(network: nn.Module) -> list[Normalisation]:
    """Every pair of constants in `network` that seems to be subtracted and divided, in the order of its modules.

    They may be buffers, parameters, or plain attributes as in `torchvision.transforms.Normalize`.
    """
    pairs = []
    for place, module in network.named_modules():
        prefix = f"{place}." if place else ""
        held: Mapping[str, Any] = {**vars(module), **module._buffers, **module._parameters}
        for mean, std in _NAMES:
            values = _numbers(held.get(mean)), _numbers(held.get(std))
            if values[0] and values[1]:
                pairs.append(Normalisation((prefix + mean, prefix + std), values[0], values[1]))
                break
    return pairs


def _numbers(values: Any) -> Numbers:
    """The numbers of a tensor or sequence that holds one a channel; none for anything else."""
    if isinstance(values, Tensor):
        if (
            values.dim() == 0
            or values.numel() not in _CHANNELS
            or not values.is_floating_point()
            or values.is_meta
        ):
            return ()
        return tuple(values.detach().float().flatten().tolist())
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in _CHANNELS:
        return ()
    if not all(isinstance(value, int | float) for value in values):
        return ()
    return tuple(torch.tensor(values, dtype=torch.float32).tolist())
