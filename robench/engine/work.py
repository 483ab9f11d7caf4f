"""Runs in shares, as the queue and the executors see them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch

from robench.engine.batched_model import Model
from robench.engine.checkpoint import Saved, Store
from robench.engine.progress import Progress
from robench.engine.setup import Setup
from robench.engine.shares import saved_shares


class Recipe(Protocol):
    """A description from which another process builds a run; plain data that can be pickled.

    Attributes:
        key: identifies the run.
    """

    @property
    def key(self) -> str: ...

    def build(self, device: str | None) -> "Work":
        """Build the run, on another device than the recipe's if one is given."""
        ...


class Work(ABC):
    """A run, or one share of it.

    Args:
        setup: the defense and its attacker.
        store: where to save to and resume from; None to save nothing.
        progress: called whenever the progress has changed.
        note: called with each line for the user.

    Attributes:
        parts: the shares of a run that is prepared; the run itself if there is only one.
        clean: the results of `prepare`, as plain data.
        recipe: description of the run for other processes; None if the run itself must be pickled.
    """

    clean: Any = None
    recipe: Recipe | None = None

    def __init__(
        self,
        setup: Setup,
        *,
        store: Store | None = None,
        progress: Callable[[Progress], None] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.setup, self.store, self.progress, self.note = setup, store, progress, note
        self.parts: Sequence[Work] = []

    @property
    def model(self) -> Model:
        return self.setup.model

    @property
    def device(self) -> torch.device:
        return self.setup.device

    @property
    def shape(self) -> tuple[int, int]:
        """The number of samples and the batch size."""
        return self.count, self.setup.batch_size

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of samples."""

    @abstractmethod
    def prepare(self, shares: int, clean: Any = None) -> None:
        """Compute `clean` unless it is given, and split the run into at most this number of shares."""

    @abstractmethod
    def attack(self) -> Any:
        """Run this share, or resume it, and return its result."""

    @abstractmethod
    def saved_result(self) -> Any:
        """The saved result of this share; None if it is not finished."""

    @abstractmethod
    def save_result(self, result: Any) -> None:
        """Save the result of this share from a process that shares no disk with this one."""

    @abstractmethod
    def current_progress(self) -> Progress:
        """The progress of this share."""

    @abstractmethod
    def conclude(self, results: list[Any]) -> Any:
        """The outcome of the run from the results of all shares."""

    def _part(self, number: int, count: int) -> Self:
        """A copy of this run for one of `count` shares, with a separate store."""
        part = copy.copy(self)
        part.store = self.store.share(number, count) if self.store else None
        return part

    def _saved_shares(self, is_usable: Callable[[Saved], bool], check: Callable[[Saved], object]) -> int:
        """Number of shares of the interrupted run that this one resumes; 0 if there is none."""
        return saved_shares(self.store, is_usable, check) if self.store else 0
