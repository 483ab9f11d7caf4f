"""CaiT on visible tokens: Touvron et al., "Going Deeper with Image Transformers", arXiv 2103.17239."""

from functools import partial
from typing import Any

from timm.models.cait import Cait, LayerScaleBlock
from torch import Tensor, nn

from robench.training.encoders._base import Encoder, embed, pick, require, start_embedding


class CaiTEncoder(Encoder):
    """Talking-heads blocks process the visible tokens; then the class token attends to them by class attention.

    The last LayerNorm is applied to both, and the decoder, which consists of talking-heads blocks, receives both. As in
    MIMIR's code (arXiv 2312.04960), linear layers are reinitialized, and position embeddings start as sine-cosine ones
    and are trained.
    """

    prefix = 1
    network: Cait

    def __init__(self, network: Cait, image_size: int | None = None):
        require(isinstance(network.cls_token, Tensor), "a CaiT with a class token")
        patches: Any = network.patch_embed
        super().__init__(network, patches.patch_size[0], patches.grid_size[0], network.embed_dim)

    def decoder_block(self, width: int, heads: int) -> nn.Module:
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        block = LayerScaleBlock(width, heads, 4.0, qkv_bias=True, norm_layer=norm)
        first: Any = self.network.blocks[0]
        for name in ("gamma_1", "gamma_2"):  # the scale of the encoder's first block
            scale = getattr(first, name).detach()[:1]
            getattr(block, name).data.copy_(scale.expand(width))
        return block

    def start(self) -> None:
        start_embedding(self.network, self.side)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """See `Encoder.forward`; (N, 1 + visible, D)."""
        network = self.network
        tokens = embed(network, x, keep, self.patch)
        tokens = tokens + pick(network.pos_embed.expand(len(x), -1, -1), keep)
        return network.norm(network.forward_cls(network.blocks(tokens)))
