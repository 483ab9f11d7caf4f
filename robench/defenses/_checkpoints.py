"""Checkpoints: found, checked against their sha256, and read without executing anything in them."""

import argparse
import hashlib
import os
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robench.errors import ResourceError, UsageError

# Where common training scripts keep the weights inside a checkpoint; MIMIR's use "model".
_NESTED = ("model", "state_dict", "model_state_dict")
# What torch says of a class that may not be unpickled.
_REFUSED = re.compile(r"unsupported global(?:: global)? ([\w.]+)", re.IGNORECASE)
_PARTS = ("classifier.", "purifier.")


def fetch(location: str, folder: Path) -> Path:
    """The file of a checkpoint, downloaded at first use when it is far away.

    Args:
        location: a path, relative to `folder` (or to the one that ROBENCH_CHECKPOINTS names) or absolute;
            `hf://owner/name/file`; or an https URL.

    Raises:
        UsageError: for a location of another kind.
        ResourceError: when the file is missing or cannot be downloaded.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        path = folder / Path(location).expanduser()
        brought = Path(os.environ.get("ROBENCH_CHECKPOINTS") or folder) / location
        if not path.is_file() and not brought.is_file():
            raise ResourceError(
                f"checkpoint {path} is missing: put it there or give another with --checkpoint"
            )
        return path if path.is_file() else brought
    if scheme == "hf":
        owner, _, name_and_file = rest.partition("/")
        name, _, file = name_and_file.partition("/")
        if not (owner and name and file):
            raise UsageError(f'malformed checkpoint "{location}": expected hf://owner/name/file')
        return _reached(location, lambda: Path(hf_hub_download(f"{owner}/{name}", file)))
    if scheme == "https":
        return _reached(location, lambda: _download(location))
    raise UsageError(f'checkpoint "{location}" is neither a path, nor hf://owner/name/file, nor an https URL')


def _reached(location: str, get: Any) -> Path:
    try:
        return get()
    # Hub, proxy and socket errors share no base but this one.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"checkpoint {location} cannot be downloaded ({reason}): get it by other means and give its path "
            "with --checkpoint"
        ) from error


def _download(url: str) -> Path:
    cache = Path(os.environ.get("ROBENCH_CACHE") or Path.home() / ".cache" / "robench") / "checkpoints"
    name = Path(urllib.parse.urlparse(url).path).name or "checkpoint"
    path = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        ResourceError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResourceError(f"checkpoint {path} cannot be read: {error.strerror}") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, floats of any precision as float32.

    A `.safetensors` file, or what `torch.save` wrote: then nothing but tensors and plain values is accepted,
    besides the `argparse.Namespace` that many training scripts put beside the weights.

    Raises:
        ResourceError: when the file is truncated, damaged, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ResourceError(
            f"checkpoint {path} is not a whole safetensors file ({error}): get it again"
        ) from error
    # torch.load raises a dozen kinds of error on damaged files.
    except Exception as error:
        if refused := _REFUSED.search(str(error)):
            raise ResourceError(
                f"checkpoint {path} holds a {refused[1]}, which is not unpickled: only tensors, plain values and "
                "argparse.Namespace are; convert it to safetensors where you trust it"
            ) from error
        raise ResourceError(
            f"checkpoint {path} is damaged, or holds more than tensors and is not unpickled: get it again, "
            "or convert it to safetensors"
        ) from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            average = found.get("ema")
            found = found[key]
            if isinstance(average, Mapping) and "shadow_params" in average:
                found = _averaged(found, average["shadow_params"], path)
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ResourceError(f"checkpoint {path} holds no table of tensors: expected a state dict")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in found.items()}


def _averaged(state: Mapping[str, Any], average: Any, path: Path) -> dict[str, Any]:
    """The state with the moving average of its parameters in their place, which is kept as a list in their order.

    Buffers stand between the parameters and have no average: they are told by their shape.
    """
    found = dict(state)
    waiting = list(average) if isinstance(average, list) else [average]
    for key, tensor in state.items():
        if waiting and getattr(tensor, "shape", None) == getattr(waiting[0], "shape", ()):
            found[key] = waiting.pop(0)
    if waiting:
        raise ResourceError(
            f"checkpoint {path} has a moving average that does not fit its parameters: get it again"
        )
    return found


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give `model` the weights; keys and shapes must agree one to one.

    A state without the prefix `classifier.` or `purifier.` is the classifier's alone.

    Raises:
        ResourceError: naming the first key that is missing, unexpected or of another shape.
    """
    target = model
    if not any(key.startswith(_PARTS) for key in state) and isinstance(
        getattr(model, "classifier", None), nn.Module
    ):
        target = model.classifier
        assert isinstance(target, nn.Module)
    wanted = target.state_dict()
    for key, tensor in wanted.items():
        if key not in state:
            raise ResourceError(f"checkpoint {path} lacks {key}, {_shape(tensor)}: is it another network's?")
        if state[key].shape != tensor.shape:
            raise ResourceError(
                f"checkpoint {path} has {key} {_shape(state[key])}: the network needs {_shape(tensor)}"
            )
    for key, tensor in state.items():
        if key not in wanted:
            raise ResourceError(
                f"checkpoint {path} has {key}, {_shape(tensor)}, which the network lacks: "
                "is it another network's?"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ResourceError(f"checkpoint {path} has NaN or infinite numbers in {key}: get it again")
    target.load_state_dict(dict(state))


def _shape(tensor: Tensor) -> str:
    return "of shape (" + ", ".join(map(str, tensor.shape)) + ")"
