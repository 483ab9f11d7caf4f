"""Masked autoencoder of a ConvNeXt with a convolutional decoder that receives all its feature maps.

Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (SparK), arXiv
2301.03580, section 3. `encoders.convnext` has the sparse encoder.
"""

import math

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from robench.training.encoders import encoder_of, patchify
from robench.training.encoders._base import require
from robench.training.encoders.convnext import ConvNeXtEncoder
from robench.training.mae import random_order, reconstruction


class UpBlock(nn.Sequential):
    """Doubles the side of a feature map by a transposed convolution and two convolutions."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            nn.ConvTranspose2d(inputs, inputs, 4, 2, 1),
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )


class UNetAutoencoder(nn.Module):
    """A sparse ConvNeXt, and a U-shaped decoder that predicts the hidden patches.

    Every feature map is normalised, its hidden positions are filled with a token of this map, and a convolution brings
    it to the decoder's channels. The decoder starts from the last map, doubles its side in every block, and adds the
    next map before the block.

    Args:
        network: trained in place.
        decoder_width: channels of the decoder's first block, halved in every block; 768 in SparK's code.
        mask_ratio: fraction of patches hidden; 0.6 in SparK's code.
        image_size: side of the images.

    Raises:
        ValueError: if the network is not a ConvNeXt, or the width cannot be halved often enough.
    """

    def __init__(
        self,
        network: nn.Module,
        decoder_width: int = 768,
        mask_ratio: float = 0.6,
        image_size: int | None = None,
    ):
        super().__init__()
        require(isinstance(network, ConvNeXt), "a ConvNeXt for a U-shaped decoder")
        encoder = encoder_of(network, image_size)
        assert isinstance(encoder, ConvNeXtEncoder) and isinstance(network, ConvNeXt)
        self.encoder = encoder
        self.patch = encoder.patch
        self.patches = encoder.side**2
        self.visible = max(1, round(self.patches * (1 - mask_ratio)))
        levels = round(math.log2(encoder.patch))
        require(
            decoder_width % 2**levels == 0,
            f"a decoder width that is a multiple of {2**levels} for this ConvNeXt: got {decoder_width}",
        )
        widths = [decoder_width // 2**i for i in range(levels + 1)]
        channels = [int(stage["num_chs"]) for stage in network.feature_info][::-1]
        # The norm of the last map belongs to the encoder.
        self.norms = nn.ModuleList(nn.LayerNorm(count, eps=1e-6) for count in channels[1:])
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, count, 1, 1)) for count in channels)
        self.projections = nn.ModuleList(
            nn.Identity()
            if i == 0 and count == decoder_width
            else nn.Conv2d(count, widths[i], 3 if i else 1, padding=1 if i else 0)
            for i, count in enumerate(channels)
        )
        self.blocks = nn.ModuleList(map(UpBlock, widths[:-1], widths[1:]))
        self.decoder_pred = nn.Conv2d(widths[-1], 3, 1)
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
        for module in [*self.blocks.modules(), self.decoder_pred]:
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draw a random order of the patches for each image, (n, patches); the first ones stay visible."""
        return random_order(n, self.patches, device)

    def forward(self, x: Tensor, target: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of reconstructing `target` from the visible patches of `x`, and the latents (N, visible, D)."""
        keep, hidden = order[:, : self.visible], order[:, self.visible :]
        maps = self.encoder.maps(x, keep)[::-1]
        latent = self.encoder.norm(maps[0].reshape(*keep.shape, -1))
        normalised = [latent.reshape(maps[0].shape)]
        for norm, features in zip(self.norms, maps[1:], strict=True):
            normalised.append(norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        dense = [self._dense(level, features, keep) for level, features in enumerate(normalised)]
        y = self.blocks[0](dense[0])
        for level, block in enumerate(self.blocks[1:], 1):
            y = block(y + dense[level]) if level < len(dense) else block(y)
        prediction = patchify(self.decoder_pred(y), self.encoder.patch)
        return reconstruction(prediction, target, hidden, self.encoder.patch), latent

    def _dense(self, level: int, features: Tensor, keep: Tensor) -> Tensor:
        """A feature map for the decoder, from its visible patches (N * visible, C, u, u)."""
        shown = self.encoder.scatter(torch.ones_like(features[:, :1]), keep)
        filled = self.encoder.scatter(features, keep) + (1 - shown) * self.mask_tokens[level]
        return self.projections[level](filled)
