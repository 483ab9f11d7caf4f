"""Encoders of the masked autoencoder: one for each kind of network, chosen by the network's class."""

from collections.abc import Callable

from timm.models.cait import Cait
from timm.models.convit import ConVit
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from robench.defenses._patches import sincos_positions
from robench.training.encoders._base import Encoder, patchify
from robench.training.encoders.cait import CaiTEncoder
from robench.training.encoders.convit import ConViTEncoder
from robench.training.encoders.convnext import ConvNeXtEncoder
from robench.training.encoders.swin import SwinEncoder
from robench.training.encoders.vit import ViTEncoder

__all__ = ["ENCODERS", "Encoder", "encoder_of", "patchify", "sincos_positions"]

ENCODERS: dict[type[nn.Module], Callable[..., Encoder]] = {
    VisionTransformer: ViTEncoder,
    ConVit: ConViTEncoder,
    Cait: CaiTEncoder,
    SwinTransformer: SwinEncoder,
    ConvNeXt: ConvNeXtEncoder,
}


def encoder_of(network: nn.Module, image_size: int | None = None) -> Encoder:
    """The encoder that runs `network` on visible patches, its weights shared.

    Args:
        image_size: side of the images, in pixels, for a network that does not know it.

    Raises:
        ValueError: for a network of another kind, or one of a shape that cannot be masked.
    """
    for kind, encoder in ENCODERS.items():
        if isinstance(network, kind):
            return encoder(network, image_size)
    known = ", ".join(kind.__name__ for kind in ENCODERS)
    raise ValueError(f"masked pre-training knows no {type(network).__name__}: expected one of timm's {known}")
