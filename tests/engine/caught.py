"""Defenses built to be caught, each with the mark that a run must put on it."""

import torch
from torch import nn

from tests.models import small_net


class Wrapped(nn.Module):
    """A network with something done to its input and its logits."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.network, self.before, self.after = small_net(), before, after

    def forward(self, x):
        x = self.before(x) if self.before else x
        logits = self.network(x)
        return self.after(x, logits) if self.after else logits


class Reversed(torch.autograd.Function):
    """The identity, with the gradient of its opposite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        return -grads[0]


class Shattered(torch.autograd.Function):
    """The identity, with a gradient that is NaN in the left column of pixels, as of a root at 0."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        grad = grads[0].clone()
        grad[..., 0] = torch.nan
        return grad


def nan_where_hard(x, logits):
    gap = logits.topk(2, 1).values.diff().abs()
    return torch.where(gap < 0.2, torch.nan, logits)


def thermometer(x):
    """Sixteen levels as bits (Buckman et al. 2018), summed up again: nothing passes a gradient."""
    levels = torch.arange(16, device=x.device).view(-1, 1, 1, 1, 1) / 16
    return (x > levels).float().mean(0)


class WinnersTakeAll(nn.Module):
    """k-WTA (Xiao et al. 2020): of the hidden units only the largest stay, on a coarse grid of values."""

    def forward(self, x):
        flat = x.flatten(1)
        kept = flat >= flat.kthvalue(flat.shape[1] - flat.shape[1] // 8, 1, keepdim=True).values
        return (kept * (flat * 4).round() / 4).view_as(x)


CAUGHT = {
    "rounding": (Wrapped(before=lambda x: (x * 7).round() / 7), "zero-gradients"),
    "thermometer": (Wrapped(before=thermometer), "zero-gradients"),
    "k-WTA": (Wrapped(before=WinnersTakeAll()), "zero-gradients"),
    "huge logits": (Wrapped(after=lambda x, logits: 1e4 * logits), "zero-gradients"),
    "a detector's constant": (
        Wrapped(after=lambda x, logits: torch.where(logits.amax(1, keepdim=True) > 1e9, logits, logits.detach())),
        "zero-gradients",
    ),
    "noise": (Wrapped(before=lambda x: x + 0.1 * torch.randn_like(x)), "undeclared-randomness"),
    "NaN where it is hard": (Wrapped(after=nan_where_hard), "nonfinite-logits"),
    "probabilities": (Wrapped(after=lambda x, logits: logits.softmax(1)), "softmax-outputs"),
    "a gradient with NaN": (Wrapped(before=Shattered.apply), "nonfinite-gradients"),
    "a gradient that misleads": (Wrapped(before=Reversed.apply), "loss-not-increasing"),
}  # fmt: skip


def build(name: str, image_size: int = 8) -> nn.Module:
    """One of them by name, for `python:tests.engine.caught.build(name="rounding")`; "honest" is the bare network."""
    return small_net() if name == "honest" else CAUGHT[name][0].eval()
