"""Learning rates: warm-up, cosine decay, and layer-wise decay towards the input."""

import math
import re

import torch
from torch import Tensor, nn

# A block by its whole path: those of a Swin or a ConvNeXt have numbers that restart in every stage.
_BLOCK = re.compile(r"^(.*?\bblocks\.\d+)\.")
_TOKENS = ("cls_token", "pos_embed", "patch_embed", "stem.")
_BETWEEN = re.compile(r"(?:^|\.)downsample\.")


def cosine(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of a step: linear up to `peak`, then half a cosine down to `floor`."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def layers_of(names: list[str]) -> dict[str, int]:
    """The layer of each parameter: 0 for what makes the tokens, 1 .. depth for the blocks, then the head.

    Args:
        names: of a network's parameters, in its own order. What stands between two stages goes with the first
            block after it.
    """
    blocks: dict[str, int] = {}
    for name in names:
        if block := _BLOCK.match(name):
            blocks.setdefault(block[1], len(blocks) + 1)
    layers, above = {}, len(blocks) + 1
    for name in reversed(names):
        if block := _BLOCK.match(name):
            above = blocks[block[1]]
            layers[name] = above
        elif any(part in name for part in _TOKENS):
            layers[name] = 0
        else:
            layers[name] = above if _BETWEEN.search(name) else len(blocks) + 1
    return layers


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """AdamW's groups: layer `l` learns at layer_decay ** (depth + 1 - l), 1-D parameters undecayed.

    Bao et al., "BEiT: BERT Pre-Training of Image Transformers", arXiv 2106.08254, as MAE and MIMIR fine-tune.
    The factor stands under `lr_scale`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = layers_of([name for name, _ in named])
    top = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in named:
        plain = parameter.dim() <= 1 or "cls_token" in name or "pos_embed" in name
        layer = layers[name] if layer_decay != 1 else top
        groups.setdefault((layer, plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if plain else weight_decay,
            "lr_scale": layer_decay ** (top - layer),
        }
        for (layer, plain), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
