"""Published files of "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal and Nichol 2021, arXiv 2105.05233).

Their network is equivalent to a `UNet2DModel` of diffusers under other names; this module translates them. The
checkpoints number all down blocks, and all up blocks, consecutively, and store queries, keys and values of an attention
layer in one matrix, head by head.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)")
_FIXED = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
_RESIDUAL = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
_ATTENTION = {"norm.": "group_norm.", "proj_out.": "to_out.0.", "qkv.": "qkv."}


def renamed(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Rename a checkpoint's tensors to those of `network`, a UNet2DModel; other layouts are returned unchanged."""
    if "input_blocks.0.0.weight" not in state:
        return state
    config: Any = network.config
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _name(key, config.layers_per_block)
        prefix, separator, last = name.rpartition(".qkv.")
        if not separator:
            # A 1D convolution of kernel size 1 is a linear layer in diffusers.
            tensors[name] = tensor.squeeze(-1) if ".to_out." in name and tensor.ndim == 3 else tensor
            continue
        width = len(tensor) // 3
        # Rows are ordered by head, then query/key/value, then channel.
        rows = tensor.reshape(width // (config.attention_head_dim or width), 3, -1, *tensor.shape[1:2])
        for i, matrix in enumerate(("to_q", "to_k", "to_v")):
            tensors[f"{prefix}.{matrix}.{last}"] = rows[:, i].flatten(0, 1)
    return tensors


def _name(key: str, layers: int) -> str:
    for old, new in _FIXED.items():
        if key.startswith(old):
            return new + _within_block(key.removeprefix(old))
    if not (match := _BLOCK.fullmatch(key)):
        return key
    side, number, index, rest = match[1], int(match[2]), int(match[3]), match[4]
    down = side == "input_blocks"
    # The first input block is the convolution before the levels.
    level, layer = divmod(number - down, layers + 1)
    if _table(rest) is _ATTENTION:
        module = f"attentions.{layer}"
    elif index or (down and layer == layers):
        module = "downsamplers.0" if down else "upsamplers.0"
    else:
        module = f"resnets.{layer}"
    return f"{'down' if down else 'up'}_blocks.{level}.{module}.{_within_block(rest)}"


def _table(rest: str) -> Mapping[str, str]:
    return _ATTENTION if rest.startswith(tuple(_ATTENTION)) else _RESIDUAL


def _within_block(rest: str) -> str:
    for old, new in _table(rest).items():
        if rest.startswith(old):
            return new + rest.removeprefix(old)
    return rest
