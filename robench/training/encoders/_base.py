"""What the masked autoencoder asks of an encoder, and the pieces that several encoders share."""

from torch import Tensor, nn

from robench.defenses._patches import patchify, pick, sincos_positions

__all__ = ["Encoder", "embed", "patchify", "pick", "require", "sincos_positions", "visible_images"]


class Encoder(nn.Module):
    """A classifier's network, run on the visible patches of images alone.

    A patch here is what is hidden or shown as a whole, and what the decoder guesses: a ViT's own patch, or the
    pixels under one position of the last feature map of a hierarchical network.

    Args:
        network: trained in place; its head is not used.
        patch: side of a patch, in pixels.
        side: patches a side of the image.
        width: D.

    Attributes:
        prefix: tokens that come before those of the patches, 1 with a class token.
        one_mask: whether all images of a batch must share the visible patches.
        redrawn: whether the network's linear maps start as MAE's do (arXiv 2111.06377), by Xavier uniform;
            otherwise they start as timm leaves them, which is our choice.
    """

    prefix = 0
    one_mask = False
    redrawn = False

    def __init__(self, network: nn.Module, patch: int, side: int, width: int):
        super().__init__()
        self.network = network
        self.patch = patch
        self.side = side
        self.width = width

    def start(self) -> None:
        """Draw or set what the pre-training starts from, beside the linear maps."""

    def check(self, visible: int) -> None:
        """Raise ValueError if the encoder cannot work on this number of visible patches."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Tokens after the last LayerNorm, computed from the visible patches alone.

        Args:
            x: (N, 3, H, W) in [0, 1].
            keep: the visible patches of each image, (N, visible) int64, numbered row by row.

        Returns:
            (N, prefix + visible, D), the patches in the order of `keep`.
        """
        raise NotImplementedError


def visible_images(x: Tensor, keep: Tensor, patch: int) -> Tensor:
    """The visible patches as images of their own, (N, C, H, W) -> (N * visible, C, patch, patch)."""
    return pick(patchify(x, patch), keep).reshape(-1, x.shape[1], patch, patch)


def embed(network: nn.Module, x: Tensor, keep: Tensor, patch: int) -> Tensor:
    """The tokens of the visible patches by a ViT-like network's own patch embedding, (N, visible, D)."""
    projection = network.get_submodule("patch_embed.proj")
    weight, bias = projection.get_parameter("weight"), getattr(projection, "bias", None)
    pixels = patchify(x, patch)
    return nn.functional.linear(pick(pixels, keep), weight.flatten(1), bias)


def require(holds: bool, what: str) -> None:
    """Raise ValueError, saying `what` masked pre-training needs."""
    if not holds:
        raise ValueError(f"masked pre-training needs {what}")
