"""Train one network in several processes started by `torchrun`, or in a single process without it.

Each takes its part of every batch, and gradients are added up before the step. That is what
DistributedDataParallel does; its hooks want one forward and one backward pass a step, though, where
adversarial training calls the network many times, partly with frozen weights, and some methods train two.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from robench.core.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this is; rank 0 writes and speaks.

    Attributes:
        local: the rank on this machine, which picks the GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> "ProcessGroup":
        """The process group that torchrun's variables describe; a single process without them.

        Raises:
            UsageError: when they are not numbers, or rank and size do not fit.
        """
        values = [os.environ.get(name, default) for name, default in _VARIABLES.items()]
        try:
            rank, size, local = map(int, values)
        except ValueError:
            rank, size, local = -1, 0, 0
        if not 0 <= rank < size:
            settings = ", ".join(f"{name}={value}" for name, value in zip(_VARIABLES, values, strict=True))
            raise UsageError(f"{settings}: expected a rank below the world size, as torchrun sets them")
        return cls(rank, size, local)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device called `name`, "cuda" and "auto" meaning this process's own GPU."""
        if self.size == 1 or name not in ("auto", "cuda"):
            return name
        return f"cuda:{self.local}" if name == "cuda" or torch.cuda.is_available() else "cpu"

    def join(self, device: torch.device) -> None:
        """Connect, by NCCL between GPUs and gloo elsewhere, until the process ends; once is enough.

        Raises:
            UsageError: when the others cannot be reached.
        """
        if self.size == 1 or distributed.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"{self.size} processes cannot find each other ({error}): use torchrun"
            ) from error
        # Not after each training: what a group leaves with torchrun would confuse the next.
        atexit.register(distributed.destroy_process_group)

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's rows."""
        return rows[self.rank :: self.size]

    def add_up(self, values: Iterable[Tensor]) -> None:
        """Put the sum over all processes into each tensor, in place, by one message."""
        if self.size == 1:
            return
        tensors = list(values)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Wait until all processes reach this point."""
        if self.size > 1:
            distributed.barrier()

    def from_leader(self, value: T | None) -> T:
        """Broadcast the value of rank 0 to every rank."""
        box = [value]
        if self.size > 1:
            distributed.broadcast_object_list(box)
        received = box[0]
        assert received is not None
        return received


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
ALONE = ProcessGroup()
