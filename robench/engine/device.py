"""Choice of device, batch size and precision, including the meaning of `auto`."""

import torch

from robench._moved import old_names
from robench.core.errors import UsageError

# Batch size by the side of the image: large enough to use the whole device, small enough for its caches.
_CPU_SIZES, _CPU_LARGE = ((64, 64), (128, 32)), 16
_GPU_SIZES, _GPU_LARGE = ((64, 1024), (128, 512)), 128
# Any call is padded to the batch size. The schemas of records and certifications have the same limit.
LARGEST_BATCH = 65_536
PRECISIONS = ("auto", "fp32", "bf16")
# Compute capability with bf16 in hardware (Ampere); older GPUs emulate it.
_BF16_CAPABILITY = (8, 0)


def choose_device(name: str) -> torch.device:
    """The device with this name: "auto", "cpu", "cuda", "cuda:N" or "xpu".

    Raises:
        UsageError: if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise UsageError("mps does not support float64, which distances need: use --device cpu")
    if device is None or device.type not in ("cpu", "cuda", "xpu"):
        raise UsageError(f'unknown device "{name}": expected auto, cpu, cuda, cuda:N or xpu')
    if device.type != "cpu":
        backend = torch.get_device_module(device.type)
        count = backend.device_count() if backend.is_available() else 0
        if (device.index or 0) >= count:
            kind = device.type.upper()
            raise UsageError(
                f'no device "{name}" here ({count} {kind} devices found): use --device cpu or auto'
            )
    return device


def choose_batch_size(batch_size: int | str, device: torch.device, side: int, samples: int) -> int:
    """The number of rows per network call, from "auto" or a number from 1 to `LARGEST_BATCH`.

    "auto" depends only on the type of device, the image size and the number of samples, so that the same command gives
    the same record.
    """
    if batch_size == "auto":
        cpu = device.type == "cpu"
        sizes, large = (_CPU_SIZES, _CPU_LARGE) if cpu else (_GPU_SIZES, _GPU_LARGE)
        cap = next((size for limit, size in sizes if side <= limit), large)
        # On a GPU a quarter of the images, so that lanes with a decided image are refilled.
        return min(cap, -(-samples // (8 if cpu else 32)) * 8)
    try:
        size = int(batch_size)
        size = 0 if isinstance(batch_size, bool | float) and size != batch_size else size
    except (TypeError, ValueError, OverflowError):
        size = 0
    if not 1 <= size <= LARGEST_BATCH:
        raise UsageError(
            f'batch size "{batch_size}": expected auto or a whole number from 1 to {LARGEST_BATCH:,}'
        )
    return size


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision of the surrogate: "auto" is bf16 on a GPU with bf16 in hardware, fp32 elsewhere."""
    if precision not in PRECISIONS:
        raise UsageError(f'unknown precision "{precision}": expected one of {", ".join(PRECISIONS)}')
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
        return "bf16" if native else "fp32"
    return precision


__getattr__ = old_names(__name__)
