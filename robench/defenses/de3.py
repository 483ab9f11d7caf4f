"""De^3: a purifier that adds noise to an image and then denoises it.

You et al., "Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense", arXiv 2302.01056. The
encoder and decoder form a masked autoencoder (He et al., arXiv 2111.06377) trained to predict clean patches from
noisy ones (NIM) or from a part of them (MIM). This implementation follows what is known of the official code, not
the paper's text.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robench._moved import old_arguments
from robench.core import registry
from robench.core.rng import normal_like, uniform_like
from robench.defenses._image_size import FixedSizePurifier, resized
from robench.defenses._patches import pick, sincos_positions
from robench.defenses._vit_layers import Block, PatchEmbed

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Seen:
    """Input of the encoder for a batch.

    Attributes:
        x: (N, 3, H, W), images in [0, 1] plus noise, not clipped.
        order: (N, patches) int64, the patches of each image, visible ones first; None if all are visible.
        visible: number of visible patches.
    """

    x: Tensor
    order: Tensor | None
    visible: int


def noisy(x: Tensor, sigma: float | Tensor, patches: int) -> Seen:
    """Add Gaussian noise; every patch is visible.

    Args:
        x: (N, 3, H, W) in [0, 1].
        sigma: standard deviation in units of 1/255; one number, or one per image, (N,).
    """
    if isinstance(sigma, Tensor):
        return Seen(x + sigma.to(x).view(-1, 1, 1, 1) / 255 * normal_like(x), None, patches)
    return Seen(x + sigma / 255 * normal_like(x) if sigma else x, None, patches)


def masked(x: Tensor, sigma: float | Tensor, patches: int) -> Seen:
    """Hide a random part of the patches.

    Args:
        sigma: percentage of hidden patches, one number for all images; at least one patch stays visible.
    """
    ratio = float(sigma) / 100
    if not ratio:
        return Seen(x, None, patches)
    order = uniform_like(x.new_empty(len(x), patches)).argsort(1)
    return Seen(x, order, max(1, int(patches * (1 - ratio))))


NOISES: dict[str, Callable[[Tensor, float | Tensor, int], Seen]] = {"gaussian": noisy, "mask": masked}
STATISTICS = ("input", "noisy", "predicted")


@registry.purifiers.register("de3")
@old_arguments(fit="size_mode")
class DE3(FixedSizePurifier):
    """Adds noise, denoises with an autoencoder of ViTs, and restores the mean and standard deviation of each patch.

    Maps images (N, 3, H, W) in [0, 1] to images of the same shape and range in one pass. The decoder predicts
    patches with mean 0 and standard deviation 1, so their statistics must be restored. As in the official code, they
    are taken from the image before the noise. An attacker who changes the mean or standard deviation of a patch
    therefore bypasses the denoiser, without noise and with an exact gradient. The other two values of `statistics`
    prevent this; they are our choices, as are the statistics of hidden patches under "noisy".

    The state has the official MAE's keys, and patches have MAE's pixel order (channel last); `statistics_head` adds
    `decoder_statistics`.

    Args:
        image_size, patch_size: side of the images and of a patch, in pixels.
        width, depth, heads, decoder_width, decoder_depth, decoder_heads: sizes of the two ViTs; the defaults are
            those of MAE for ViT-B/16.
        sigma: noise at test time: its standard deviation in units of 1/255, or the percentage of hidden patches; 0 for
            none.
        noise: "gaussian", or "mask" for the variant that hides patches (MIM).
        statistics: source of the mean and standard deviation of a patch: "input", the image before the noise; "noisy",
            the image after it (hidden patches get the average of the visible ones); "predicted", a linear head on the
            tokens of the decoder, so that nothing bypasses the denoiser.
        statistics_head: whether the network has this head.
        mean, std: one number per channel, subtracted and divided by before the encoder.
        size_mode: how images of another size are handled, see `FixedSizePurifier`.

    Raises:
        ValueError: for sizes that do not divide, a negative sigma, a mask that hides everything, an unknown noise or
            statistics, or predicted statistics without the head.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        sigma: float = 70.0,
        noise: str = "gaussian",
        statistics: str = "input",
        statistics_head: bool = False,
        mean: tuple[float, ...] = _IMAGENET_MEAN,
        std: tuple[float, ...] = _IMAGENET_STD,
        size_mode: str = "exact",
    ):
        super().__init__(image_size, patch_size, size_mode)
        sizes = {"patch_size": patch_size, "width": width, "heads": heads}
        sizes |= {"decoder_width": decoder_width, "decoder_heads": decoder_heads}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"{image_size=}: expected a multiple of {patch_size=}")
        for side, count in ((width, heads), (decoder_width, decoder_heads)):
            if side % count:
                raise ValueError(f"a width of {side} cannot be split into {count} heads")
        if noise not in NOISES:
            raise ValueError(f"{noise=}: expected one of {', '.join(NOISES)}")
        if statistics not in STATISTICS:
            raise ValueError(f"{statistics=}: expected one of {', '.join(STATISTICS)}")
        if statistics == "predicted" and not statistics_head:
            raise ValueError(f"{statistics=} needs a network that was trained with statistics_head=True")
        if not 0 <= sigma < math.inf:
            raise ValueError(f"{sigma=}: expected a finite number, at least 0")
        if noise == "mask" and sigma >= 100:
            raise ValueError(f"{sigma=} hides every patch: a mask needs a sigma below 100")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"{mean=} and {std=}: expected three numbers each, every std above 0")
        self.patch_size = patch_size
        self.sigma, self.noise, self.statistics = float(sigma), noise, statistics
        self.stochastic = sigma > 0
        side = image_size // patch_size
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

        norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, width, strict=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = _fixed(sincos_positions(width, side))
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = _fixed(sincos_positions(decoder_width, side))
        self.decoder_blocks = nn.ModuleList(block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch_size**2 * 3)
        self.decoder_statistics = nn.Linear(decoder_width, 2) if statistics_head else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.view(len(projection), -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def purify(self, x: Tensor) -> Tensor:
        """Denoise the images with noise of the purifier's sigma."""
        return self.denoise(x, self.sigma)

    def input_noise(self) -> float:
        """See `Purifier.input_noise`."""
        if self.noise != "gaussian" or not self.sigma:
            raise ValueError(f"it adds no Gaussian noise (noise={self.noise!r}, sigma={self.sigma:g})")
        if self.statistics == "input":
            raise ValueError(
                'with statistics="input" the mean and deviation of each patch are taken from the image before the '
                'noise, which voids a certificate: choose statistics="predicted" or "noisy"'
            )
        return self.sigma / 255

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Denoise the images with noise of a given sigma: one number, or for Gaussian noise one per image."""
        seen = self.corrupt(x, sigma)
        tokens = self.tokens(seen)
        mean, deviation = self._statistics(x, seen, tokens)
        return self.images(self.decoder_pred(tokens) * deviation + mean).clamp(0, 1)

    def corrupt(self, x: Tensor, sigma: float | Tensor) -> Seen:
        """Input of the encoder for `x` at a given sigma."""
        return NOISES[self.noise](x, sigma, (x.shape[-1] // self.patch_size) ** 2)

    def tokens(self, seen: Seen) -> Tensor:
        """Decoder tokens of all patches, (N, patches, decoder_width), after its last LayerNorm."""
        side = seen.x.shape[-1] // self.patch_size
        positions = resized(self.pos_embed, side)
        tokens = self.patch_embed((seen.x - self.mean) / self.std) + positions[:, 1:]
        if seen.order is not None:
            tokens = pick(tokens, seen.order[:, : seen.visible])
        first = (self.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_embed(self.norm(tokens))
        if seen.order is not None:
            blanks = self.mask_token.expand(len(tokens), side**2 - seen.visible, -1)
            back = pick(torch.cat([tokens[:, 1:], blanks], 1), seen.order.argsort(1))
            tokens = torch.cat([tokens[:, :1], back], 1)
        tokens = tokens + resized(self.decoder_pos_embed, side)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens)[:, 1:]

    def predicted(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and positive deviation of each clean patch as predicted by the head, (N, patches, 1) each."""
        assert self.decoder_statistics is not None
        mean, raw = self.decoder_statistics(tokens).split(1, dim=2)
        return mean, nn.functional.softplus(raw)

    def _statistics(self, x: Tensor, seen: Seen, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.statistics == "predicted":
            return self.predicted(tokens)
        statistics = statistics_of(self.pixels(x if self.statistics == "input" else seen.x))
        if self.statistics == "input" or seen.order is None:
            return statistics
        shown = seen.order.argsort(1)[:, :, None] < seen.visible
        mean, deviation = (
            torch.where(shown, values, (values * shown).sum(1, keepdim=True) / seen.visible)
            for values in statistics
        )
        return mean, deviation

    def pixels(self, x: Tensor) -> Tensor:
        """The normalized pixels of each patch, (N, 3, H, W) -> (N, patches, patch * patch * 3)."""
        x, p = (x - self.mean) / self.std, self.patch_size
        side = x.shape[-1] // p
        x = x.view(len(x), 3, side, p, side, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), side**2, p * p * 3)

    def images(self, pixels: Tensor) -> Tensor:
        """Images with the given normalized pixels; the inverse of `pixels`."""
        p, n = self.patch_size, len(pixels)
        side = math.isqrt(pixels.shape[1])
        x = pixels.view(n, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(n, 3, side * p, side * p) * self.std + self.mean

    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder's weights for a classifier that takes unnormalized images in [0, 1].

        The normalization is folded into the patch embedding. The last LayerNorm is left out, since the classifier
        replaces it by a new `fc_norm`.
        """
        outside = ("decoder_", "mask_token", "norm.")
        state = {key: value for key, value in self.state_dict().items() if not key.startswith(outside)}
        weight = state["patch_embed.proj.weight"] / self.std
        state["patch_embed.proj.bias"] = state["patch_embed.proj.bias"] - (weight * self.mean).sum((1, 2, 3))
        state["patch_embed.proj.weight"] = weight
        return state


def statistics_of(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, (N, patches, 1) each; the variance is unbiased, plus 1e-6, as in MAE."""
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def _fixed(values: Tensor) -> nn.Parameter:
    """Positions, which are untrained parameters in MAE."""
    return nn.Parameter(values, requires_grad=False)
