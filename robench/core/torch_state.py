"""The global state of torch in which robench computes, regardless of the caller's settings.

Evaluation code often runs under `torch.inference_mode()`, autocast or another default dtype. `standard_state` disables
them, so that an attack gives the same result everywhere, and restores the caller's state at the end.
"""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError

M = TypeVar("M", bound=nn.Module)

# Whether the caller has set a default device, on which a model may rely.
_default_device: ContextVar[bool] = ContextVar("default_device", default=False)


@contextlib.contextmanager
def standard_state() -> Iterator[None]:
    """Inside the block gradients are recorded, the default dtype is float32 and the default device is the CPU.

    Products and convolutions are computed in float32 and not in TF32, which moves logits by thousandths. The setting
    for deterministic algorithms is not changed. Blocks may be nested; the context manager also works as a
    decorator.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_anomaly_enabled():
            # A NaN in a gradient is counted and reported; it must not stop the attack.
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if (precision := torch.get_float32_matmul_precision()) != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        _refuse_tf32(stack)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
            token = _default_device.set(True)
            stack.callback(_default_device.reset, token)
        yield


def _refuse_tf32(stack: contextlib.ExitStack) -> None:
    """Turn TF32 off in cuDNN with the setting that the caller uses, because torch raises an error if both are read."""
    cudnn: Any = torch.backends.cudnn
    try:
        if cudnn.allow_tf32:
            cudnn.allow_tf32 = False
            stack.callback(setattr, cudnn, "allow_tf32", True)
    except RuntimeError:
        for kind in (cudnn.conv, cudnn.rnn):
            stack.callback(setattr, kind, "fp32_precision", kind.fp32_precision)
            kind.fp32_precision = "ieee"


def model_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which to call a model: if the caller has set a default device, `device` becomes the default."""
    return device if _default_device.get() else contextlib.nullcontext()


@contextlib.contextmanager
def deterministic(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """Inside the block, a GPU gives the same bits at every run; CPUs do so anyway.

    Attention, convolutions and products then use deterministic kernels, which may be slower.

    Raises:
        UsageError: if an operation has no deterministic kernel.
    """
    if not enabled or device.type == "cpu":
        yield
        return
    # cuBLAS reads it before its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    strict, lenient = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsageError(f"{str(error).split(',')[0]}: repeat without --deterministic") from error
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        torch.backends.cudnn.benchmark = benchmark


def evaluating(model: M) -> M:
    """`model` in evaluation mode; a program of torch.export keeps the mode that it was exported in."""
    try:
        return model.eval()
    except NotImplementedError:
        for module in model.modules():
            # Frozen TorchScript modules have no attribute `training`.
            if hasattr(module, "training"):
                module.training = False
        return model


def cumsum(x: Tensor, dim: int) -> Tensor:
    """`torch.cumsum` of several rows, or of one short row.

    torch refuses all sums of a GPU in deterministic mode, although only those of one long row are not deterministic.
    """
    if x.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(dim)
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        return x.cumsum(dim)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=lenient)
