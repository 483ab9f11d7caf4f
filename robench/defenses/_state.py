"""Digests of the state of a network: of all that is loaded, and of one set of weights by whatever way it came."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError
from robench.defenses._base import Defense
from robench.defenses._normalisation import Normalisation, own_normalisations

# What training, a FLOP counter and an average of weights count; none of it changes a logit in evaluation.
COUNTERS = frozenset(("num_batches_tracked", "total_ops", "total_params", "n_averaged"))


def is_counter(key: str) -> bool:
    """Whether a tensor of this name only counts something."""
    return key.rpartition(".")[2] in COUNTERS


def shared_prefix(names: Iterable[str]) -> str:
    """The modules that stand before every one of some names of tensors, with a dot at the end: "module.model."."""
    places = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*places, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def state_digest(network: nn.Module) -> str:
    """sha256 over every parameter and buffer: name, dtype, shape and bytes, in order of names.

    It stands for a checkpoint where the weights come from no single file. The normalisation is in it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(network).items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def state_sha256(network: nn.Module, purifier: str = "") -> str:
    """sha256 of one set of weights, the same by whatever way they are loaded.

    Names are relative to the part of the network that holds all weights, so that a wrapper changes nothing; floats of
    any precision count as float32 and whole numbers as int64; counters are left out. The normalisation counts by
    its numbers, whether the defense or its classifier holds them. Whether the defense is randomised counts too.

    Equal digests mean equal weights, not equal functions: what is no tensor, such as an activation, is not in it.

    Args:
        network: a defense, or any module.
        purifier: canonical spec of the defense's purifier, whose settings are no tensors; empty where it is unknown,
            and then the purifier's class and plain attributes stand for it.

    Raises:
        UsageError: when the network has tensors without data.
    """
    whole = isinstance(network, Defense)
    classifier = network.classifier if whole else network
    digest = hashlib.sha256()
    pairs = own_normalisations(classifier)
    own = pairs[0] if len(pairs) == 1 else None
    constants = own.names if own else ()
    if whole and network.mean is not None and network.std is not None:
        mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
        own = Normalisation(("mean", "std"), mean, std)
    digest.update(f"normalisation {_plain(own)}\n".encode())
    digest.update(f"randomised {bool(getattr(network, 'stochastic', False))}\n".encode())
    _add_all(digest, {k: v for k, v in _tensors(classifier).items() if k not in constants})
    if whole and network.purifier is not None:
        digest.update(f"purifier {purifier or _settings(network.purifier)}\n".encode())
        _add_all(digest, _tensors(network.purifier))
    return digest.hexdigest()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _add_all(digest: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    counted = {name: tensor for name, tensor in tensors.items() if not is_counter(name)}
    shared = len(shared_prefix(counted))
    for name, tensor in sorted(counted.items()):
        kind = (
            torch.float32
            if tensor.is_floating_point()
            else tensor.dtype
            if tensor.is_complex()
            else torch.int64
        )
        _add(digest, name[shared:], tensor.detach().to(kind))


def _add(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise UsageError(f"the network has a tensor without data, {name}: it was built on the device meta")
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    dense = tensor.detach().cpu().to_dense() if tensor.layout != torch.strided else tensor.detach().cpu()
    digest.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _plain(own: Normalisation | None) -> str:
    """The numbers of a normalisation; one of equal numbers for every channel counts as one number."""
    if own is None:
        return ""
    mean, std = (values[:1] if len(set(values)) == 1 else values for values in (own.mean, own.std))
    return "" if (mean, std) == ((0.0,), (1.0,)) else f"{mean} {std}"


def _settings(purifier: nn.Module) -> str:
    kinds = bool | int | float | str
    held = {k: v for k, v in vars(purifier).items() if not k.startswith("_") and k != "training"}
    return f"{type(purifier).__qualname__} {sorted((k, v) for k, v in held.items() if isinstance(v, kinds))}"
