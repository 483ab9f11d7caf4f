"""The released checkpoints' tensors, name by name, written down from their description and from no model of ours."""

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _mlp(name: str, width: int) -> Shapes:
    return _linear(f"{name}.mlp.fc1", width, 4 * width) | _linear(f"{name}.mlp.fc2", 4 * width, width)


def _norms(name: str, width: int) -> Shapes:
    return _norm(f"{name}.norm1", width) | _norm(f"{name}.norm2", width)


def _patches(patch: int, width: int) -> Shapes:
    return {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}


def _vit_block(name: str, width: int) -> Shapes:
    attention = _linear(f"{name}.attn.qkv", width, 3 * width) | _linear(f"{name}.attn.proj", width, width)
    return _norms(name, width) | attention | _mlp(name, width)


def _vit_encoder(width: int, depth: int, image: int, patch: int) -> Shapes:
    found: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, (image // patch) ** 2 + 1, width)}
    found |= _patches(patch, width)
    for i in range(depth):
        found |= _vit_block(f"blocks.{i}", width)
    return found


def vit(width: int, depth: int, image: int, patch: int, classes: int) -> Shapes:
    """Fine-tuned: `fc_norm`, `head`, no `norm`."""
    found = _vit_encoder(width, depth, image, patch)
    return found | _norm("fc_norm", width) | _linear("head", width, classes)


def pretrained_vit(width: int, depth: int, image: int, patch: int, decoder: int = 128) -> Shapes:
    """Before fine-tuning: `norm`, a decoder of two blocks, no head."""
    found = _vit_encoder(width, depth, image, patch) | _norm("norm", width)
    found |= {"mask_token": (1, 1, decoder), "decoder_pos_embed": (1, (image // patch) ** 2 + 1, decoder)}
    found |= _linear("decoder_embed", width, decoder)
    for i in range(2):
        found |= _vit_block(f"decoder_blocks.{i}", decoder)
    return found | _norm("decoder_norm", decoder) | _linear("decoder_pred", decoder, 3 * patch * patch)


def convit(heads: int, image: int = 32, patch: int = 2, classes: int = 10) -> Shapes:
    """Ten gated blocks, then two plain ones; no bias in queries, keys and values."""
    width = 48 * heads
    found: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, (image // patch) ** 2, width)}
    found |= _patches(patch, width)
    for i in range(12):
        name = f"blocks.{i}"
        found |= _norms(name, width) | _mlp(name, width) | _linear(f"{name}.attn.proj", width, width)
        if i < 10:
            found |= _linear(f"{name}.attn.qk", width, 2 * width, bias=False)
            found |= _linear(f"{name}.attn.v", width, width, bias=False)
            found |= _linear(f"{name}.attn.pos_proj", 3, heads) | {f"{name}.attn.gating_param": (heads,)}
        else:
            found |= _linear(f"{name}.attn.qkv", width, 3 * width, bias=False)
    return found | _norm("norm", width) | _linear("head", width, classes)


def cait(
    width: int, depth: int, heads: int, image: int = 224, patch: int = 16, classes: int = 1000
) -> Shapes:
    """Talking-heads blocks and two class-attention blocks, every branch scaled."""
    found: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, (image // patch) ** 2, width)}
    found |= _patches(patch, width)
    for i in range(depth):
        name = f"blocks.{i}"
        found |= _vit_block(name, width) | {f"{name}.gamma_{k}": (width,) for k in (1, 2)}
        found |= _linear(f"{name}.attn.proj_l", heads, heads) | _linear(f"{name}.attn.proj_w", heads, heads)
    for i in range(2):
        name = f"blocks_token_only.{i}"
        found |= _norms(name, width) | _mlp(name, width) | {f"{name}.gamma_{k}": (width,) for k in (1, 2)}
        for part in ("q", "k", "v", "proj"):
            found |= _linear(f"{name}.attn.{part}", width, width)
    return found | _norm("norm", width) | _linear("head", width, classes)


def simmim_swin(
    width: int,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    window: int,
    image: int = 224,
    patch: int = 4,
    classes: int = 1000,
) -> Shapes:
    """SimMIM's layout: the grid is halved at the end of a stage, indices and masks are saved."""
    found = _patches(patch, width) | _norm("patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        channels, grid = width * 2**stage, image // patch // 2**stage
        side = min(window, grid)
        for i in range(depth):
            name = f"layers.{stage}.blocks.{i}"
            found |= _vit_block(name, channels)
            found[f"{name}.attn.relative_position_bias_table"] = ((2 * side - 1) ** 2, heads[stage])
            found[f"{name}.attn.relative_position_index"] = (side**2, side**2)
            if i % 2 and grid > window:
                found[f"{name}.attn_mask"] = ((grid // side) ** 2, side**2, side**2)
        if stage < len(depths) - 1:
            found |= _norm(f"layers.{stage}.downsample.norm", 4 * channels)
            found |= _linear(f"layers.{stage}.downsample.reduction", 4 * channels, 2 * channels, bias=False)
    last = width * 2 ** (len(depths) - 1)
    return found | _norm("norm", last) | _linear("head", last, classes)


def filled(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, large enough that every one of them shows in the logits; true indices and masks."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("relative_position_index"):
            state[key] = position_index(round(shape[0] ** 0.5))
        elif key.endswith("attn_mask"):
            state[key] = shift_mask(round(shape[0] ** 0.5), round(shape[1] ** 0.5))
        else:
            scale = 0.3 if len(shape) == 1 else 0.7 * shape[-1] ** -0.5
            state[key] = scale * torch.randn(shape, generator=generator)
            if "norm" in key and key.endswith("weight"):
                state[key] += 1
    return state


def position_index(side: int) -> Tensor:
    """Which row of the bias table each pair of a window's tokens has: rows run down, then across."""
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    down = row[:, None] - row[None] + side - 1
    return down * (2 * side - 1) + column[:, None] - column[None] + side - 1


def shift_mask(windows: int, side: int) -> Tensor:
    """-100 between tokens of a rolled window that were no neighbors before, (windows ** 2, side ** 2, side ** 2)."""
    place = torch.arange(windows * side)
    # The last window holds its own first part and, rolled round, what stood at the other end.
    part = (place >= (windows - 1) * side).long() + (place >= windows * side - side // 2).long()
    whole = 3 * part[:, None] + part[None]
    parts = whole.reshape(windows, side, windows, side).transpose(1, 2).reshape(windows**2, side**2)
    return torch.where(parts[:, :, None] == parts[:, None], 0.0, -100.0)


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes without any numbers."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
