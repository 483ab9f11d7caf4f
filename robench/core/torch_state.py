"""The global state of torch that robench computes in, whatever its caller has set.

Evaluation code often runs under `torch.inference_mode()`, autocast or another default dtype. Inside `standard_state`
none of them is in force, so an attack gives the same result there as anywhere else; the caller's state is restored
at the end.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

# Whether the caller has set a default device, which a model may rely on.
_default_device: ContextVar[bool] = ContextVar("default_device", default=False)


@contextlib.contextmanager
def standard_state() -> Iterator[None]:
    """Gradients are recorded, arithmetic is float32, and tensors are made on the CPU unless their device is given.

    Deterministic algorithms stay as the caller has set them. Blocks may be nested; the context manager is also a
    decorator.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_anomaly_enabled():
            # A NaN in a gradient is counted and reported, and is no reason to stop.
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if (precision := torch.get_float32_matmul_precision()) != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
            token = _default_device.set(True)
            stack.callback(_default_device.reset, token)
        yield


def model_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """What a model is called in: where the caller has set a default device, the model's own `device` is the default."""
    return device if _default_device.get() else contextlib.nullcontext()
