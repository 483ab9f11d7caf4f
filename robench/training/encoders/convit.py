"""ConViT on visible tokens: d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases", arXiv 2103.10697."""

import math
from typing import Any

import torch
from timm.models.convit import ConVit
from torch import Tensor

from robench.defenses._patches import sincos_positions
from robench.training.encoders._base import Encoder, embed, pick, require


class ConViTEncoder(Encoder):
    """Gated positional blocks process the visible tokens; the remaining blocks also process the class token.

    As in MIMIR's code (arXiv 2312.04960), positional attention treats the visible tokens as a square grid, so their
    number must be a square: 64 of 256 patches form an 8 x 8 grid. The class token is added before the same block as
    in timm's ConViT. Our choices where the code's are not known: the tokens fill the grid in row-major order,
    position embeddings are fixed sine-cosine ones as for the ViT, and linear layers keep timm's initialisation,
    which makes positional attention local.
    """

    prefix = 1
    network: ConVit

    def __init__(self, network: ConVit, image_size: int | None = None):
        require(
            isinstance(network.cls_token, Tensor) and network.local_up_to_layer < len(network.blocks),
            "a ConViT that adds its class token before the last block",
        )
        patches: Any = network.patch_embed
        super().__init__(network, patches.patch_size[0], patches.grid_size[0], network.embed_dim)

    def check(self, visible: int) -> None:
        """Raise ValueError unless the number of visible tokens is a square."""
        require(
            math.isqrt(visible) ** 2 == visible,
            f"a square number of visible patches for a ConViT's positional attention: got {visible} of "
            f"{self.side**2}, change mask_ratio",
        )

    def start(self) -> None:
        if self.network.use_pos_embed:
            with torch.no_grad():
                self.network.pos_embed.copy_(sincos_positions(self.width, self.side)[:, 1:])
            self.network.pos_embed.requires_grad_(False)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; (N, 1 + visible, D)."""
        network: Any = self.network
        keep, positions = keep.sort(1)
        tokens = embed(network, x, keep, self.patch)
        if network.use_pos_embed:
            tokens = tokens + pick(network.pos_embed.expand(len(x), -1, -1), keep)
        for i, block in enumerate(network.blocks):
            if i == network.local_up_to_layer:
                tokens = torch.cat([network.cls_token.expand(len(x), -1, -1), tokens], 1)
            tokens = block(tokens)
        tokens = network.norm(tokens)
        return torch.cat([tokens[:, :1], pick(tokens[:, 1:], positions.argsort(1))], 1)
