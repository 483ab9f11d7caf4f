"""Swin transformer, built from timm's layers.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030; fine-tuned
as in MIMIR (arXiv 2312.04960), in the layout of SimMIM (arXiv 2111.09886).
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from robench.core import registry
from robench.core.errors import ResourceError
from robench.defenses._base import Defense

# Buffers that SimMIM saves and timm computes.
COMPUTED = ("attn.relative_position_index", "attn_mask")


class Swin(SwinTransformer):
    """timm's Swin, whose features are the tokens before the last LayerNorm."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens after the last block, (N, tokens, 8 * width for four stages); there is no class token."""
        return self.layers(self.patch_embed(x)).flatten(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, (N, K), from the output of `forward_features`."""
        # timm's head averages over two axes of a grid.
        return self.head(self.norm(x)[:, :, None], pre_logits=pre_logits)


@registry.defenses.register("swin")
def swin(
    image_size: int = 224,
    patch_size: int = 4,
    width: int = 128,
    depths: tuple[int, ...] = (2, 2, 18, 2),
    heads: tuple[int, ...] = (4, 8, 16, 32),
    window: int = 7,
    num_classes: int = 1000,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
) -> Defense:
    """Swin that averages its last tokens; pixels are not normalized and LayerNorm has eps 1e-6, as in SimMIM's code.

    A stage whose grid is no larger than the window is a single window without a shift. The features are the tokens
    after the last block, before the norm, (N, tokens, width * 2 ** (stages - 1)).

    Args:
        width: channels of the first stage; each later stage has twice as many on a grid of half the side.
        depths, heads: blocks and attention heads of each stage. The defaults are B of the MIMIR paper; its L has width
            192, heads (6, 12, 24, 48) and window 14.
        window: side of the attention windows, in tokens.
        drop_path: rate of stochastic depth in the last block, for training only.

    Raises:
        ValueError: for sizes that do not divide.
    """
    if len(depths) != len(heads):
        raise ValueError(f"{depths=} and {heads=}: expected one number per stage in both")
    if image_size % (patch_size * 2 ** (len(depths) - 1)):
        raise ValueError(f"{image_size=} must be a multiple of {patch_size=} times 2 for every later stage")
    for stage, count in enumerate(heads):
        if (width * 2**stage) % count:
            raise ValueError(
                f"stage {stage} has {width * 2**stage} channels: expected a multiple of {count} heads"
            )
    norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it, and types it as a class
    network = Swin(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depths=tuple(depths),
        num_heads=tuple(heads),
        window_size=window,
        num_classes=num_classes,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path,
        norm_layer=norm,
    )
    return Defense(network, num_classes=num_classes, image_size=image_size)


def from_simmim(state: Mapping[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Convert a state from SimMIM's layout to that of `network`; a state in timm's layout is returned unchanged.

    SimMIM halves the grid at the end of a stage, timm at the start of the next; both take the four neighbors column by
    column. SimMIM's `head`, which pre-trained states lack, is timm's `head.fc`. The position indices and attention
    masks, which timm computes, are compared and left out.

    Raises:
        ResourceError: if one of them differs from what `network` computes, since the weights are then of another
            network.
    """
    if not {"head.weight", "layers.0.downsample.reduction.weight"} & state.keys():
        return dict(state)
    computed: dict[str, Any] = {
        key: value for key, value in network.named_buffers() if key.endswith(COMPUTED)
    }
    mapped: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(COMPUTED):
            if key not in computed or not torch.equal(value.double(), computed[key].double()):
                raise ResourceError(
                    f"checkpoint {path} has {key} of shape {tuple(value.shape)}, which differs from the network "
                    "that its other shapes imply: it is of another network or image size"
                )
            continue
        key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key)
        mapped[re.sub(r"^head\.", "head.fc.", key)] = value
    return mapped
