"""The published files of "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal and Nichol 2021, arXiv 2105.05233).

Their network is a `UNet2DModel` of diffusers in other words; this is the dictionary. Theirs counts the blocks of the
way down, and those of the way up, in one row each, and keeps an attention's three matrices in one, head by head.
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
    """The tensors of a file under the names of `network`, a UNet2DModel; a file in another layout as it is."""
    if "input_blocks.0.0.weight" not in state:
        return state
    config: Any = network.config
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _name(key, config.layers_per_block)
        place, parted, last = name.rpartition(".qkv.")
        if not parted:
            # A convolution of one number is the linear map that diffusers has.
            found[name] = tensor.squeeze(-1) if ".to_out." in name and tensor.ndim == 3 else tensor
            continue
        width = len(tensor) // 3
        # Rows: head, then query, key, value, then the head's channels.
        rows = tensor.reshape(width // (config.attention_head_dim or width), 3, -1, *tensor.shape[1:2])
        for i, matrix in enumerate(("to_q", "to_k", "to_v")):
            found[f"{place}.{matrix}.{last}"] = rows[:, i].flatten(0, 1)
    return found


def _name(key: str, layers: int) -> str:
    for theirs, ours in _FIXED.items():
        if key.startswith(theirs):
            return ours + _inside(key.removeprefix(theirs))
    if not (match := _BLOCK.fullmatch(key)):
        return key
    way, number, piece, rest = match[1], int(match[2]), int(match[3]), match[4]
    down = way == "input_blocks"
    # The first block of the way down is the convolution that comes before the levels.
    level, layer = divmod(number - down, layers + 1)
    if _table(rest) is _ATTENTION:
        what = f"attentions.{layer}"
    elif piece or (down and layer == layers):
        what = "downsamplers.0" if down else "upsamplers.0"
    else:
        what = f"resnets.{layer}"
    return f"{'down' if down else 'up'}_blocks.{level}.{what}.{_inside(rest)}"


def _table(rest: str) -> Mapping[str, str]:
    return _ATTENTION if rest.startswith(tuple(_ATTENTION)) else _RESIDUAL


def _inside(rest: str) -> str:
    for theirs, ours in _table(rest).items():
        if rest.startswith(theirs):
            return ours + rest.removeprefix(theirs)
    return rest
