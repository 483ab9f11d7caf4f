"""Interface of the masked autoencoder's encoders, and functions that several encoders use."""

from functools import partial

import torch
from torch import Tensor, nn

from robench.defenses._patches import patchify, pick, sincos_positions
from robench.defenses._vit_layers import Block

__all__ = [
    "Encoder",
    "embed",
    "patchify",
    "pick",
    "require",
    "sincos_positions",
    "start_embedding",
    "visible_images",
]


class Encoder(nn.Module):
    """A classifier's network that is run on the visible patches of images only.

    Patches are the units of masking and of the decoder's predictions: a ViT's patches, or the pixels under one
    position of the last feature map of a hierarchical network.

    Args:
        network: trained in place; its head is not used.
        patch: side of a patch in pixels.
        side: number of patches along each side of the image.
        width: number of features per token, D.

    Attributes:
        prefix: number of tokens before those of the patches; 1 with a class token.
        one_mask: whether all images of a batch must have the same visible patches.
        redrawn: whether linear layers are reinitialized by Xavier uniform, as MAE does (arXiv 2111.06377).
        decodes_prefix: whether the decoder receives the tokens before those of the patches.
    """

    prefix = 0
    one_mask = False
    redrawn = True
    decodes_prefix = True

    def __init__(self, network: nn.Module, patch: int, side: int, width: int):
        super().__init__()
        self.network = network
        self.patch = patch
        self.side = side
        self.width = width

    def start(self) -> None:
        """Initialize everything except the linear layers for pre-training."""

    def decoder_block(self, width: int, heads: int) -> nn.Module:
        """A block of the decoder, from tokens (N, T, width) to tokens of the same shape."""
        return Block(width, heads, 4.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))

    def check(self, visible: int) -> None:
        """Raise ValueError if the encoder does not support this number of visible patches."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Compute the tokens after the last LayerNorm from the visible patches only.

        Args:
            x: (N, 3, H, W) in [0, 1].
            keep: indices of each image's visible patches, (N, visible) int64, in row-major numbering.

        Returns:
            (N, prefix + visible, D), with the patches in the order of `keep`.
        """
        raise NotImplementedError


def visible_images(x: Tensor, keep: Tensor, patch: int) -> Tensor:
    """The visible patches as separate images, (N, C, H, W) -> (N * visible, C, patch, patch)."""
    return pick(patchify(x, patch), keep).reshape(-1, x.shape[1], patch, patch)


def start_embedding(network: nn.Module, side: int) -> None:
    """Initialize the patch embedding, the class token and the positions of a ViT-like network as MAE does.

    The patch embedding is a linear map of a patch's pixels, so it is initialized like a linear layer. Positions start
    as sine-cosine ones.
    """
    projection = network.get_submodule("patch_embed.proj").get_parameter("weight")
    nn.init.xavier_uniform_(projection.view(len(projection), -1))
    nn.init.normal_(network.get_parameter("cls_token"), std=0.02)
    positions = getattr(network, "pos_embed", None)
    if positions is not None:
        with torch.no_grad():
            positions.copy_(sincos_positions(positions.shape[2], side)[:, -positions.shape[1] :])


def embed(network: nn.Module, x: Tensor, keep: Tensor, patch: int) -> Tensor:
    """Embed the visible patches by the patch embedding of a ViT-like network, (N, visible, D)."""
    projection = network.get_submodule("patch_embed.proj")
    weight, bias = projection.get_parameter("weight"), getattr(projection, "bias", None)
    pixels = patchify(x, patch)
    return nn.functional.linear(pick(pixels, keep), weight.flatten(1), bias)


def require(condition: bool, requirement: str) -> None:
    """Raise ValueError unless the condition holds; `requirement` describes what masked pre-training needs."""
    if not condition:
        raise ValueError(f"masked pre-training needs {requirement}")
