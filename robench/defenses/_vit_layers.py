"""The layers of vision transformers.

The names of weights, the initial weights and every bit of the outputs are those of timm 1.0, whose import takes longer
than that of torch.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

# A norm of tokens from their width, such as `partial(nn.LayerNorm, eps=1e-6)`.
Norm = Callable[[int], nn.Module]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        channels_last = input.permute(0, 2, 3, 1)
        normalized = layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normalized.permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Patches of an image as tokens, (N, C, S, S) -> (N, patches, width).

    Args:
        strict: whether images of other sizes are refused.
    """

    def __init__(
        self, image_size: int, patch_size: int, channels: int = 3, width: int = 768, strict: bool = True
    ):
        super().__init__()
        side = image_size // patch_size
        self.img_size = (image_size, image_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (side, side)
        self.num_patches = side * side
        self.strict, self.width = strict, width
        self.proj: Any = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        if self.strict:
            for side, expected in zip(self.img_size, (x.shape[2], x.shape[3]), strict=True):
                # Not an `if`, so that the network can be traced.
                torch._assert(side == expected, f"images of another size: this network takes {side} px")
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with several heads, (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"{width=} must be a multiple of {heads=}")
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = (
            self.qkv(x).reshape(n, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        )
        query, key, value = parts.unbind(0)
        mixed = scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training, a branch is zero for a random part of the images (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.drop_prob = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * kept.div_(1 - self.drop_prob) if self.drop_prob < 1 else x * kept


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside a residual connection.

    Args:
        drop_path: rate of stochastic depth, in training only.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        norm_layer: Norm = nn.LayerNorm,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = norm_layer(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


@torch.no_grad()
def _normal(weight: Tensor, std: float = 0.02) -> None:
    """Draw weights from a normal distribution, the same from a seed under any release of torch and timm."""
    weight.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)


class VisionTransformer(nn.Module):
    """A ViT with a class token and learned position embeddings, (N, 3, S, S) -> (N, K).

    Args:
        pool: "avg" to classify the normalized mean of the patch tokens, "token" the class token.
        norm_layer: of the tokens behind the blocks.
    """

    def __init__(
        self, patch_embed: PatchEmbed, blocks: Iterable[Block], num_classes: int, pool: str, norm_layer: Norm
    ):
        super().__init__()
        self.pool, self.embed_dim = pool, patch_embed.width
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patch_embed.num_patches, self.embed_dim))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if pool == "avg" else norm_layer(self.embed_dim)
        self.fc_norm = norm_layer(self.embed_dim) if pool == "avg" else nn.Identity()
        self.head = nn.Linear(self.embed_dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        _normal(self.pos_embed)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The tokens after the last block, the class token first, (N, 1 + patches, width)."""
        patches = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.forward_features(x)
        pooled = tokens[:, 1:].mean(dim=1) if self.pool == "avg" else tokens[:, 0]
        return self.head(self.fc_norm(pooled))
