"""Batches of training images: from a tensor on the device, or read from disk by worker processes."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from robench.core.errors import ResourceError, UsageError, one_line
from robench.data._lazy_images import LazyImages
from robench.data._streamed_pictures import Pictures, as_picture
from robench.training.augment import augment
from robench.training.draws import seed_for, seeded
from robench.training.generated import Mixture
from robench.training.picture_augment import Augmentation
from robench.training.recipe import Recipe

# Sets of more bytes, as float32, are read from disk by workers.
LARGEST_IN_MEMORY = 1 << 30
# More workers per process seldom help, because they share the disk.
_MOST_WORKERS = 8
Purpose = tuple[object, ...]
Pixels = Tensor | LazyImages


class Batches(Protocol):
    """Training images in random order and with random augmentation."""

    device: torch.device

    def __len__(self) -> int:
        """The number of images of an epoch."""
        ...

    def order(self, size: int) -> Tensor:
        """The images of an epoch in random order, int64, in batches of `size`, from torch's generator of the CPU."""
        ...

    def read(
        self, batches: Sequence[Tensor], rows: slice, recipe: Recipe, extra: Augmentation, purpose: Purpose
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `rows` of each batch, augmented, and their labels, on the device.

        Args:
            batches: indices of the images of each batch.
            recipe, extra: augmentation, of all stages and of this one.
            purpose: names the random numbers that belong to an image and not to a batch.
        """
        ...


class InMemory:
    """Images on the device; a whole batch is augmented and mixed, and then cut.

    Args:
        x: (N, C, H, W) in [0, 1]; y: (N,).
        mixture: if the last images are generated.
    """

    def __init__(self, x: Tensor, y: Tensor, mixture: Mixture | None = None):
        self.x, self.y, self.mixture = x, y, mixture
        self.device = x.device

    def __len__(self) -> int:
        return self.mixture.real if self.mixture else len(self.x)

    def order(self, size: int) -> Tensor:
        return self.mixture.order(len(self.x), size) if self.mixture else torch.randperm(len(self.x))

    def read(
        self, batches: Sequence[Tensor], rows: slice, recipe: Recipe, extra: Augmentation, purpose: Purpose
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            batch = batch.to(self.device)
            x, y = extra.mix(augment(self.x[batch], recipe), self.y[batch])
            yield x[rows], y[rows]


class Streamed:
    """Images read, decoded and augmented by worker processes.

    The random numbers of an image's augmentation depend on the seed, the stage, the epoch and the image alone, so they
    are the same for any number of workers and after an interruption. Pixels are rounded to 1 / 255. Mixup pairs the
    images of one process.

    Args:
        x: the images.
        y: (N,).
        workers: number of worker processes; 0 reads in this process.
        mixture: if the last images are generated.
    """

    def __init__(
        self, x: Pixels, y: Tensor, device: torch.device, workers: int, mixture: Mixture | None = None
    ):
        self.x, self.y, self.mixture = x, y, mixture
        self.device = device
        self.workers = workers

    def __len__(self) -> int:
        return self.mixture.real if self.mixture else len(self.x)

    def order(self, size: int) -> Tensor:
        if self.mixture:
            return self.mixture.order(len(self.x), size)
        return self.x.order() if isinstance(self.x, Pictures) else torch.randperm(len(self.x))

    def read(
        self, batches: Sequence[Tensor], rows: slice, recipe: Recipe, extra: Augmentation, purpose: Purpose
    ) -> Iterator[tuple[Tensor, Tensor]]:
        context = "fork" if self.workers and hasattr(os, "fork") else None
        workers = self.workers if context else 0
        loader = torch.utils.data.DataLoader(
            _Examples(self.x, recipe, extra, purpose),  # pyright: ignore[reportArgumentType]
            batch_sampler=[batch[rows].tolist() for batch in batches],
            num_workers=workers,
            multiprocessing_context=context if workers else None,
            collate_fn=_collate,
            worker_init_fn=_one_thread,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the loader must not draw from the generator of the training
        )
        for batch, pixels in zip(batches, _watched(loader), strict=True):
            if isinstance(pixels, str):
                raise ResourceError(pixels)
            x = pixels.to(self.device, non_blocking=True).float() / 255
            yield extra.mix(x, self.y[batch[rows]].to(self.device, non_blocking=True))


def _watched(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; a worker that the system ended is a ResourceError."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ResourceError(
            f"a process that reads images ended ({one_line(error)}), most likely out of memory or "
            "of shared memory (/dev/shm): repeat the command with fewer --workers to resume"
        ) from error


def batches_of(
    x: Pixels,
    y: Tensor,
    extra: Augmentation,
    device: torch.device,
    workers: int,
    mixture: Mixture | None = None,
) -> Batches:
    """Choose how training images are read: large sets and augmentations of single pictures use workers."""
    if is_streamed(x) or extra.of_pictures:
        return Streamed(x, y, device, workers, mixture)
    return InMemory(x.to(device), y.to(device), mixture)


def is_streamed(x: Pixels) -> bool:
    """Whether images are read from disk while they are used, and are never all in memory."""
    return isinstance(x, Pictures) or math.prod(x.shape) * 4 > LARGEST_IN_MEMORY


def default_workers(processes: int) -> int:
    """The number of workers of each of `processes` training processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // processes))


@dataclass
class _Examples:
    """Examples by index, for a DataLoader: pixels (C, H, W) uint8, or a description of a problem."""

    x: Pixels
    recipe: Recipe
    extra: Augmentation
    purpose: Purpose

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Tensor | str:
        with seeded(seed_for(*self.purpose, row)):
            try:
                x = self.extra.change(self._picture(row), self.x.shape[-1], self.recipe.resized_crop)
            except (ResourceError, UsageError) as error:
                return str(error)
            # What remains of the recipe's augmentation.
            x = augment(x[None], replace(self.recipe, resized_crop=0.0))[0]
            return x.mul(255).round().to(torch.uint8)

    def _picture(self, row: int) -> Image.Image:
        if not isinstance(self.x, Pictures):
            return as_picture(self.x[row])
        return self.x.picture(row) if self.recipe.resized_crop else self.x.changed(row)


def _collate(examples: list[Tensor | str]) -> Tensor | str:
    problems = [example for example in examples if isinstance(example, str)]
    return problems[0] if problems else torch.stack([e for e in examples if isinstance(e, Tensor)])


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
