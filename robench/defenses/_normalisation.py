"""Find the normalization constants inside a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Names that normalizing modules give to their two constants, and how many numbers they hold: one per channel.
_NAMES = (("mean", "std"), ("mu", "sigma"), ("mean", "sigma"), ("mu", "std"))
_CHANNELS = (1, 3)

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Normalisation:
    """The mean and std of a module, as float32 numbers.

    Attributes:
        names: of the two constants, prefixed with the module's name.
    """

    names: tuple[str, str]
    mean: Numbers
    std: Numbers


def own_normalisations(network: nn.Module) -> list[Normalisation]:
    """Every pair of constants in `network` that looks like a mean and std, in the order of its modules.

    The constants may be buffers, parameters, or plain attributes as in `torchvision.transforms.Normalize`.
    """
    pairs = []
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        values: Mapping[str, Any] = {**vars(module), **module._buffers, **module._parameters}
        for mean, std in _NAMES:
            pair = _numbers(values.get(mean)), _numbers(values.get(std))
            if pair[0] and pair[1]:
                pairs.append(Normalisation((prefix + mean, prefix + std), pair[0], pair[1]))
                break
    return pairs


def _numbers(values: Any) -> Numbers:
    """The numbers of a tensor or sequence with one number per channel; empty for anything else."""
    if isinstance(values, Tensor):
        usable = values.dim() and values.is_floating_point() and not values.is_meta
        return (
            tuple(values.detach().float().flatten().tolist())
            if usable and values.numel() in _CHANNELS
            else ()
        )
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in _CHANNELS:
        return ()
    numbers = all(isinstance(value, int | float) for value in values)
    return tuple(torch.tensor(values, dtype=torch.float32).tolist()) if numbers else ()
