"""Data-parallel training in processes started by `torchrun`, or in a single process without it.

Each process computes the gradients of its part of a batch, and the gradients are summed over all processes before
the optimizer's step, as in DistributedDataParallel. DistributedDataParallel itself expects one forward and one
backward pass per step, but adversarial training calls the network many times, partly with frozen weights, and some
methods train two networks.

Gradients are summed by NCCL on GPUs, whose collectives have a time limit of ten minutes. Processes wait for each other
in another group, by gloo and without a limit that matters, so that rank 0 may take its time to save or to evaluate.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from robench.core.errors import UsageError

T = TypeVar("T")
# Time limit of the collectives that sum gradients; None for the backend's.
LIMIT: timedelta | None = None
# A process that is lost ends the others at once, so this limit only bounds the time that rank 0 works alone.
_PATIENCE = timedelta(days=7)
# The group in which processes wait for each other.
_waiting: list[Any] = []


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process and the number of processes; rank 0 writes files and prints.

    Attributes:
        local: the rank on this machine, which selects the GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "ProcessGroup":
        """Read the environment variables that torchrun sets; without them, return a single process.

        Raises:
            UsageError: if a variable is not a number, or the rank is not below the world size.
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
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Number of processes on this machine, as torchrun sets it."""
        count = os.environ.get("LOCAL_WORLD_SIZE", "")
        return int(count) if count.isdecimal() and int(count) else self.size

    def device(self, name: str) -> str:
        """The name of this process's device: with several processes, "cuda" and "auto" select the GPU of its rank."""
        if self.size == 1 or name not in ("auto", "cuda"):
            return name
        return f"cuda:{self.local}" if name == "cuda" or torch.cuda.is_available() else "cpu"

    def connect(self, device: torch.device) -> None:
        """Connect the processes by NCCL on GPUs and by gloo on CPUs, until the process ends.

        Further calls do nothing.

        Raises:
            UsageError: if the other processes cannot be reached.
        """
        if self.size == 1 or distributed.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LIMIT)
            _waiting.append(distributed.new_group(backend="gloo", timeout=_PATIENCE))
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"cannot connect {self.size} processes ({error}): start them with torchrun"
            ) from error
        # A group cannot be created twice under one torchrun, so it is not destroyed after each training.
        atexit.register(distributed.destroy_process_group)

    def all_reduce(self, values: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, with its sum over all processes, using one message."""
        if self.size == 1:
            return
        tensors = list(values)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def average_statistics(self, model: nn.Module) -> None:
        """Replace the running statistics of batch normalization with their mean over all processes."""
        if self.size == 1:
            return
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        pairs = [(m.running_mean, m.running_var) for m in norms]
        statistics = [tensor for pair in pairs for tensor in pair if tensor is not None]
        if statistics:
            self.all_reduce(statistics)
            for tensor in statistics:
                tensor.div_(self.size)

    def wait(self) -> None:
        """Wait until all processes reach this point, however long that takes."""
        if self.size > 1:
            distributed.barrier(group=_waiting[0])

    def total(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """The sum of each count over all processes, however long the others take."""
        if self.size == 1:
            return counts
        summed = torch.tensor(counts)
        distributed.all_reduce(summed, group=_waiting[0])
        return tuple(summed.tolist())

    def broadcast(self, value: T | None) -> T:
        """Return the value of rank 0 in every process, however long rank 0 takes."""
        values = [value]
        if self.size > 1:  # None in processes other than rank 0 is replaced
            distributed.broadcast_object_list(values, group=_waiting[0])
        received = values[0]
        assert received is not None
        return received

    def check_same(self, value: tuple[object, ...]) -> None:
        """Check that rank 0 has the same settings, data and saved state.

        Raises:
            UsageError: if it has not: the training would differ between processes without notice.
        """
        if self.broadcast(value) != value:
            raise UsageError(
                f"rank {self.rank} and rank 0 have different settings, training images or partial files: start all "
                "processes with the same command, and give an --output on a shared file system"
            )


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
SINGLE_PROCESS = ProcessGroup()
