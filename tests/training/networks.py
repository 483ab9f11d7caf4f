"""Tiny networks of the same classes as the paper's, for 32 x 32 images: 16 patches, or 64 for the Swin."""

from functools import partial

from timm.models.cait import Cait
from timm.models.convit import ConVit
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

NETWORKS = {
    "vit": partial(
        VisionTransformer,
        32,
        8,
        embed_dim=32,
        depth=3,
        num_heads=2,
        global_pool="avg",
        fc_norm=True,
        num_classes=10,
    ),
    "convit": partial(ConVit, 32, 8, embed_dim=8, depth=4, num_heads=4, local_up_to_layer=3, num_classes=10),
    "cait": partial(Cait, 32, 8, embed_dim=32, depth=3, num_heads=2, init_values=0.1, num_classes=10),
    # Windows of 4 on 16 tokens a side: shifted in every second block of the first two stages.
    "swin": partial(
        SwinTransformer,
        32,
        2,
        embed_dim=16,
        depths=(2, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        drop_path_rate=0.0,
        num_classes=10,
    ),
    "convnext": partial(
        ConvNeXt,
        patch_size=1,
        depths=(1, 1, 2, 1),
        dims=(8, 16, 16, 32),
        kernel_sizes=3,
        ls_init_value=0.1,
        num_classes=10,
    ),
}
