"""CaiT, built from timm's layers.

Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239; fine-tuned as in
MIMIR (arXiv 2312.04960).
"""

from timm.models.cait import Cait

from robench.core import registry
from robench.defenses._base import Defense


def layer_scale(depth: int) -> float:
    """Initial scale of the residual branches: 1e-5 up to 24 blocks, 1e-6 beyond.

    These are CaiT's values for networks of 24 and 36 blocks (arXiv 2103.17239, section 2). Using the value of 24 blocks
    for shallower networks is our choice.
    """
    return 1e-5 if depth <= 24 else 1e-6


@registry.defenses.register("cait")
def cait(
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 192,
    depth: int = 24,
    heads: int = 4,
    class_depth: int = 2,
    num_classes: int = 1000,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
) -> Defense:
    """CaiT: talking-heads blocks on the patches, then class-attention blocks; pixels are not normalized.

    The state has the keys of MIMIR's fine-tuned checkpoints. The features are the tokens after the last
    norm, the class token first, (N, tokens + 1, width).

    Args:
        width, depth, heads: 192, 24, 4 for XXS24 and 384, 36, 8 for S36.
        class_depth: number of class-attention blocks.
        drop_path: rate of stochastic depth in every block, for training only.

    Raises:
        ValueError: for sizes that do not divide.
    """
    if image_size % patch_size or width % heads:
        raise ValueError(f"{image_size=} and {width=} must be multiples of {patch_size=} and {heads=}")
    network = Cait(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        depth_token_only=class_depth,
        num_classes=num_classes,
        mlp_ratio=mlp_ratio,
        mlp_ratio_token_only=mlp_ratio,
        init_values=layer_scale(depth),
        drop_path_rate=drop_path,
    )
    return Defense(network, num_classes=num_classes, image_size=image_size)
