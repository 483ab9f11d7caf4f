"""DDPM++: "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv 2011.13456.

Song et al. 2021, appendix H: Ho's U-Net with BigGAN's residual blocks, which also change the resolution, and every
sum of a block's input and output is divided by the square root of two. Time is continuous.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses._schedule import Schedule

_NAMES = {
    "GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "time", "GroupNorm_1": "norm2", "Conv_1": "conv2",
    "Conv_2": "skip", "NIN_0": "query", "NIN_1": "key", "NIN_2": "value", "NIN_3": "out",
}  # fmt: skip
# Published 1 x 1 convolutions store their weight as a matrix of inputs by outputs.
_PARTS = {"W": "weight", "b": "bias"}
# Prefix of the list of all layers in published files, after DataParallel's prefix.
_LAYERS = "module.all_modules."


def time_inputs(schedule: Schedule) -> Tensor:
    """The network's time input for each time 1 .. length.

    It is 999 times the time in [0, 1] at which the continuous process has the same alpha bar,
    exp(-t^2 (b1 - b0) / 2 - t b0), equation 33; b0 and b1 are the first and the last beta times the length. The
    continuous process ends slightly before the discretized one, so the last few times are clamped to its end.
    """
    low, high = schedule.length * schedule.beta_start, schedule.length * schedule.beta_end
    neg_log_kept = -torch.tensor(schedule.kept[1:], dtype=torch.float64).log()
    # This form of the quadratic's root avoids cancellation and also holds for a constant beta (b0 = b1).
    root = (low**2 + 2 * (high - low) * neg_log_kept).sqrt()
    return (999 * 2 * neg_log_kept / (low + root)).clamp(max=999).float()


class DDPMpp(nn.Module):
    """Predicts the noise in images (N, C, H, W) in [-1, 1] at times (N,) in [0, 999].

    Args:
        widths: channels of each resolution.
        attention: whether each resolution has self-attention, after each down block and after the last up block; the
            middle block always has it.
        layers: residual blocks per resolution on the down path; the up path has one more.
        groups: of the group normalization.
        head_width: channels per attention head; 0 for a single head.
        dropout: rate in training.
    """

    def __init__(
        self,
        widths: Sequence[int],
        attention: Sequence[bool],
        layers: int,
        groups: int,
        head_width: int = 0,
        dropout: float = 0.0,
        channels: int = 3,
    ):
        super().__init__()
        first = widths[0]

        def unit(inputs: int, width: int, attends: bool = False, scale: float = 1) -> _Unit:
            residual = _Residual(inputs, width, 4 * first, groups, dropout, scale)
            return _Unit(residual, _Attention(width, groups, head_width) if attends else None)

        self.time = nn.Sequential(nn.Linear(first, 4 * first), nn.SiLU(), nn.Linear(4 * first, 4 * first))
        self.enter = nn.Conv2d(channels, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, inputs, last = [first], first, len(widths) - 1
        for level, (width, attends) in enumerate(zip(widths, attention, strict=True)):
            units = [unit(inputs if i == 0 else width, width, attends) for i in range(layers)]
            units += [unit(width, width, scale=0.5)] if level < last else []
            self.down.extend(units)
            kept += [width] * len(units)
            inputs = width
        self.middle = nn.ModuleList([unit(inputs, inputs, True), unit(inputs, inputs)])
        for level, (width, attends) in reversed(list(enumerate(zip(widths, attention, strict=True)))):
            for i in range(layers + 1):
                self.up.append(unit(inputs + kept.pop(), width, attends and i == layers))
                inputs = width
            if level:
                self.up.append(unit(width, width, scale=2))
        self.norm, self.leave = _norm(groups, first), nn.Conv2d(first, channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier uniform; the last layer of a branch is zero, so each block starts as a scaled identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Residual):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, _Attention):
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        emb = self.time(_time_embedding(times, self.enter.out_channels).to(self.enter.weight.dtype))
        x = self.enter(x)
        kept = [x]
        for unit in self.down:
            x = unit(x, emb)
            kept.append(x)
        for unit in self.middle:
            x = unit(x, emb)
        for unit in self.up:
            assert isinstance(unit, _Unit)
            x = unit(x if unit.residual.scale > 1 else torch.cat([x, kept.pop()], 1), emb)
        return self.leave(F.silu(self.norm(x)))

    def layer_names(self) -> Iterator[str]:
        """Names of all layers with weights, in the order of computation."""
        yield from ("time.0", "time.2", "enter")
        for path in ("down", "middle", "up"):
            for i, unit in enumerate(self.get_submodule(path).children()):
                for part, _ in unit.named_children():
                    yield f"{path}.{i}.{part}"
        yield from ("norm", "leave")


def renamed(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Rename the tensors of a published file, a flat list of layers, to those of `network`; others are unchanged."""
    if f"{_LAYERS}0.weight" not in state:
        return state
    assert isinstance(network, DDPMpp)
    names = list(network.layer_names())
    tensors = {}
    for key, tensor in state.items():
        number, _, rest = key.removeprefix(_LAYERS).partition(".")
        if key.startswith(_LAYERS) and number.isdecimal() and int(number) < len(names):
            layer, _, part = rest.rpartition(".")
            if part == "W":
                tensor = tensor.T[:, :, None, None]
            pieces = (names[int(number)], _NAMES.get(layer, layer), _PARTS.get(part, part))
            key = ".".join(piece for piece in pieces if piece)
        if key != "module.sigmas":  # the noise levels of another process, unused by this network
            tensors[key] = tensor
    return tensors


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int, time: int, groups: int, dropout: float, scale: float):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.norm1, self.conv1 = _norm(groups, inputs), nn.Conv2d(inputs, width, 3, padding=1)
        self.time = nn.Linear(time, width)
        self.norm2, self.conv2 = _norm(groups, width), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width or scale != 1 else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        inner = self.conv1(self._scaled(F.silu(self.norm1(x))))
        inner = inner + self.time(F.silu(emb))[:, :, None, None]
        inner = self.conv2(F.dropout(F.silu(self.norm2(inner)), self.dropout, self.training))
        return (self.skip(self._scaled(x)) + inner) / math.sqrt(2)

    def _scaled(self, x: Tensor) -> Tensor:
        if self.scale > 1:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.scale < 1 else x


class _Attention(nn.Module):
    def __init__(self, width: int, groups: int, head_width: int):
        super().__init__()
        self.heads = width // (head_width or width)
        self.norm1 = _norm(groups, width)
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(x)
        parts = (part(inner).flatten(2) for part in (self.query, self.key, self.value))
        query, key, value = (part.unflatten(1, (self.heads, -1)) for part in parts)
        weights = (query.transpose(2, 3) @ key / math.sqrt(query.shape[2])).softmax(-1)
        return (x + self.out((value @ weights.transpose(2, 3)).reshape_as(x))) / math.sqrt(2)


class _Unit(nn.Module):
    """A residual block, optionally followed by self-attention."""

    def __init__(self, residual: _Residual, attention: _Attention | None):
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.residual(x, emb)
        return x if self.attention is None else self.attention(x)


def _norm(groups: int, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


def _time_embedding(times: Tensor, width: int) -> Tensor:
    """Sines and cosines of the times, (N,) -> (N, width), with frequencies from 1 down to 1e-4."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device) / max(1, half - 1)
    angles = times.float()[:, None] * (-math.log(10_000) * steps).exp()
    return F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))
