"""Checks of models and their outputs, with one-line messages that suggest a solution."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robench.core.errors import UsageError

Model = nn.Module | Callable[[Tensor], Tensor]

_MAX_LENGTH = 300
# Torch's message if a model computes gradients of its frozen weights in its forward pass.
_NO_GRADIENT = "does not require grad"


def check_model(model: Any, device: torch.device | None = None) -> None:
    """Check that a model can be called.

    Args:
        device: device of the images; None if not known yet.

    Raises:
        UsageError: if the model is not callable, or its weights are not usable.
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
                f"the model's {name} was created in torch.inference_mode(), which prevents gradients: "
                "build and load the model outside of it, or under torch.no_grad()"
            )
    weight = next(model.parameters(), None)
    if device is not None and weight is not None and weight.device.type != device.type:
        raise UsageError(
            f"the model is on {weight.device} and the attack on {device}: "
            f'use model.to("{device}") or device="{weight.device}"'
        )


def model_error(error: Exception, model: Model, x: Tensor, source: str = "the model") -> UsageError:
    """Describe the exception of a model on images `x` in one line."""
    hint = _hint(str(error), model, x)
    dtype = str(x.dtype).removeprefix("torch.")
    return UsageError(
        f"{source} raised {type(error).__name__} on images {tuple(x.shape)} of {dtype} on {x.device}: "
        f"{_in_one_line(error)}{hint}"
    )


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    # TorchScript quotes the model's code first and describes the error in the last line.
    text = lines[-1] if "TorchScript" in str(error) else lines[0]
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


def _hint(text: str, model: Model, x: Tensor) -> str:
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is not None and weight.is_floating_point() and weight.dtype != x.dtype:
        dtype = str(weight.dtype)
        return f". The weights are {dtype}: use model.float(), or lambda x: model(x.to({dtype}))"
    if _NO_GRADIENT in text:
        return (
            ". Weights are frozen during an attack: if the model adapts its weights, "
            "attack lambda x: model(x)"
        )
    if re.search(r"\bbatch", text, re.IGNORECASE):
        return f". The model is called on {len(x)} images at a time: see batch_size"
    return ""


def check_logits(logits: Any, n: int) -> None:
    """Check that a model's output for `n` images is logits (n, classes).

    Raises:
        UsageError: if it is not; the message suggests a solution.
    """
    if not isinstance(logits, Tensor):
        raise _output_error(_describe(logits), n, _extraction(logits))
    if logits.layout != torch.strided:
        layout = str(logits.layout).removeprefix("torch.")
        raise _output_error(f"a {layout} tensor", n, "return output.to_dense()")
    if logits.is_meta:
        raise _output_error("a tensor on the meta device", n, "it has no values")
    if logits.is_complex() or logits.is_quantized:
        raise _output_error(f"a tensor of {logits.dtype}", n, "return real numbers")
    if tuple(logits.shape) in ((n,), (n, 1)) and not logits.is_floating_point():
        raise _output_error(
            f"one whole number per image, {tuple(logits.shape)},",
            n,
            "classes have no gradients, so return the logits",
        )
    if tuple(logits.shape) in ((n,), (n, 1)):
        raise _output_error(
            f"one number per image, {tuple(logits.shape)},",
            n,
            "two classes need two logits, such as lambda x: torch.stack([-z, z], 1) with z = model(x).view(-1)",
        )
    if logits.dim() != 2 or len(logits) != n:
        raise _output_error(f"a tensor {tuple(logits.shape)}", n, "")


def _output_error(output: str, n: int, advice: str) -> UsageError:
    return UsageError(
        f"the model returned {output} for {n} images: expected logits ({n}, classes){advice and ': '}{advice}"
    )


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output)) or 'nothing'}"[:_MAX_LENGTH]
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    return "None" if output is None else f"an object of type {type(output).__name__}"


def _extraction(output: Any) -> str:
    """Advice on how to extract the logits from an output."""
    if isinstance(getattr(output, "logits", None), Tensor):
        return "use lambda x: model(x).logits"
    if isinstance(output, Mapping):
        tensors = [key for key, value in output.items() if isinstance(value, Tensor)]
        key = "logits" if "logits" in tensors else next(iter(tensors), None)
        return f"use lambda x: model(x)[{key!r}]" if key is not None else ""
    if isinstance(output, list | tuple):
        indices = [i for i, value in enumerate(output) if isinstance(value, Tensor) and value.dim() == 2]
        return f"use lambda x: model(x)[{indices[0] if indices else 0}]"
    return "return a torch tensor"
