"""Swin by group window attention: Huang et al., "Green Hierarchical Vision Transformer for Masked Image
Modeling", arXiv 2205.13515, on timm's Swin (Liu et al., arXiv 2103.14030)."""

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor

from robench.training.encoders._base import Encoder, require, visible_images
from robench.training.encoders.windows import Groups, group_windows


class SwinEncoder(Encoder):
    """Only the tokens of visible patches are computed, at every stage, and attend within their windows.

    A patch is what becomes one token of the last stage: 32 x 32 pixels of a Swin-B, a 7 x 7 grid at 224
    pixels, of which 12 stay (as in MIMIR's code, arXiv 2312.04960). All images of a batch share one mask, so that
    they share the grouping of windows. Linear maps start as timm leaves them: our choice.
    """

    one_mask = True
    network: SwinTransformer

    def __init__(self, network: SwinTransformer, image_size: int | None = None):
        patches: Any = network.patch_embed
        halvings = len(network.layers) - 1
        patch = patches.patch_size[0] * 2**halvings
        side = patches.grid_size[0] // 2**halvings
        require(
            side >= 1 and patches.grid_size == (side * 2**halvings,) * 2,
            f"square images for a Swin, of a multiple of {patch} pixels: its patches form a grid of "
            f"{patches.grid_size}",
        )
        super().__init__(network, patch, side, network.num_features)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; all rows of `keep` must be one. (N, visible, D)."""
        shown = keep[0].cpu()
        if keep.stride(0) and not bool((keep == keep[:1]).all()):
            raise ValueError("the images of a batch must share one mask for group window attention")
        network: Any = self.network
        maps = network.patch_embed.proj(visible_images(x, keep, self.patch)).permute(0, 2, 3, 1)
        maps = network.patch_embed.norm(maps)
        for stage in network.layers:
            # A visible patch is an image of its own here: merging never reaches beyond it.
            maps = stage.downsample(maps)
            places = _places(shown, self.side, maps.shape[1])
            plans: dict[Any, Groups] = {}
            tokens = maps.reshape(len(x), len(places), -1)
            for block in stage.blocks:
                key = (block.window_size, block.shift_size)
                if key not in plans:
                    plans[key] = group_windows(places, *key).to(x.device)
                tokens = _block(block, tokens, plans[key])
            maps = tokens.reshape(*maps.shape[:3], -1)
        return network.norm(maps.reshape(len(x), len(shown), -1))


def _places(shown: Tensor, side: int, detail: int) -> Tensor:
    """Row and column of every token, (visible * detail^2, 2), patch by patch and row by row within each."""
    corner = torch.stack([shown // side, shown % side], 1) * detail
    within = torch.cartesian_prod(torch.arange(detail), torch.arange(detail)).view(-1, 2)
    return (corner[:, None] + within).reshape(-1, 2)


def _block(block: SwinTransformerBlock, tokens: Tensor, groups: Groups) -> Tensor:
    tokens = tokens + block.drop_path1(_attention(block.attn, block.norm1(tokens), groups))
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))


def _attention(attention: WindowAttention, tokens: Tensor, groups: Groups) -> Tensor:
    """timm's window attention, (N, T, C) -> (N, T, C), between tokens of one window within each group."""
    n, count, _ = tokens.shape
    queries_keys_values = attention.qkv(tokens)[:, groups.members]  # (N, G, g, 3 C)
    shape = (n, *groups.members.shape, 3, attention.num_heads, -1)
    q, k, v = queries_keys_values.reshape(shape).permute(3, 0, 1, 4, 2, 5).unbind(0)
    bias = attention.relative_position_bias_table[groups.bias].permute(0, 3, 1, 2)  # (G, heads, g, g)
    scores = (q * attention.scale) @ k.transpose(-2, -1) + bias
    scores = scores.masked_fill(~groups.allowed[:, None], -torch.inf)
    mixed = attention.attn_drop(scores.softmax(-1)) @ v
    mixed = mixed.transpose(2, 3).reshape(n, groups.members.numel(), -1)[:, groups.slots]
    assert mixed.shape[1] == count
    return attention.proj_drop(attention.proj(mixed))
