"""Recognising the network of a checkpoint from the names and shapes of its tensors.

The layouts are those of MIMIR's released checkpoints (arXiv 2312.04960): ViT, ConViT, CaiT and Swin.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robench.core.errors import ResourceError
from robench.core.specs import Spec
from robench.defenses import swin
from robench.defenses._keys import plain_names

State = Mapping[str, Tensor]
Hints = Sequence[Mapping[str, Any]]
Arguments = dict[str, Any]

# Heads do not show in a ViT's shapes. These are the family's tiny, small and base (arXiv 2010.11929, 2012.12877).
VIT_HEADS = {192: 3, 384: 6, 768: 12}
# Of a defense saved whole, of adversarial training under DistributedDataParallel, and of SimMIM.
_PREFIXES = ("classifier.", "module.base_model.", "module.", "encoder.")
_STAGE = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table")


def knows(name: str) -> bool:
    """Whether the builder called `name` gives one of these networks."""
    return name in _KINDS


def unwrapped(state: State) -> dict[str, Tensor]:
    """`state` without the prefixes that wrappers put before its keys; as it is where two would become one."""
    found = plain_names(state)
    for prefix in _PREFIXES:
        bare = {key.removeprefix(prefix): value for key, value in found.items()}
        if len(bare) == len(found):
            found = bare
    return found


def recognise(state: State, hints: Sequence[Spec], path: Path) -> Spec | None:
    """The spec of the network that `state` is of; None when it is of no known kind.

    Args:
        state: of the classifier, from `unwrapped`.
        hints: the specs it may be of, for what the shapes do not tell: a ViT's heads, a Swin's image size.
        path: of the checkpoint, for messages.

    Raises:
        ResourceError: for a pre-trained checkpoint, which has no classifier, or where something follows neither
            from the shapes nor from `hints`.
    """
    check_classifier(state, path)
    for name, (mark, read) in _KINDS.items():
        if mark in state:
            try:
                found = read(state, [hint.arguments for hint in hints if hint.name == name], path)
            # A tensor that is missing, empty or of too few dimensions: loading it will say which.
            except (KeyError, IndexError, TypeError, ValueError, ArithmeticError):
                return None
            return Spec(name, found)
    return None


def fitted(state: State, name: str, network: nn.Module, path: Path) -> dict[str, Tensor]:
    """`state` under the names that the builder called `name` gives its tensors.

    Args:
        state: from `unwrapped`.
        network: what the builder made.

    Raises:
        ResourceError: for a pre-trained checkpoint, or one that contradicts `network`.
    """
    check_classifier(state, path)
    return swin.from_simmim(state, network, path) if name == "swin" else dict(state)


def check_classifier(state: State, path: Path) -> None:
    """Refuse what masked pre-training leaves behind.

    Raises:
        ResourceError: naming the tensor that gives it away.
    """
    telling = next((key for key in state if key.startswith(("decoder", "mask_token"))), None)
    if telling:
        raise ResourceError(
            f"checkpoint {path} is a pre-trained masked autoencoder (it has {telling}), not a classifier: "
            "fine-tune it first, or give the fine-tuned checkpoint"
        )


def _vit(state: State, hints: Hints, path: Path) -> Arguments:
    width = _width(state)
    said = [hint["heads"] for hint in hints if "heads" in hint and hint.get("width", width) == width]
    heads = said[0] if said else VIT_HEADS.get(width)
    if heads is None:
        raise ResourceError(
            f"checkpoint {path} is of a ViT of width {width}, whose shapes do not tell its heads: name them, "
            f"--defense 'vit(width={width}, heads=...)'"
        )
    return _patches(state, prefix=1, path=path) | _sizes(state, "blocks") | {"heads": heads}


def _convit(state: State, hints: Hints, path: Path) -> Arguments:
    return (
        _patches(state, prefix=0, path=path)
        | _sizes(state, "blocks")
        | {
            "heads": len(state["blocks.0.attn.gating_param"]),
            "local": sum(key.endswith("attn.gating_param") for key in state),
        }
    )


def _cait(state: State, hints: Hints, path: Path) -> Arguments:
    return (
        _patches(state, prefix=0, path=path)
        | _sizes(state, "blocks")
        | {
            "heads": len(state["blocks.0.attn.proj_l.weight"]),
            "class_depth": _count(state, "blocks_token_only"),
        }
    )


def _swin(state: State, hints: Hints, path: Path) -> Arguments:
    tables = {match[1]: key for key in state if (match := _STAGE.fullmatch(key)) and match[2] == "0"}
    stages = range(len(tables))
    windows = [(math.isqrt(state[tables[str(s)]].shape[0]) + 1) // 2 for s in stages]
    depths = tuple(_count(state, f"layers.{s}.blocks") for s in stages)
    patch = state["patch_embed.proj.weight"].shape[-1]
    grid = _swin_grid(state, windows)
    said = [hint["image_size"] for hint in hints if "image_size" in hint]
    if not grid and not said:
        raise ResourceError(
            f"checkpoint {path} is of a Swin whose shapes do not tell its image size: name it, "
            "--defense 'swin(image_size=...)'"
        )
    return {
        "image_size": grid * patch or said[0],
        "patch_size": patch,
        "width": _width(state),
        "depths": depths,
        "heads": tuple(state[tables[str(s)]].shape[1] for s in stages),
        "window": windows[0],
        "num_classes": len(state["head.bias" if "head.bias" in state else "head.fc.bias"]),
        "mlp_ratio": _mlp_ratio(state, "layers.0.blocks.0"),
    }


def _swin_grid(state: State, windows: list[int]) -> int:
    """Side of the first stage's grid in tokens; 0 where nothing tells.

    A mask of shifted attention has one entry a window. A stage with a smaller window than the first's is one
    window.
    """
    for stage, window in enumerate(windows):
        if (mask := state.get(f"layers.{stage}.blocks.1.attn_mask")) is not None:
            return math.isqrt(len(mask)) * window * 2**stage
        if window < windows[0]:
            return window * 2**stage
    return 0


def _patches(state: State, prefix: int, path: Path) -> Arguments:
    """Patch and image size; `prefix` tokens have a position and no patch."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = state["pos_embed"].shape[1] - prefix
    side = math.isqrt(tokens)
    if side * side != tokens or side == 0:
        raise ResourceError(f"checkpoint {path} has positions for {tokens} patches: expected a square grid")
    return {"image_size": side * patch, "patch_size": patch}


def _sizes(state: State, blocks: str) -> Arguments:
    return {
        "width": _width(state),
        "depth": _count(state, blocks),
        "num_classes": len(state["head.bias"]),
        "mlp_ratio": _mlp_ratio(state, f"{blocks}.0"),
    }


def _width(state: State) -> int:
    return state["patch_embed.proj.weight"].shape[0]


def _count(state: State, blocks: str) -> int:
    found = {match[1] for key in state if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", key))}
    return len(found)


def _mlp_ratio(state: State, block: str) -> float:
    hidden, width = state[f"{block}.mlp.fc1.weight"].shape
    return hidden / width


# Builder -> the key that gives the kind away, and what reads its arguments. The first that is found counts.
_KINDS: dict[str, tuple[str, Callable[[State, Hints, Path], Arguments]]] = {
    "swin": ("layers.0.blocks.0.attn.relative_position_bias_table", _swin),
    "convit": ("blocks.0.attn.gating_param", _convit),
    "cait": ("blocks_token_only.0.attn.q.weight", _cait),
    "vit": ("blocks.0.attn.qkv.weight", _vit),
}
