"""ViT on visible tokens: He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377."""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from robench.defenses._vit_layers import VisionTransformer
from robench.training.encoders._base import Encoder, embed, pick, require, start_embedding


class ViTEncoder(Encoder):
    """The blocks process the class token and the visible tokens; hidden patches are not computed.

    Pre-training has a separate last LayerNorm, as in MIMIR (arXiv 2312.04960), because the classifier has a new
    `fc_norm`. Position embeddings become fixed sine-cosine ones; fine-tuning may change them.
    """

    prefix = 1
    network: VisionTransformer | TimmViT

    def __init__(self, network: VisionTransformer | TimmViT, image_size: int | None = None):
        require(
            isinstance(network.pos_embed, Tensor) and isinstance(network.cls_token, Tensor),
            "a ViT with a class token and learned position embeddings",
        )
        require(isinstance(network.patch_embed.proj, nn.Conv2d), "a ViT without a convolutional stem")
        super().__init__(
            network, network.patch_embed.patch_size[0], network.patch_embed.grid_size[0], network.embed_dim
        )
        self.norm = partial(nn.LayerNorm, eps=1e-6)(network.embed_dim)

    @property
    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """The class token and the position embeddings, which timm types as optional."""
        token, positions = self.network.cls_token, self.network.pos_embed
        assert token is not None and positions is not None
        return token, positions

    def start(self) -> None:
        start_embedding(self.network, self.side)
        self._embeddings[1].requires_grad_(False)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; (N, 1 + visible, D)."""
        token, positions = self._embeddings
        tokens = embed(self.network, x, keep, self.patch)
        tokens = tokens + pick(positions[:, 1:].expand(len(x), -1, -1), keep)
        class_token = (token + positions[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.network.blocks(torch.cat([class_token, tokens], 1)))
