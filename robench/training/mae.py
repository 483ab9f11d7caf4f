"""The masked autoencoder around a ViT.

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377, section 3, in the shape that
MIMIR (arXiv 2312.04960) pre-trains.
"""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed sine and cosine positions of a square grid, a row of zeros first for the class token.

    Half of the width tells the column and half the row, each as in "Attention Is All You Need" (arXiv
    1706.03762, section 3.5). Shape (1, side * side + 1, width); width a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine and cosine positions need a width that is a multiple of 4: got {width}")
    wave = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * wave
    one_axis = torch.cat([angle.sin(), angle.cos()], 1)
    across = one_axis[None, :, :].expand(side, side, -1)
    down = one_axis[:, None, :].expand(side, side, -1)
    grid = torch.cat([across, down], 2).reshape(side * side, width)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid])[None].float()


def patchify(x: Tensor, patch: int) -> Tensor:
    """The pixels of each patch, (N, C, H, W) -> (N, patches, C * patch * patch), row by row."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), c * patch * patch)


def random_order(n: int, patches: int, device: torch.device) -> Tensor:
    """A random order of the patches for every image, (n, patches) int64: the first ones stay visible."""
    return torch.rand(n, patches, device=device).argsort(1)


class MaskedAutoencoder(nn.Module):
    """An encoder that sees a few patches, and a small decoder that guesses the rest.

    Args:
        encoder: whose patch embedding, class token, positions and blocks are trained in place. Its positions
            become fixed sine and cosine ones, as in the MAE paper; fine-tuning is free to change them.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        mask_ratio: the part of the patches that is hidden.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder_width: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
    ):
        super().__init__()
        if not isinstance(encoder.pos_embed, Tensor) or not isinstance(encoder.cls_token, Tensor):
            raise ValueError("masked pre-training needs a ViT with a class token and learned positions")
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.encoder = encoder
        self.patch: int = encoder.patch_embed.patch_size[0]
        side: int = encoder.patch_embed.grid_size[0]
        self.patches = side * side
        self.visible = max(1, int(self.patches * (1 - mask_ratio)))
        width: int = encoder.embed_dim
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        make_norm: Any = norm  # timm calls it, and types it as a class
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, 4.0, qkv_bias=True, norm_layer=make_norm)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, self.patch**2 * 3)
        self.decoder_pos_embed: Tensor
        self.register_buffer("decoder_pos_embed", sincos_positions(decoder_width, side))
        self._initialise(sincos_positions(width, side))

    @property
    def _outset(self) -> tuple[Tensor, Tensor]:
        """The encoder's class token and positions, which timm types as optional."""
        token, positions = self.encoder.cls_token, self.encoder.pos_embed
        assert token is not None and positions is not None
        return token, positions

    def _initialise(self, positions: Tensor) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # A patch embedding is a linear map of a patch's pixels, so it is initialised as one.
        projection = self.encoder.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        token, own_positions = self._outset
        nn.init.normal_(token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        with torch.no_grad():
            own_positions.copy_(positions)
        own_positions.requires_grad_(False)

    def encode(self, x: Tensor, order: Tensor) -> Tensor:
        """Class token and visible tokens after the last LayerNorm; hidden patches are never computed.

        Args:
            x: (N, 3, H, W) in [0, 1].
            order: (N, patches), from `random_order`.

        Returns:
            (N, 1 + visible, width).
        """
        encoder = self.encoder
        keep = order[:, : self.visible, None]
        pixels = patchify(x, self.patch)
        pixels = pixels.gather(1, keep.expand(-1, -1, pixels.shape[2]))
        projection = encoder.patch_embed.proj
        tokens = F.linear(pixels, projection.weight.flatten(1), projection.bias)
        token, positions = self._outset
        places = positions[:, 1:].expand(len(x), -1, -1)
        tokens = tokens + places.gather(1, keep.expand(-1, -1, tokens.shape[2]))
        first = (token + positions[:, :1]).expand(len(x), -1, -1)
        return self.norm(encoder.blocks(torch.cat([first, tokens], 1)))

    def decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """Every patch's normalised pixels guessed from the visible ones, (N, patches, 3 * patch * patch)."""
        tokens = self.decoder_embed(latent)
        blanks = self.mask_token.expand(len(tokens), self.patches - self.visible, -1)
        shuffled = torch.cat([tokens[:, 1:], blanks], 1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, tokens.shape[2])
        tokens = torch.cat([tokens[:, :1], shuffled.gather(1, back)], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def reconstruction(self, guess: Tensor, target: Tensor, order: Tensor) -> Tensor:
        """Mean squared error on the hidden patches, each patch of `target` normalised by itself.

        Args:
            guess: from `decode`.
            target: images (N, 3, H, W); a patch's variance is unbiased, plus 1e-6.
        """
        pixels = patchify(target, self.patch)
        variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
        wanted = (pixels - mean) / (variance + 1e-6).sqrt()
        errors = (guess - wanted).square().mean(2)
        return errors.gather(1, order[:, self.visible :]).mean()

    def forward(self, x: Tensor, target: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction loss of `target` from the visible patches of `x`, and the latent tokens."""
        latent = self.encode(x, order)
        return self.reconstruction(self.decode(latent, order), target, order), latent
