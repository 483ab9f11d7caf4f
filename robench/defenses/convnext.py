"""ConvNeXt, built from timm's layers.

Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545; one of the networks that MIMIR (arXiv 2312.04960)
pre-trains.
"""

from timm.models.convnext import ConvNeXt

from robench.core import registry
from robench.defenses._base import Defense


@registry.defenses.register("convnext")
def convnext(
    image_size: int = 224,
    patch_size: int = 4,
    width: int = 96,
    depths: tuple[int, ...] = (3, 3, 9, 3),
    num_classes: int = 1000,
    drop_path: float = 0.0,
) -> Defense:
    """ConvNeXt that averages its last feature map; pixels are not normalized.

    The features are the last feature map before the average and its norm, (N, 8 * width, side, side).

    Args:
        patch_size: patch size of the first layer, 4 in the paper; with 1, the last feature map of small images has an
            eighth of their side.
        width: channels of the first stage; each of the four has twice as many as the one before.
        depths: blocks of each stage. The default is T; S has depths (3, 3, 27, 3), and B also has width 128.
        drop_path: rate of stochastic depth in the last block, for training only.

    Raises:
        ValueError: if there are not four stages, or if the network's stride does not divide the image size.
    """
    if len(depths) != 4:
        raise ValueError(f"{depths=}: expected four stages")
    network = ConvNeXt(
        num_classes=num_classes,
        depths=tuple(depths),
        dims=tuple(width * 2**stage for stage in range(4)),
        patch_size=patch_size,
        drop_path_rate=drop_path,
    )
    stride = int(network.feature_info[-1]["reduction"])
    if image_size % stride:
        raise ValueError(f"{image_size=} must be a multiple of {stride}, the network's stride")
    return Defense(network, num_classes=num_classes, image_size=image_size)
