"""Match the names of a checkpoint's tensors to those of a network, whatever prefixes wrappers add."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robench.core.errors import ResourceError
from robench.defenses._state import is_counter, shared_prefix

# Names that DataParallel, torch.compile, FSDP and activation checkpointing insert anywhere in a key.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))

_OTHER = "does it belong to another network?"


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the names of wrappers and the prefix shared by all tensors; unchanged if two names would be
    equal."""
    names = _plain(state)
    return {names.get(key, key): value for key, value in state.items()}


def _plain(keys: Iterable[str]) -> dict[str, str]:
    """Plain name by key; the keys themselves if two names would be equal."""
    keys = list(keys)
    bare = {key: _bare(key) for key in keys}
    shared = shared_prefix(name for key, name in bare.items() if not is_counter(key))
    names = {key: name.removeprefix(shared) for key, name in bare.items()}
    return names if len(set(names.values())) == len(names) else {key: key for key in keys}


def _bare(key: str) -> str:
    *places, last = key.split(".")
    return ".".join([*(place for place in places if place not in _WRAPPERS), last])


def renamed(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Rename `state` to the expected names if they agree up to wrappers. Counters that are not expected are dropped."""
    expected = list(expected)
    known = set(expected)
    kept = {key: value for key, value in state.items() if key in known or not is_counter(key)}
    if _fits(kept, expected):
        return kept
    plain_keys, expected_keys = _plain(state), {plain: key for key, plain in _plain(expected).items()}
    fitted = {expected_keys[plain]: state[key] for key, plain in plain_keys.items() if plain in expected_keys}
    unmatched = (key for key, plain in plain_keys.items() if plain not in expected_keys)
    if all(map(is_counter, unmatched)) and _fits(fitted, expected):
        return fitted
    # It does not fit: keep the names closer to the network's, for the clearer error message.
    plain = {
        expected_keys.get(name, name): state[key]
        for key, name in plain_keys.items()
        if name in expected_keys or not is_counter(key)
    }
    return plain if len(known & set(plain)) > len(known & set(kept)) else kept


def _fits(state: Mapping[str, Tensor], expected: Iterable[str]) -> bool:
    return {key for key in state if not is_counter(key)} == {key for key in expected if not is_counter(key)}


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights into `model`; keys and shapes must agree one to one, except for wrappers and counters.

    For a defense, the state may be that of the defense or of its classifier, whichever shares more names with it.

    Raises:
        ResourceError: naming the first key that is missing, unexpected, or has another shape or dtype.
    """
    classifier = getattr(model, "classifier", None)
    targets = [classifier, model] if isinstance(classifier, nn.Module) else [model]
    states = [(target, target.state_dict()) for target in targets]
    candidates = [(target, expected, renamed(state, expected)) for target, expected in states]
    matches = [candidate for candidate in candidates if _fits(candidate[2], candidate[1])]
    nearest = max(candidates, key=lambda candidate: len(set(candidate[1]) & set(candidate[2])))
    target, expected, state = matches[0] if matches else nearest
    tensors = {}
    for key, tensor in expected.items():
        if is_counter(key) and (key not in state or state[key].shape != tensor.shape):
            continue
        if key not in state:
            problem = f"lacks {key}, {_shape(tensor)}"
            raise ResourceError(f"checkpoint {path} {problem}: {_OTHER}{_part(state, expected, path)}")
        if state[key].shape != tensor.shape:
            shapes = f"{_shape(state[key])}: the network needs {_shape(tensor)}"
            raise ResourceError(f"checkpoint {path} has {key} {shapes}")
        tensors[key] = _cast(key, state[key], tensor.dtype, path)
    for key, tensor in state.items():
        if key not in expected:
            problem = f"has {key}, {_shape(tensor)}, which the network lacks"
            raise ResourceError(f"checkpoint {path} {problem}: {_OTHER}{_part(state, expected, path)}")
    target.load_state_dict(tensors, strict=False)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype, path: Path) -> Tensor:
    """Cast a tensor to the network's dtype if that changes no value."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ResourceError(f"checkpoint {path} has NaN or infinite numbers in {key}: get it again")
    if dtype.is_floating_point and tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    changed = not torch.equal(cast.to(tensor.dtype), tensor)
    if changed or (dtype.is_floating_point and not is_counter(key)):
        kinds = [str(kind).removeprefix("torch.") for kind in (tensor.dtype, dtype)]
        raise ResourceError(
            f"checkpoint {path} has {key} in {kinds[0]}, the network in {kinds[1]}: quantized or boolean weights "
            "are not cast; use the weights that they were converted from"
        )
    return cast


def _part(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> str:
    """Advice on selecting a part of the state, if that part fits the network."""
    for first in dict.fromkeys(key.partition(".")[0] for key in state if "." in key):
        part = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{first}.")}
        if _fits(renamed(part, expected), expected):
            return f" --checkpoint '{path}#{first}' loads only the tensors under {first}"
    return ""


def _shape(tensor: Tensor) -> str:
    return "of shape (" + ", ".join(map(str, tensor.shape)) + ")"
