"""Recognize the network of a checkpoint from the names and shapes of its tensors.

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
from robench.defenses._keys import plain_names

State = Mapping[str, Tensor]
Hints = Sequence[Mapping[str, Any]]
Arguments = dict[str, Any]

# A ViT's shapes do not determine its number of heads. Width, depth, ratio of the MLP and heads of known networks, by
# their names in MIMIR's code: tiny, small, base, large (arXiv 2010.11929, 2012.12877), and a wide network of 8 blocks.
VITS = {
    "vit_ti": (192, 12, 4.0, 3),
    "vit_small": (384, 12, 4.0, 6),
    "vit_base": (768, 12, 4.0, 12),
    "vit_large": (1024, 24, 4.0, 16),
    "vit_small_ds": (768, 8, 3.0, 8),
}
# From a whole defense, adversarial training under DistributedDataParallel, and SimMIM.
_PREFIXES = ("classifier.", "module.base_model.", "module.", "encoder.")
_STAGE = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table")


def knows(name: str) -> bool:
    """Whether the builder `name` builds one of these networks."""
    return name in _KINDS


def named(network: str) -> list[Spec]:
    """The spec of a ViT by its name in MIMIR's code, as a hint for `recognise`; empty for another name."""
    sizes = VITS.get(network)
    return (
        [Spec("vit", dict(zip(("width", "depth", "mlp_ratio", "heads"), sizes, strict=True)))]
        if sizes
        else []
    )


def unwrapped(state: State) -> dict[str, Tensor]:
    """`state` without the key prefixes that wrappers add, unless two keys would become equal."""
    plain = plain_names(state)
    for prefix in _PREFIXES:
        bare = {key.removeprefix(prefix): value for key, value in plain.items()}
        if len(bare) == len(plain):
            plain = bare
    return plain


def recognise(state: State, hints: Sequence[Spec], path: Path) -> Spec | None:
    """The spec of the network that `state` belongs to; None for an unknown kind of network.

    Args:
        state: of the classifier, from `unwrapped`.
        hints: candidate specs, for what the shapes do not determine: a ViT's heads, a Swin's image size.
        path: of the checkpoint, for messages.

    Raises:
        ResourceError: for a pre-trained checkpoint, which has no classifier, or if neither the shapes nor `hints`
            determine an argument.
    """
    check_classifier(state, path)
    for name, (key, read) in _KINDS.items():
        if key in state:
            try:
                arguments = read(state, [hint.arguments for hint in hints if hint.name == name], path)
            # A tensor is missing, empty or has too few dimensions; loading the state reports which.
            except (KeyError, IndexError, TypeError, ValueError, ArithmeticError):
                return None
            return Spec(name, arguments)
    return None


def fitted(state: State, name: str, network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Rename the tensors of `state` to the names that the builder `name` uses.

    Args:
        state: from `unwrapped`.
        network: the network that was built.

    Raises:
        ResourceError: for a pre-trained checkpoint, or one that contradicts `network`.
    """
    check_classifier(state, path)
    if name != "swin":
        return dict(state)
    from robench.defenses import swin  # imports timm

    return swin.from_simmim(state, network, path)


def check_classifier(state: State, path: Path) -> None:
    """Refuse a checkpoint of masked pre-training.

    Raises:
        ResourceError: naming the tensor of the decoder.
    """
    decoder = next((key for key in state if key.startswith(("decoder", "mask_token"))), None)
    if decoder:
        raise ResourceError(
            f"checkpoint {path} is a pre-trained masked autoencoder (it has {decoder}), not a classifier: "
            "fine-tune it first, or use a fine-tuned checkpoint"
        )


def _vit(state: State, hints: Hints, path: Path) -> Arguments:
    sizes = _sizes(state, "blocks")
    same = ("width", "depth", "mlp_ratio")
    fitting = [hint for hint in hints if all(hint.get(name, sizes[name]) == sizes[name] for name in same)]
    hinted = [hint["heads"] for hint in fitting if "heads" in hint]
    # A file does not say whether pixels are normalized; a single card does.
    normalisation = fitting[0] if len(hints) == len(fitting) == 1 else {}
    shape = tuple(sizes[name] for name in same)
    known = [heads for *network, heads in VITS.values() if tuple(network) == shape]
    if not hinted and not known:
        width, depth = sizes["width"], sizes["depth"]
        raise ResourceError(
            f"checkpoint {path} is of a ViT of width {width} and {depth} blocks, whose shapes do not determine its "
            f"number of heads: specify it, --defense 'vit(width={width}, depth={depth}, heads=...)'"
        )
    sizes |= {name: normalisation[name] for name in ("mean", "std") if name in normalisation}
    return _patches(state, prefix=1, path=path) | sizes | {"heads": (hinted or known)[0]}


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
    hinted = [hint["image_size"] for hint in hints if "image_size" in hint]
    if not grid and not hinted:
        raise ResourceError(
            f"checkpoint {path} is of a Swin whose shapes do not determine its image size: specify it, "
            "--defense 'swin(image_size=...)'"
        )
    return {
        "image_size": grid * patch or hinted[0],
        "patch_size": patch,
        "width": _width(state),
        "depths": depths,
        "heads": tuple(state[tables[str(s)]].shape[1] for s in stages),
        "window": windows[0],
        "num_classes": len(state["head.bias" if "head.bias" in state else "head.fc.bias"]),
        "mlp_ratio": _mlp_ratio(state, "layers.0.blocks.0"),
    }


def _swin_grid(state: State, windows: list[int]) -> int:
    """Side of the first stage's grid in tokens; 0 if the shapes do not determine it.

    The mask of shifted attention has one entry per window. A stage whose window is smaller than the first stage's
    consists of one window.
    """
    for stage, window in enumerate(windows):
        if (mask := state.get(f"layers.{stage}.blocks.1.attn_mask")) is not None:
            return math.isqrt(len(mask)) * window * 2**stage
        if window < windows[0]:
            return window * 2**stage
    return 0


def _patches(state: State, prefix: int, path: Path) -> Arguments:
    """Patch and image size; the first `prefix` positions belong to no patch."""
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
    indices = {match[1] for key in state if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", key))}
    return len(indices)


def _mlp_ratio(state: State, block: str) -> float:
    hidden, width = state[f"{block}.mlp.fc1.weight"].shape
    return hidden / width


# Builder -> the key that identifies its networks, and the reader of its arguments. The first match is used.
_KINDS: dict[str, tuple[str, Callable[[State, Hints, Path], Arguments]]] = {
    "swin": ("layers.0.blocks.0.attn.relative_position_bias_table", _swin),
    "convit": ("blocks.0.attn.gating_param", _convit),
    "cait": ("blocks_token_only.0.attn.q.weight", _cait),
    "vit": ("blocks.0.attn.qkv.weight", _vit),
}
