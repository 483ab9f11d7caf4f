"""Masked autoencoder: an encoder of the visible patches and a decoder that predicts the hidden ones.

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377, section 3, in the form that MIMIR
(arXiv 2312.04960) pre-trains. `encoders` has the encoder of each architecture.
"""

from functools import partial
from typing import Any

import torch
from timm.models.convit import GPSA
from torch import Tensor, nn

from robench.training.encoders import encoder_of, patchify, sincos_positions


def random_order(n: int, patches: int, device: torch.device) -> Tensor:
    """A random order of the patches for each image, (n, patches) int64; the first patches stay visible."""
    return torch.rand(n, patches, device=device).argsort(1)


def reconstruction(prediction: Tensor, target: Tensor, hidden: Tensor, patch: int) -> Tensor:
    """Mean squared error on the hidden patches, with each patch of `target` normalised separately.

    Args:
        prediction: (N, patches, 3 * patch * patch).
        target: images (N, 3, H, W); patches are normalised with the unbiased variance plus 1e-6.
        hidden: indices of the hidden patches, (N, hidden).
    """
    pixels = patchify(target, patch)
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    normalised = (pixels - mean) / (variance + 1e-6).sqrt()
    errors = (prediction - normalised).square().mean(2)
    return errors.gather(1, hidden).mean()


class MaskedAutoencoder(nn.Module):
    """An encoder of the visible patches and a small decoder that predicts the hidden ones.

    Args:
        network: a classifier whose layers below the head are trained in place: a timm ViT, ConViT, CaiT, Swin
            or ConvNeXt. Absolute position embeddings start as sine-cosine ones, as in the MAE paper.
        decoder_width, decoder_depth, decoder_heads: size of the decoder.
        mask_ratio: fraction of patches hidden.
        image_size: side of the images, for a network that accepts several sizes (ConvNeXt).

    Raises:
        ValueError: if the architecture is not supported, or cannot be masked with these settings.
    """

    def __init__(
        self,
        network: nn.Module,
        decoder_width: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        image_size: int | None = None,
    ):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.encoder = encoder_of(network, image_size)
        self.patch = self.encoder.patch
        self.patches = self.encoder.side**2
        self.visible = max(1, int(self.patches * (1 - mask_ratio)))
        self.encoder.check(self.visible)
        self.decoder_embed = nn.Linear(self.encoder.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            self.encoder.decoder_block(decoder_width, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, self.patch**2 * 3)
        self.decoder_pos_embed: Tensor
        self.register_buffer("decoder_pos_embed", sincos_positions(decoder_width, self.encoder.side))
        self._initialise()

    def _initialise(self) -> None:
        unchanged = set() if self.encoder.redrawn else set(self.encoder.modules())
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in unchanged:
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():  # positional attention is local at first
            if isinstance(module, GPSA):
                attention: Any = module
                attention.local_init()
        self.encoder.start()
        nn.init.normal_(self.mask_token, std=0.02)

    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draw a random order of the patches, (n, patches): one per image, or one for all if the encoder needs it."""
        if self.encoder.one_mask:
            return random_order(1, self.patches, device).expand(n, -1)
        return random_order(n, self.patches, device)

    def encode(self, x: Tensor, order: Tensor) -> Tensor:
        """Encode the visible patches; hidden patches are not computed.

        Args:
            x: (N, 3, H, W) in [0, 1].
            order: (N, patches), from `draw`.

        Returns:
            The class token, if any, and the visible tokens after the last LayerNorm, (N, prefix + visible, width);
            `prefix` is 1 with a class token and 0 without.
        """
        return self.encoder(x, order[:, : self.visible])

    def decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """Predict the normalised pixels of every patch from the visible ones, (N, patches, 3 * patch * patch)."""
        dropped = 0 if self.encoder.decodes_prefix else self.encoder.prefix
        prefix = self.encoder.prefix - dropped
        tokens = self.decoder_embed(latent[:, dropped:])
        mask_tokens = self.mask_token.expand(len(tokens), self.patches - self.visible, -1)
        shuffled = torch.cat([tokens[:, prefix:], mask_tokens], 1)
        restore = order.argsort(1)[:, :, None].expand(-1, -1, tokens.shape[2])
        tokens = torch.cat([tokens[:, :prefix], shuffled.gather(1, restore)], 1)
        tokens = tokens + self.decoder_pos_embed[:, 1 - prefix :]
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, prefix:]

    def reconstruction(self, prediction: Tensor, target: Tensor, order: Tensor) -> Tensor:
        """See `reconstruction`."""
        return reconstruction(prediction, target, order[:, self.visible :], self.patch)

    def forward(self, x: Tensor, target: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of reconstructing `target` from the visible patches of `x`, and the latent tokens."""
        latent = self.encode(x, order)
        return self.reconstruction(self.decode(latent, order), target, order), latent
