"""Running networks in bf16 on any device."""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Inside the block, networks run under bf16 autocast for "bf16", and unchanged for "fp32"."""
    if precision != "bf16":
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if device.type == "cpu" and torch.is_grad_enabled():
            # On CPUs the backward pass of fused attention in bf16 is several times slower than that of plain
            # attention.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
