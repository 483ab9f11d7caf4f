"""The vision transformer of MIMIR's fine-tuned checkpoints.

Xu et al., "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness", arXiv
2312.04960; Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.
"""

from functools import partial

import torch
from torch import Tensor, nn

from robench.core import registry
from robench.defenses._base import Defense
from robench.defenses._vit_layers import Block, LayerNorm2d, PatchEmbed, VisionTransformer

STEMS = ("patch", "conv")
POOLS = ("avg", "token")
# Channels of the first convolution of a stem, for both ViT-S and ViT-B.
_STEM_WIDTH = 48


class ConvStem(nn.Module):
    """Four convolutions of stride 2 and one of size 1 in place of a patch embedding of 16 pixels.

    Singh et al., "Revisiting Adversarial Training for ImageNet", arXiv 2303.01870. The weights have the names that its
    checkpoints have.

    Args:
        width: channels of the first convolution; each of the next three has twice as many as the one before.
        out: channels of the tokens.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 4 * width, 8 * width):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), LayerNorm2d(outputs, eps=1e-6), nn.GELU()]
            inputs = outputs
        self.stem = nn.Sequential(*layers, nn.Conv2d(inputs, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


@registry.defenses.register("vit")
def vit(
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    num_classes: int = 1000,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    stem: str = "patch",
    pool: str = "avg",
) -> Defense:
    """ViT that classifies the normalized average of its patch tokens; by default, pixels are not normalized.

    The state has the keys of a checkpoint that MIMIR's official code writes after fine-tuning: class token,
    biased qkv, LayerNorm eps 1e-6, `fc_norm`, no `norm`. The features are the tokens after the last block,
    the class token first, (N, tokens + 1, width).

    Args:
        width, depth, heads: size of the encoder; T, S and B of the MIMIR paper have 192/384/768, 12 and 3/6/12.
        drop_path: rate of stochastic depth in the last block, for training only.
        mean, std: one number per channel for networks that were trained on normalized pixels, such as the classifiers
            of De^3.
        stem: "patch", or "conv" for convolutions, as in Singh et al., arXiv 2303.01870, for patches of 16 pixels.
        pool: "avg", or "token" to classify the class token, whose state has `norm` and no `fc_norm`.

    Raises:
        ValueError: for sizes that do not divide, or an unknown stem or pool.
    """
    for name, value, known in (("stem", stem, STEMS), ("pool", pool, POOLS)):
        if value not in known:
            raise ValueError(f'{name}="{value}": expected one of {", ".join(known)}')
    if stem == "conv" and patch_size != 16:
        raise ValueError(f'{patch_size=}: stem="conv" has patches of 16 pixels')
    if image_size % patch_size or width % heads:
        raise ValueError(f"{image_size=} and {width=} must be multiples of {patch_size=} and {heads=}")
    norm = partial(nn.LayerNorm, eps=1e-6)
    patches = PatchEmbed(image_size, patch_size, width=width)
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    blocks = [Block(width, heads, mlp_ratio, True, norm, rate) for rate in rates]
    network = VisionTransformer(patches, blocks, num_classes, pool, norm)
    if stem == "conv":
        network.patch_embed.proj = ConvStem(_STEM_WIDTH, width)
    return Defense(
        network, num_classes=num_classes, image_size=image_size, mean=mean or None, std=std or None
    )
