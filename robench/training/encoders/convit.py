"""ConViT on visible tokens: d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases", arXiv 2103.10697."""

import math
from functools import partial
from typing import Any

import torch
from timm.models.convit import Block, ConVit
from torch import Tensor, nn

from robench.training.encoders._base import Encoder, embed, pick, require, start_embedding


class ConViTEncoder(Encoder):
    """Gated positional blocks process the visible tokens; the remaining blocks also process the class token.

    As in MIMIR's code (arXiv 2312.04960):

    - Positional attention treats the visible tokens as a square grid in their random order, so their number must be a
      square: 64 of 256 patches form an 8 x 8 grid.
    - Position embeddings start as sine-cosine ones and are trained. Linear layers are reinitialized, and positional
      attention is made local afterwards.
    - Queries, keys and values have a bias, which fine-tuning drops, because timm's ConViT has none.
    - The decoder consists of blocks with positional attention and does not receive the class token.

    The class token is added before the same block as in timm's ConViT.
    """

    prefix = 1
    decodes_prefix = False
    network: ConVit

    def __init__(self, network: ConVit, image_size: int | None = None):
        require(
            isinstance(network.cls_token, Tensor) and network.local_up_to_layer < len(network.blocks),
            "a ConViT that adds its class token before the last block",
        )
        patches: Any = network.patch_embed
        super().__init__(network, patches.patch_size[0], patches.grid_size[0], network.embed_dim)
        for block in network.blocks:
            attention: Any = block.attn
            for name in ("qk", "v", "qkv"):
                layer = getattr(attention, name, None)
                if layer is not None and layer.bias is None:
                    layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))

    def decoder_block(self, width: int, heads: int) -> nn.Module:
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        return Block(width, heads, 4.0, qkv_bias=True, norm_layer=norm, use_gpsa=True)

    def check(self, visible: int) -> None:
        """Raise ValueError unless the number of visible tokens is a square."""
        require(
            math.isqrt(visible) ** 2 == visible,
            f"a square number of visible patches for a ConViT's positional attention: got {visible} of "
            f"{self.side**2}, change mask_ratio",
        )

    def start(self) -> None:
        start_embedding(self.network, self.side)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; (N, 1 + visible, D)."""
        network: Any = self.network
        tokens = embed(network, x, keep, self.patch)
        if network.use_pos_embed:
            tokens = tokens + pick(network.pos_embed.expand(len(x), -1, -1), keep)
        for i, block in enumerate(network.blocks):
            if i == network.local_up_to_layer:
                tokens = torch.cat([network.cls_token.expand(len(x), -1, -1), tokens], 1)
            tokens = block(tokens)
        return network.norm(tokens)
