"""Which device, how many images a call, which precision: what `auto` means."""

import torch

from robench._moved import old_names
from robench.core.errors import UsageError

# Rows a network call by the side of the image: large enough to fill the device, small enough for its caches.
_BATCH_SIZES = {"cpu": ((64, 64), (128, 32)), "cuda": ((64, 1024), (128, 512))}
_LARGE = {"cpu": 16, "cuda": 128}
PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: when there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f'unknown device "{name}": expected auto, cpu, cuda or cuda:N')
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(
                f'no device "{name}" here ({count} CUDA devices found): use --device cpu or auto'
            )
    return device


def choose_batch_size(batch_size: int | str, device: torch.device, side: int, samples: int) -> int:
    """Rows a network call, for "auto" or a number of at least 1.

    "auto" depends on nothing but the kind of device, the image's side and the number of samples, so that the
    same command gives the same record.
    """
    if batch_size == "auto":
        cap = next((size for limit, size in _BATCH_SIZES[device.type] if side <= limit), _LARGE[device.type])
        return min(cap, -(-samples // 8) * 8)
    try:
        size = int(batch_size)
        size = 0 if isinstance(batch_size, bool | float) and size != batch_size else size
    except (TypeError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UsageError(f'batch size "{batch_size}": expected auto or a whole number of at least 1')
    return size


def choose_precision(precision: str, device: torch.device) -> str:
    """The surrogate's precision: "auto" is bf16 on a GPU that has it, fp32 elsewhere."""
    if precision not in PRECISIONS:
        raise UsageError(f'unknown precision "{precision}": expected one of {", ".join(PRECISIONS)}')
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return precision


__getattr__ = old_names(__name__)
