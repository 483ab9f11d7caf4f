"""Encoders of the masked autoencoder, one per architecture, selected by the network's class."""

from collections.abc import Callable

from timm.models.cait import Cait
from timm.models.convit import ConVit
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from robench.defenses._patches import sincos_positions
from robench.defenses._vit_layers import VisionTransformer
from robench.training.encoders._base import Encoder, patchify
from robench.training.encoders.cait import CaiTEncoder
from robench.training.encoders.convit import ConViTEncoder
from robench.training.encoders.convnext import ConvNeXtEncoder
from robench.training.encoders.swin import SwinEncoder
from robench.training.encoders.vit import ViTEncoder

__all__ = ["ENCODERS", "Encoder", "encoder_of", "patchify", "sincos_positions"]

ENCODERS: dict[type[nn.Module], Callable[..., Encoder]] = {
    VisionTransformer: ViTEncoder,
    TimmViT: ViTEncoder,
    ConVit: ConViTEncoder,
    Cait: CaiTEncoder,
    SwinTransformer: SwinEncoder,
    ConvNeXt: ConvNeXtEncoder,
}


def encoder_of(network: nn.Module, image_size: int | None = None) -> Encoder:
    """Create the encoder that runs `network` on visible patches; the weights are shared.

    Args:
        image_size: side of the images in pixels, for a network that accepts several sizes.

    Raises:
        ValueError: if the architecture is not supported, or a network of this shape cannot be masked.
    """
    for network_type, encoder in ENCODERS.items():
        if isinstance(network, network_type):
            return encoder(network, image_size)
    supported = ", ".join(dict.fromkeys(network_type.__name__ for network_type in ENCODERS))
    raise ValueError(
        f"masked pre-training does not support {type(network).__name__}: expected one of timm's {supported}"
    )
