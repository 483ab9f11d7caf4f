"""Swin's forward from a state in SimMIM's layout, by attention over the whole grid: an independent second opinion.

Liu et al., arXiv 2103.14030. No window is ever cut out: two tokens attend to each other when they share a window
of the grid rolled by half a window, and were not brought together by the rolling.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def forward(
    state: dict[str, Tensor], x: Tensor, depths: tuple[int, ...], heads: tuple[int, ...], window: int
):
    """Logits (N, K) of images (N, 3, H, W)."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    tokens = _norm(state, "patch_embed.norm", tokens.permute(0, 2, 3, 1))
    for stage, depth in enumerate(depths):
        grid = tokens.shape[1]
        for i in range(depth):
            shift = window // 2 if i % 2 and grid > window else 0
            name = f"layers.{stage}.blocks.{i}"
            tokens = _block(state, name, tokens, heads[stage], min(window, grid), shift)
        if stage < len(depths) - 1:
            corners = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            joined = _norm(state, f"layers.{stage}.downsample.norm", torch.cat(corners, 3))
            tokens = joined @ state[f"layers.{stage}.downsample.reduction.weight"].T
    return _linear(state, "head", _norm(state, "norm", tokens).mean((1, 2)))


def _block(state, name, tokens, heads, window, shift):
    n, grid, _, width = tokens.shape
    flat = tokens.reshape(n, grid * grid, width)
    qkv = _linear(state, f"{name}.attn.qkv", _norm(state, f"{name}.norm1", flat))
    q, k, v = qkv.reshape(n, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3) * (width // heads) ** -0.5 + _bias(state, name, grid, window, shift)
    mixed = (scores.softmax(3) @ v).transpose(1, 2).reshape(n, -1, width)
    flat = flat + _linear(state, f"{name}.attn.proj", mixed)
    hidden = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", flat)))
    return (flat + _linear(state, f"{name}.mlp.fc2", hidden)).reshape(tokens.shape)


def _bias(state, name, grid, window, shift):
    """(heads, tokens, tokens): the learned bias of every pair, -inf where two tokens do not see each other."""
    place = torch.arange(grid * grid)
    row, column = place // grid, place % grid
    seen = torch.ones(len(place), len(place), dtype=torch.bool)
    for line in (row, column):
        rolled = (line - shift) % grid
        seen &= rolled[:, None] // window == rolled[None] // window
        # What the rolling brought round meets only its like.
        seen &= (line < shift)[:, None] == (line < shift)[None]
    down = (row[:, None] - row[None]).clamp(1 - window, window - 1) + window - 1
    across = (column[:, None] - column[None]).clamp(1 - window, window - 1) + window - 1
    table = state[f"{name}.attn.relative_position_bias_table"]
    bias = table[down * (2 * window - 1) + across].permute(2, 0, 1)
    return bias.masked_fill(~seen, -torch.inf)


def _linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
