"""ConViT, built from timm's layers.

d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", arXiv
2103.10697; fine-tuned as in MIMIR (arXiv 2312.04960).
"""

from typing import Any

from timm.models.convit import GPSA, ConVit

from robench.core import registry
from robench.defenses._base import Defense


@registry.defenses.register("convit")
def convit(
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 192,
    depth: int = 12,
    heads: int = 4,
    local: int = 10,
    num_classes: int = 1000,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
) -> Defense:
    """ConViT that classifies its class token; pixels are not normalized.

    The state has the keys of MIMIR's fine-tuned checkpoints: queries, keys and values have no bias, and only patches
    have positions. The features are the tokens after the last norm, the class token first, (N, tokens + 1, width).

    Args:
        width, heads: T, S and B of the MIMIR paper have 48 channels per head and 4, 9, 16 heads.
        local: number of initial blocks with gated positional self-attention; the class token is added after them.
        drop_path: rate of stochastic depth in the last block, for training only.

    Raises:
        ValueError: for sizes that do not divide, or if no block follows the local ones.
    """
    if image_size % patch_size or width % heads:
        raise ValueError(f"{image_size=} and {width=} must be multiples of {patch_size=} and {heads=}")
    if not 0 <= local < depth:
        raise ValueError(f"{local=}: expected at least 0 and fewer than {depth=}")
    network = ConVit(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width // heads,  # timm multiplies by the heads
        depth=depth,
        num_heads=heads,
        num_classes=num_classes,
        mlp_ratio=mlp_ratio,
        local_up_to_layer=local,
        drop_path_rate=drop_path,
    )
    for module in network.modules():
        if isinstance(module, GPSA):
            # timm fills these on the first call. As a buffer filled here, they follow the network to any device,
            # and a first call under inference mode is safe.
            gated: Any = module
            grid = gated.get_rel_indices(network.num_patches)
            del gated.rel_indices
            gated.register_buffer("rel_indices", grid, persistent=False)
    return Defense(network, num_classes=num_classes, image_size=image_size)
