"""Computing networks in bf16, on any device."""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Inside the block networks compute in "bf16" by autocast, or as they are for "fp32"."""
    if precision != "bf16":
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if device.type == "cpu" and torch.is_grad_enabled():
            # On CPUs the backward pass of torch's fused attention takes several times as long in bf16 as the
            # plain one's.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
