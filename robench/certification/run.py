"""Functions of images, such as the bounds of a certifier, in shares that run in several processes and resume."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from robench.certification._base import Bounds, Case, Certifier
from robench.engine.checkpoint import Saved
from robench.engine.progress import Progress
from robench.engine.run_queue import single
from robench.engine.saved_kinds import check_facts
from robench.engine.setup import Setup
from robench.engine.work import Work
from robench.engine.workers import Processes, choose_workers

# Number of images between two chances to save.
_PART = 8

Result = dict[str, Tensor]


class RowwiseRun(Work):
    """A function of some images, a few at a time.

    The result of an image does not depend on the others, so it does not depend on the number of shares.

    Args:
        setup: the defense.
        count: number of images, N.
        function: maps indices of M images to named tensors, (M, ...) each.
        title: name of the function, for the progress.
        **settings: `store`, `progress` and `note` of `Work`.
    """

    def __init__(
        self,
        setup: Setup,
        count: int,
        function: Callable[[Sequence[int]], Mapping[str, Tensor]],
        title: str,
        **settings: Any,
    ):
        super().__init__(setup, **settings)
        self.function, self.title = function, title
        self.rows: Sequence[int] = range(count)
        self.state: Result = {}
        self.done, self.seconds = 0, 0.0

    @property
    def count(self) -> int:
        return len(self.rows)

    def prepare(self, shares: int, clean: None = None) -> None:
        shares = min(self._saved_shares(lambda saved: True, self._check) or shares, len(self.rows))
        self.parts = [self._share(i, shares) for i in range(shares)] if shares > 1 else [self]

    def _share(self, number: int, count: int) -> "RowwiseRun":
        part = self._part(number, count)
        part.rows = self.rows[number::count]
        return part

    def attack(self) -> tuple[Result, float]:
        """Compute the results of this share, with the seconds that they took."""
        with self.store.claimed() if self.store else nullcontext():
            self._load()
            earlier, start_time = self.seconds, time.monotonic()
            while self.done < len(self.rows):
                part = self.rows[self.done : self.done + _PART]
                new = self.function(part)
                self.state = {
                    name: torch.cat([self.state[name], values]) if self.done else values
                    for name, values in new.items()
                }
                self.done += len(part)
                self.seconds = earlier + time.monotonic() - start_time
                if self.store and (self.store.due() or self.done == len(self.rows)):
                    self._save()
                if self.progress:
                    self.progress(self.current_progress())
        return self.state, self.seconds

    def saved_result(self) -> tuple[Result, float] | None:
        self._load()
        return (self.state, self.seconds) if self.done == len(self.rows) else None

    def save_result(self, result: tuple[Result, float]) -> None:
        self.state, self.seconds = result
        self.done = len(self.rows)
        if self.store:
            with self.store.claimed():
                self._save()

    def conclude(self, results: list[tuple[Result, float]]) -> tuple[Result, float]:
        """The results of all images in order, and the longest time of a share."""
        count = len(results)
        whole = {}
        for name, values in results[0][0].items():
            whole[name] = torch.zeros(len(self.rows), *values.shape[1:], dtype=values.dtype)
            for number, (state, _) in enumerate(results):
                whole[name][number::count] = state[name]
        return whole, max(seconds for _, seconds in results)

    def current_progress(self) -> Progress:
        n, done = len(self.rows), self.done
        passes = int(self.state["forward"].sum()) if "forward" in self.state else done
        return Progress(self.title, 0, 1, done, n, n - done, n, passes, done / n, "certify")

    def _save(self) -> None:
        assert self.store
        self.store.save(self.state, {"done": self.done, "seconds": self.seconds, "costs": []})

    def _check(self, saved: Saved) -> None:
        check_facts(saved.facts, {"done": 0, "seconds": 0.0, "costs": []})
        rows = {len(tensor) for tensor in saved.tensors.values()} | {saved.facts["done"]}
        if len(rows) != 1 or max(rows) > len(self.rows):
            raise ValueError("results of other images")

    def _load(self) -> None:
        if self.store and (saved := self.store.load(self._check)):
            self.state, self.done = saved.tensors, saved.facts["done"]
            self.seconds = saved.facts["seconds"]


def bounds_of(
    case: Case, certifier: Certifier, title: str, workers: int | None = 1, **settings: Any
) -> tuple[Bounds, float]:
    """The bounds of all images of a case, and the seconds that they took.

    Args:
        title: canonical spec of the certifier.
        workers: maximum number of processes; None for one per torch thread.
        **settings: `store`, `progress` and `note` of `RowwiseRun`.
    """

    def bounds(rows: Sequence[int]) -> Result:
        return vars(certifier.bounds(case, rows))

    values, seconds = _results(case, bounds, len(case.images), title, workers, settings)
    return Bounds(**values), seconds


def verdicts_of(
    case: Case, certifier: Certifier, x: Any, rows: Sequence[int], workers: int | None = 1, **settings: Any
) -> list[int]:
    """The classes of the images `x` (M, C, H, W) by the classifier that the bounds are about; ABSTAINED for none.

    Args:
        x: adversarial examples of the images `rows` of the case.
        workers, settings: see `bounds_of`.
    """
    if not rows:
        return []

    def verdict(places: Sequence[int]) -> Result:
        return {"class": certifier.verdict(case, x[list(places)], [rows[place] for place in places])}

    values, _ = _results(case, verdict, len(rows), "verdict", workers, settings)
    return values["class"].tolist()


def _results(
    case: Case,
    function: Callable[[Sequence[int]], Mapping[str, Tensor]],
    count: int,
    title: str,
    workers: int | None,
    settings: dict[str, Any],
) -> tuple[Result, float]:
    setup = case.setup
    run = RowwiseRun(setup, count, function, title, **settings)
    # The function refers to objects that only a forked process has.
    workers = choose_workers(workers, setup.device, count, function, run.note)
    return single(run, Processes(workers), run.progress)
