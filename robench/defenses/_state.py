"""Digests of a network's state: of everything that is loaded, and of a set of weights however it was loaded."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError
from robench.defenses._base import Defense
from robench.defenses._normalisation import Normalisation, own_normalisations

# Counters of training, FLOP counting and weight averaging; none of them changes a logit in evaluation.
COUNTERS = frozenset(("num_batches_tracked", "total_ops", "total_params", "n_averaged"))


def is_counter(key: str) -> bool:
    """Whether a tensor of this name only counts something."""
    return key.rpartition(".")[2] in COUNTERS


def shared_prefix(names: Iterable[str]) -> str:
    """The module path shared by all tensor names, with a trailing dot, such as "module.model."."""
    places = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*places, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def state_digest(network: nn.Module) -> str:
    """sha256 over every parameter and buffer: name, dtype, shape and bytes, sorted by name.

    It identifies weights that come from no single file. It covers the normalization.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(network).items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def state_sha256(network: nn.Module, purifier: str = "") -> str:
    """sha256 of a set of weights, independent of how they were loaded.

    Names are relative to the part of the network that holds all weights, so wrappers change nothing. Floats of any
    precision are hashed as float32 and integers as int64; counters are left out. The numbers of the normalization are
    included, whether the defense or its classifier holds them, and so is whether the defense is randomized.

    Equal digests mean equal weights, not equal functions: activations, for example, are not tensors and not covered.

    Args:
        network: a defense, or any module.
        purifier: canonical spec of the defense's purifier, whose settings are not tensors; if empty, the purifier's
            class and plain attributes are hashed instead.

    Raises:
        UsageError: if the network has tensors without data.
    """
    is_defense = isinstance(network, Defense)
    classifier = network.classifier if is_defense else network
    digest = hashlib.sha256()
    pairs = own_normalisations(classifier)
    constants = pairs[0] if len(pairs) == 1 else None
    names = constants.names if constants else ()
    if is_defense and network.mean is not None and network.std is not None:
        mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
        constants = Normalisation(("mean", "std"), mean, std)
    digest.update(f"normalisation {_plain(constants)}\n".encode())
    digest.update(f"randomised {bool(getattr(network, 'stochastic', False))}\n".encode())
    _add_all(digest, {k: v for k, v in _tensors(classifier).items() if k not in names})
    if is_defense and network.purifier is not None:
        digest.update(f"purifier {purifier or _settings(network.purifier)}\n".encode())
        _add_all(digest, _tensors(network.purifier))
    return digest.hexdigest()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _add_all(digest: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    counted = {name: tensor for name, tensor in tensors.items() if not is_counter(name)}
    shared = len(shared_prefix(counted))
    for name, tensor in sorted(counted.items()):
        whole = tensor.dtype if tensor.is_complex() else torch.int64
        kind = torch.float32 if tensor.is_floating_point() else whole
        _add(digest, name[shared:], tensor.detach().to(kind))


def _add(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise UsageError(f"the network has a tensor without data, {name}: it was built on the device meta")
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    dense = tensor.detach().cpu().to_dense() if tensor.layout != torch.strided else tensor.detach().cpu()
    digest.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _plain(constants: Normalisation | None) -> str:
    """The numbers of a normalization as text; if all channels have the same numbers, only one is kept."""
    if constants is None:
        return ""
    mean, std = (v[:1] if len(set(v)) == 1 else v for v in (constants.mean, constants.std))
    return "" if (mean, std) == ((0.0,), (1.0,)) else f"{mean} {std}"


def _settings(purifier: nn.Module) -> str:
    named = ((k, v) for k, v in vars(purifier).items() if not k.startswith("_") and k != "training")
    settings = sorted((k, v) for k, v in named if isinstance(v, bool | int | float | str))
    return f"{type(purifier).__qualname__} {settings}"
