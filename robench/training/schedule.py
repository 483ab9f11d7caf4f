"""Learning rate schedules: warm-up, cosine decay and layer-wise decay."""

import math
import re

import torch
from torch import Tensor, nn

# Blocks are identified by the whole path, because the numbers restart in every stage of a Swin or ConvNeXt.
_BLOCK = re.compile(r"^(.*?\bblocks\.\d+)\.")
# CaiT's class-attention blocks, which the official code scales like the first blocks.
_CLASS_BLOCK = re.compile(r"\bblocks_token_only\.(\d+)\.")
_EMBEDDING = ("cls_token", "pos_embed", "patch_embed", "stem.")
_DOWNSAMPLE = re.compile(r"(?:^|\.)downsample\.")


def cosine(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of a step: linear warm-up to `peak`, then cosine decay to `floor`."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def layers_of(names: list[str]) -> dict[str, int]:
    """The layer of each parameter: 0 for the embedding, 1 to depth for the blocks, depth + 1 for the rest.

    Args:
        names: names of a network's parameters, in the network's order. Down-sampling layers between two stages
            belong to the layer of the next block. Class-attention block k of a CaiT belongs to layer k + 1 with the
            block of the same number, so it is trained slowly: the official code of MIMIR reads that number from the
            name, and the published networks were trained with it.
    """
    blocks: dict[str, int] = {}
    for name in names:
        if block := _BLOCK.match(name):
            blocks.setdefault(block[1], len(blocks) + 1)
    layers, next_block = {}, len(blocks) + 1
    for name in reversed(names):
        if block := _BLOCK.match(name):
            next_block = blocks[block[1]]
            layers[name] = next_block
        elif match := _CLASS_BLOCK.search(name):
            layers[name] = int(match[1]) + 1
        elif any(part in name for part in _EMBEDDING):
            layers[name] = 0
        else:
            layers[name] = next_block if _DOWNSAMPLE.search(name) else len(blocks) + 1
    return layers


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, decay_tokens: bool = False
) -> list[dict]:
    """Parameter groups for AdamW with layer-wise learning rate decay.

    The learning rate of layer `l` is scaled by layer_decay ** (depth + 1 - l), which the group stores as `lr_scale`.
    One-dimensional parameters, class tokens and position embeddings have no weight decay. Bao et al., "BEiT: BERT
    Pre-Training of Image Transformers", arXiv 2106.08254; MAE and MIMIR fine-tune in the same way.

    Args:
        decay_tokens: whether class tokens and position embeddings have weight decay, as in the pre-training of MAE and
            MIMIR.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = layers_of([name for name, _ in trainable])
    top = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in trainable:
        is_token = not decay_tokens and ("cls_token" in name or "pos_embed" in name)
        no_decay = parameter.dim() <= 1 or is_token
        layer = layers[name] if layer_decay != 1 else top
        groups.setdefault((layer, no_decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if no_decay else weight_decay,
            "lr_scale": layer_decay ** (top - layer),
        }
        for (layer, no_decay), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
