"""MAEP: "Adversarial Masked Autoencoder Purifier" (arXiv 2501.16904), a masked ViT autoencoder before a classifier.

The paper has no public code, and the sizes of its network are not known here, so the defaults are our choice. It is
also our choice that the decoder predicts the pixels, rather than a correction to the image.
"""

from functools import partial

import torch
from torch import Tensor, nn

from robench._moved import old_arguments
from robench.core import registry
from robench.defenses._image_size import FixedSizePurifier, resized
from robench.defenses._patches import pick, sincos_positions, unpatchify
from robench.defenses._vit_layers import Block


@registry.purifiers.register("maep")
@old_arguments(fit="size_mode")
class MAEP(FixedSizePurifier):
    """Encodes all patches of an image and decodes them to a purified image, deterministically and in one pass.

    The state has the key names of MAE's official code (arXiv 2111.06377); positions are fixed sine and cosine
    embeddings. Pixels are not normalized. The output is clipped to [0, 1], so pixels outside this range have no
    gradient.

    Args:
        image_size: side of the training images.
        width, depth, heads: size of the encoder.
        decoder_width, decoder_depth, decoder_heads: size of the decoder.
        mlp_ratio: hidden width of each block's MLP, as a multiple of the width.
        size_mode: how images of another size are handled, see `FixedSizePurifier`.

    Raises:
        ValueError: for sizes that do not divide, or an unknown `size_mode`.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        decoder_width: int = 128,
        decoder_depth: int = 4,
        decoder_heads: int = 4,
        mlp_ratio: float = 4.0,
        size_mode: str = "exact",
    ):
        super().__init__(image_size, patch_size, size_mode)
        sizes = {"patch_size": patch_size, "heads": heads, "decoder_heads": decoder_heads, "depth": depth}
        sizes |= {"decoder_depth": decoder_depth, "width": width, "decoder_width": decoder_width}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"{image_size=} must be a multiple of {patch_size=}")
        if width % heads or decoder_width % decoder_heads:
            raise ValueError(
                f"{width=} and {decoder_width=} must be multiples of {heads=} and {decoder_heads=}"
            )
        self.patch_size = patch_size
        norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm)
        side = image_size // patch_size
        self.patch_embed = _PatchEmbed(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(width, side))
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed: Tensor
        self.register_buffer("decoder_pos_embed", sincos_positions(decoder_width, side))
        self.decoder_blocks = nn.ModuleList(block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, 3 * patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        """Initialize as MAE does: Xavier uniform for linear layers and the patch embedding."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def purify(self, x: Tensor) -> Tensor:
        """See `FixedSizePurifier.purify`."""
        return unpatchify(self.pixels(x), self.patch_size).clamp(0, 1)

    def pixels(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """The decoder's prediction of every patch's pixels, not clipped.

        Args:
            x: (N, 3, S, S) in [0, 1].
            keep: the visible patches, (N, visible) int64, numbered row by row; the others are predicted. None for all.

        Returns:
            (N, patches, 3 * patch_size ** 2), each patch in the order of `patchify`.
        """
        side = x.shape[-1] // self.patch_size
        positions = resized(self.pos_embed, side)
        tokens = self.patch_embed(x) + positions[:, 1:]
        if keep is not None:
            tokens = pick(tokens, keep)
        first = (self.cls_token + positions[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_embed(self.norm(tokens))
        if keep is not None:
            blank = self.mask_token.to(tokens.dtype).expand(len(x), side**2, -1)
            place = keep[:, :, None].expand(-1, -1, tokens.shape[2])
            tokens = torch.cat([tokens[:, :1], blank.scatter(1, place, tokens[:, 1:])], 1)
        tokens = tokens + resized(self.decoder_pos_embed, side)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]


class _PatchEmbed(nn.Module):
    """A linear layer on each patch's pixels, with MAE's parameter names."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)
