"""What is said of a model that cannot be attacked: one line with what to do about it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robench.core.errors import UsageError

Model = nn.Module | Callable[[Tensor], Tensor]

_LONGEST = 300
# What torch writes when a model that takes gradients inside forward finds its weights frozen.
_NO_GRADIENT = "does not require grad"


def check_model(model: Any, device: torch.device | None = None) -> None:
    """Refuse what no network call could succeed on.

    Args:
        device: where the images will be; None where that is not known yet.

    Raises:
        UsageError: for anything but a callable, and for weights that cannot be computed with.
    """
    if isinstance(model, str):
        raise UsageError(
            f'the model is the name "{model}": expected a module, such as robench.load_defense("{model}")'
        )
    if isinstance(model, type):
        raise UsageError(f"the model is the class {model.__name__}: expected an instance of it")
    if not callable(model):
        raise UsageError(f"the model is of type {type(model).__name__}: expected a module or a function")
    if not isinstance(model, nn.Module):
        return
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(weight):
            raise UsageError(f"the model's {name} has no shape yet: call the model once on a batch of images")
        if weight.is_meta:
            raise UsageError(f"the model's {name} is on the meta device: load its weights before the attack")
        if weight.is_inference():
            raise UsageError(
                f"the model's {name} was made in torch.inference_mode(), which gradients cannot pass: "
                "build and load the model outside of it, or under torch.no_grad()"
            )
    weight = next(model.parameters(), None)
    if device is not None and weight is not None and weight.device.type != device.type:
        raise UsageError(
            f"the model is on {weight.device} and the attack on {device}: "
            f'use model.to("{device}") or device="{weight.device}"'
        )


def model_error(error: Exception, model: Model, x: Tensor, doing: str = "the model") -> UsageError:
    """What a model raised on images `x`, as one line."""
    hint = _hint(str(error), model, x)
    kind = str(x.dtype).removeprefix("torch.")
    return UsageError(
        f"{doing} raised {type(error).__name__} on images {tuple(x.shape)} of {kind} on {x.device}: "
        f"{_in_one_line(error)}{hint}"
    )


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    # TorchScript quotes the model's code first, and says at the end what is wrong.
    text = lines[-1] if "TorchScript" in str(error) else lines[0]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _hint(text: str, model: Model, x: Tensor) -> str:
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is not None and weight.is_floating_point() and weight.dtype != x.dtype:
        dtype = str(weight.dtype)
        return f". The weights are {dtype}: use model.float(), or lambda x: model(x.to({dtype}))"
    if _NO_GRADIENT in text:
        return (
            ". Weights are frozen during an attack: a model that adapts its own "
            "is attacked as lambda x: model(x)"
        )
    if re.search(r"\bbatch", text, re.IGNORECASE):
        return f". The model is called on {len(x)} images at a time: see batch_size"
    return ""


def check_logits(logits: Any, n: int) -> None:
    """Refuse a model's output for `n` images that is not logits (n, classes).

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(logits, Tensor):
        raise _refused(_described(logits), n, _extraction(logits))
    if logits.layout != torch.strided:
        raise _refused(f"a {str(logits.layout).removeprefix('torch.')} tensor", n, "return it.to_dense()")
    if logits.is_meta:
        raise _refused("a tensor on the meta device", n, "it holds no values")
    if logits.is_complex() or logits.is_quantized:
        raise _refused(f"a tensor of {logits.dtype}", n, "return real numbers")
    if tuple(logits.shape) in ((n,), (n, 1)):
        raise _refused(
            f"one number an image, {tuple(logits.shape)},",
            n,
            "of two classes both need one, such as lambda x: torch.stack([-z, z], 1) with z = model(x).view(-1)",
        )
    if logits.dim() != 2 or len(logits) != n:
        raise _refused(f"a tensor {tuple(logits.shape)}", n, "")


def _refused(output: str, n: int, mend: str) -> UsageError:
    return UsageError(
        f"the model gave {output} for {n} images: expected logits ({n}, classes){mend and ': '}{mend}"
    )


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output)) or 'nothing'}"[:_LONGEST]
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    return "None" if output is None else f"an object of type {type(output).__name__}"


def _extraction(output: Any) -> str:
    """How to get at the logits inside of an output, where they can be seen."""
    if isinstance(getattr(output, "logits", None), Tensor):
        return "use lambda x: model(x).logits"
    if isinstance(output, Mapping):
        tensors = [key for key, value in output.items() if isinstance(value, Tensor)]
        key = "logits" if "logits" in tensors else next(iter(tensors), None)
        return f"use lambda x: model(x)[{key!r}]" if key is not None else ""
    if isinstance(output, list | tuple):
        places = [i for i, value in enumerate(output) if isinstance(value, Tensor) and value.dim() == 2]
        return f"use lambda x: model(x)[{places[0] if places else 0}]"
    return "return a torch tensor"
