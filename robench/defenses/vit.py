"""The vision transformer of MIMIR's fine-tuned checkpoints, built from timm's layers.

Xu et al., "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness", arXiv
2312.04960; Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.
"""

from functools import partial

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robench.core import registry
from robench.defenses._base import Defense


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
) -> Defense:
    """ViT that classifies the normalised average of its patch tokens; pixels are not normalised.

    The state has the keys of a checkpoint that MIMIR's official code writes after fine-tuning: class token,
    biased qkv, LayerNorm eps 1e-6, `fc_norm`, no `norm`. The features are the tokens after the last block,
    the class token first, (N, tokens + 1, width).

    Args:
        width, depth, heads: of the encoder; the MIMIR paper's T, S, B are 192/384/768, 12, 3/6/12.
        drop_path: rate of stochastic depth in the last block, in training only.

    Raises:
        ValueError: for sizes that do not divide.
    """
    if image_size % patch_size or width % heads:
        raise ValueError(f"{image_size=} and {width=} must be multiples of {patch_size=} and {heads=}")
    network = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=num_classes,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path,
        qkv_bias=True,
        class_token=True,
        global_pool="avg",
        fc_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return Defense(network, num_classes=num_classes, image_size=image_size)
