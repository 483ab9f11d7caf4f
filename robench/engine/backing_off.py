"""Smaller batches where memory runs out, and larger ones again afterwards."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from robench.core.errors import ResourceError

T = TypeVar("T")

# The types of errors that `out_of_memory` may be true of.
KINDS = (RuntimeError, MemoryError)
# Messages of allocators, cuBLAS and cuDNN when memory is exhausted.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC(ATION)?_FAILED", re.IGNORECASE)
# Number of batches that must fit before a larger batch is tried.
_PATIENCE = 32


def out_of_memory(error: Exception) -> bool:
    """Whether memory is exhausted, which a smaller batch may avoid."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


def halved(size: int, error: Exception, device: torch.device) -> int:
    """Half of a batch size, after an error; unused memory of the device is released.

    Raises:
        Exception: the error, unless memory is exhausted.
        ResourceError: if a single image exhausts it.
    """
    if not out_of_memory(error):
        raise error
    if size == 1:
        raise ResourceError(
            f"{device} ran out of memory with a single image: use another --device"
        ) from error
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return size // 2


def backing_off(
    step: Callable[[int], T],
    size: int,
    device: torch.device,
    note: Callable[[str], None] = lambda text: None,
) -> T:
    """The result of `step` with a batch size that fits: `size`, or half of it, or a quarter, and so on.

    Args:
        note: called with one line for each reduction.

    Raises:
        ResourceError: if a single image exhausts the memory.
    """
    while True:
        try:
            return step(size)
        except KINDS as error:
            size = halved(size, error, device)
        # Outside of the handler, whose traceback keeps the tensors of the failed step.
        note(f"{device} ran out of memory: continuing with batch size {size}")


class BatchSize:
    """A batch size that is halved when memory runs out, and doubled again after several batches that fit.

    Attributes:
        whole: the requested size.
        current: the size of the next batch.
    """

    def __init__(self, whole: int):
        self.whole = self.current = whole
        self._fitting = 0

    def fits(self) -> None:
        """Count a batch that fits in memory."""
        self._fitting += 1
        if self.current < self.whole and self._fitting >= _PATIENCE:
            self.current, self._fitting = min(2 * self.current, self.whole), 0

    def reduce(self, error: Exception, device: torch.device) -> None:
        """Halve the size, see `halved`."""
        self.current, self._fitting = halved(self.current, error, device), 0
