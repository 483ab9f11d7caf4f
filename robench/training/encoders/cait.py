"""CaiT on visible tokens: Touvron et al., "Going Deeper with Image Transformers", arXiv 2103.17239."""

from typing import Any

import torch
from timm.models.cait import Cait
from torch import Tensor

from robench.defenses._patches import sincos_positions
from robench.training.encoders._base import Encoder, embed, pick, require


class CaiTEncoder(Encoder):
    """Talking-heads blocks process the visible tokens; then the class token attends to them by class attention.

    The last LayerNorm is applied to both, and the decoder receives both. MIMIR's settings (arXiv 2312.04960) are not
    published. Our choices: class attention is part of the pre-training, position embeddings are fixed sine-cosine
    ones as for the ViT, and linear layers keep timm's initialisation.
    """

    prefix = 1
    network: Cait

    def __init__(self, network: Cait, image_size: int | None = None):
        require(isinstance(network.cls_token, Tensor), "a CaiT with a class token")
        patches: Any = network.patch_embed
        super().__init__(network, patches.patch_size[0], patches.grid_size[0], network.embed_dim)

    def start(self) -> None:
        with torch.no_grad():
            self.network.pos_embed.copy_(sincos_positions(self.width, self.side)[:, 1:])
        self.network.pos_embed.requires_grad_(False)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; (N, 1 + visible, D)."""
        network = self.network
        tokens = embed(network, x, keep, self.patch)
        tokens = tokens + pick(network.pos_embed.expand(len(x), -1, -1), keep)
        return network.norm(network.forward_cls(network.blocks(tokens)))
