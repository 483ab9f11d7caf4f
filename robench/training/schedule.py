"""Learning rates: warm-up, cosine, and less for the layers nearer the pixels."""

import math
import re

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def cosine(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of a step: linear up to `peak`, then half a cosine down to `floor`."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def layer_of(name: str, depth: int) -> int:
    """The layer of a ViT's parameter: 0 for what makes the tokens, 1 .. depth for blocks, then the head."""
    block = _BLOCK.search(name)
    if block:
        return int(block.group(1)) + 1
    embedding = any(part in name for part in ("cls_token", "pos_embed", "patch_embed"))
    return 0 if embedding else depth + 1


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """AdamW's groups: layer `l` learns at layer_decay ** (depth + 1 - l), 1-D parameters undecayed.

    Bao et al., "BEiT: BERT Pre-Training of Image Transformers", arXiv 2106.08254, as MAE and MIMIR fine-tune.
    The factor stands under `lr_scale`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depth = 1 + max((int(m.group(1)) for name, _ in named if (m := _BLOCK.search(name))), default=-1)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in named:
        plain = parameter.dim() <= 1 or "cls_token" in name or "pos_embed" in name
        layer = layer_of(name, depth) if layer_decay != 1 else depth + 1
        groups.setdefault((layer, plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if plain else weight_decay,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for (layer, plain), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
