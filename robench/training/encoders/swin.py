"""Swin by group window attention: Huang et al., "Green Hierarchical Vision Transformer for Masked Image
Modeling", arXiv 2205.13515, on timm's Swin (Liu et al., arXiv 2103.14030)."""

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from robench.training.encoders._base import Encoder, require, visible_images
from robench.training.encoders.windows import Groups, group_windows


class SwinEncoder(Encoder):
    """Every stage computes the tokens of visible patches only, which attend to each other within windows.

    A patch is the area of one token of the last stage: 32 x 32 pixels for a Swin-B, which gives a 7 x 7 grid at 224
    pixels, with 12 visible patches (as in MIMIR's code, arXiv 2312.04960). All images of a batch have the same mask,
    so they have the same grouping of windows.

    In the published code the decoder restores the order of the latents by the random order of the patches, although the
    encoder returns them in row-major order, so most of them reach another patch's place. Here every token reaches its
    own place. A training by this code is therefore not the authors' training.
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

    def start(self) -> None:
        projection: Any = self.network.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; all rows of `keep` must be equal. (N, visible, D)."""
        visible = keep[0].cpu()
        if keep.stride(0) and not bool((keep == keep[:1]).all()):
            raise ValueError("group window attention needs the same mask for all images of a batch")
        network: Any = self.network
        maps = network.patch_embed.proj(visible_images(x, keep, self.patch)).permute(0, 2, 3, 1)
        maps = network.patch_embed.norm(maps)
        for stage in network.layers:
            # Patch merging never combines tokens of different patches, so they are processed as separate images.
            maps = stage.downsample(maps)
            positions = _positions(visible, self.side, maps.shape[1])
            groups: dict[Any, Groups] = {}
            tokens = maps.reshape(len(x), len(positions), -1)
            for block in stage.blocks:
                key = (block.window_size, block.shift_size)
                if key not in groups:
                    groups[key] = group_windows(positions, *key).to(x.device)
                tokens = _block(block, tokens, groups[key])
            maps = tokens.reshape(*maps.shape[:3], -1)
        return network.norm(maps.reshape(len(x), len(visible), -1))


def _positions(visible: Tensor, side: int, tokens: int) -> Tensor:
    """Row and column of every token, (visible * tokens^2, 2), in row-major order within each patch.

    Args:
        visible: indices of the visible patches.
        side: number of patches along each side of the image.
        tokens: number of tokens along each side of a patch.
    """
    corner = torch.stack([visible // side, visible % side], 1) * tokens
    offset = torch.cartesian_prod(torch.arange(tokens), torch.arange(tokens)).view(-1, 2)
    return (corner[:, None] + offset).reshape(-1, 2)


def _block(block: SwinTransformerBlock, tokens: Tensor, groups: Groups) -> Tensor:
    tokens = tokens + block.drop_path1(_attention(block.attn, block.norm1(tokens), groups))
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))


def _attention(attention: WindowAttention, tokens: Tensor, groups: Groups) -> Tensor:
    """timm's window attention, (N, T, C) -> (N, T, C), computed group by group."""
    n, count, _ = tokens.shape
    queries_keys_values = attention.qkv(tokens)[:, groups.members]  # (N, G, g, 3 C)
    shape = (n, *groups.members.shape, 3, attention.num_heads, -1)
    q, k, v = queries_keys_values.reshape(shape).permute(3, 0, 1, 4, 2, 5).unbind(0)
    bias = attention.relative_position_bias_table[groups.bias].permute(0, 3, 1, 2)  # (G, heads, g, g)
    scores = (q * attention.scale) @ k.transpose(-2, -1) + bias
    scores = scores.masked_fill(~groups.allowed[:, None], -torch.inf)
    output = attention.attn_drop(scores.softmax(-1)) @ v
    output = output.transpose(2, 3).reshape(n, groups.members.numel(), -1)[:, groups.slots]
    assert output.shape[1] == count
    return attention.proj_drop(attention.proj(output))
