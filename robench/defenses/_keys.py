"""The names of a checkpoint's tensors, fitted to those of a network: wrappers put names of their own before them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robench.core.errors import ResourceError
from robench.defenses._state import is_counter, shared_prefix

# What DataParallel, torch.compile, FSDP and activation checkpointing put into a name, anywhere in it.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the names of wrappers and the modules that stand before every one of its tensors; as it is where
    two tensors would get one name."""
    names = _plain(state)
    return {names.get(key, key): value for key, value in state.items()}


def _plain(keys: Iterable[str]) -> dict[str, str]:
    """Plain name by key; each key by itself where two would get one name."""
    keys = list(keys)
    bare = {key: _bare(key) for key in keys}
    shared = shared_prefix(name for key, name in bare.items() if not is_counter(key))
    names = {key: name.removeprefix(shared) for key, name in bare.items()}
    return names if len(set(names.values())) == len(names) else {key: key for key in keys}


def _bare(key: str) -> str:
    *places, last = key.split(".")
    return ".".join([*(place for place in places if place not in _WRAPPERS), last])


def renamed(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """`state` under the names that are wanted, where it has those but for wrappers; counters are left out where they
    are not wanted."""
    wanted = list(wanted)
    known = set(wanted)
    kept = {key: value for key, value in state.items() if key in known or not is_counter(key)}
    if _fits(kept, wanted):
        return kept
    theirs, ours = _plain(state), {plain: key for key, plain in _plain(wanted).items()}
    fitted = {ours[plain]: state[key] for key, plain in theirs.items() if plain in ours}
    lost = [key for key, plain in theirs.items() if plain not in ours and not is_counter(key)]
    if not lost and _fits(fitted, wanted):
        return fitted
    # It does not fit: the names that are nearer to the network's say best what is wrong.
    plain = {
        ours.get(name, name): state[key]
        for key, name in theirs.items()
        if name in ours or not is_counter(key)
    }
    return plain if len(known & set(plain)) > len(known & set(kept)) else kept


def _fits(state: Mapping[str, Tensor], wanted: Iterable[str]) -> bool:
    return {key for key in state if not is_counter(key)} == {key for key in wanted if not is_counter(key)}


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give `model` the weights; keys and shapes must agree one to one, but for wrappers and counters.

    Of a defense the state is the whole's or its classifier's alone, whichever has more of its names.

    Raises:
        ResourceError: naming the first key that is missing, unexpected, of another shape or of another kind of numbers.
    """
    classifier = getattr(model, "classifier", None)
    targets = [classifier, model] if isinstance(classifier, nn.Module) else [model]
    tried = [(target, target.state_dict()) for target in targets]
    fitted = [(target, own, renamed(state, own)) for target, own in tried]
    whole = [each for each in fitted if _fits(each[2], each[1])]
    target, own, state = whole[0] if whole else max(fitted, key=lambda each: len(set(each[1]) & set(each[2])))
    cast = {}
    for key, tensor in own.items():
        if is_counter(key) and (key not in state or state[key].shape != tensor.shape):
            continue
        if key not in state:
            part = _part(state, own, path)
            raise ResourceError(
                f"checkpoint {path} lacks {key}, {_shape(tensor)}: is it another network's?{part}"
            )
        if state[key].shape != tensor.shape:
            raise ResourceError(
                f"checkpoint {path} has {key} {_shape(state[key])}: the network needs {_shape(tensor)}"
            )
        cast[key] = _cast(key, state[key], tensor.dtype, path)
    for key, tensor in state.items():
        if key not in own:
            raise ResourceError(
                f"checkpoint {path} has {key}, {_shape(tensor)}, which the network lacks: "
                f"is it another network's?{_part(state, own, path)}"
            )
    target.load_state_dict(cast, strict=False)


def _cast(key: str, tensor: Tensor, wanted: torch.dtype, path: Path) -> Tensor:
    """A tensor of the network's own kind of numbers, where that changes none of them."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ResourceError(f"checkpoint {path} has NaN or infinite numbers in {key}: get it again")
    if wanted.is_floating_point != tensor.is_floating_point() or not wanted.is_floating_point:
        same = tensor.to(wanted)
        if (wanted.is_floating_point and not is_counter(key)) or not torch.equal(
            same.to(tensor.dtype), tensor
        ):
            kinds = [str(kind).removeprefix("torch.") for kind in (tensor.dtype, wanted)]
            raise ResourceError(
                f"checkpoint {path} has {key} in {kinds[0]}, the network in {kinds[1]}: quantised or boolean weights "
                "are not cast; give the weights that they were made from"
            )
        return same
    return tensor


def _part(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> str:
    """How to take a part of the state, where it is the network and something beside it."""
    for first in dict.fromkeys(key.partition(".")[0] for key in state if "." in key):
        part = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{first}.")}
        if _fits(renamed(part, own), own):
            return f" --checkpoint '{path}#{first}' takes what is under {first} alone"
    return ""


def _shape(tensor: Tensor) -> str:
    return "of shape (" + ", ".join(map(str, tensor.shape)) + ")"
