"""Corruption runs: each image is classified once at each corruption and severity.

Images are processed in chunks, each through all corruptions. Other processes generate the next corrupted images while
the network classifies the current ones. The results do not depend on the number of processes.
"""

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.core.transfer import sent, sent_bytes
from robench.corruption.cache import Cache
from robench.corruption.suite import Cell
from robench.corruption.tasks import Task, digest_of, in_order
from robench.data import Images
from robench.data.corrupted import chunks, spans
from robench.engine.batched_model import frozen, undefined
from robench.engine.checkpoint import Saved
from robench.engine.progress import Progress
from robench.engine.run_queue import single
from robench.engine.saved_kinds import check_facts, check_tensors
from robench.engine.setup import Setup
from robench.engine.tolerances import margins, same_margins
from robench.engine.work import Work
from robench.engine.workers import Processes

# Minimum number of pixels, over all images and cells, at which other processes save more time than their start takes.
_MIN_PIXELS = 30e6


@dataclass(frozen=True)
class Answers:
    """The network's logits for one chunk of images at one cell.

    Attributes:
        rows: the images of the chunk.
        cell: index of the cell; -1 for the clean images.
        logits: (n, K).
        digest: sha256 of the corrupted pixels; empty for the clean images.
        seconds: time since the previous answers.
    """

    rows: slice
    cell: int
    logits: Tensor
    digest: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The results of a corruption run.

    Attributes:
        clean: predictions on the clean images, int64 (N,).
        margin: margins between the two highest logits of the clean images, float32 (N,).
        predictions: predictions on the corrupted images, int64 (N, cells).
        pixels: sha256 of the corrupted pixels of each chunk, uint8 (chunks, cells, 32).
        seconds: time spent on each cell, float64 (cells,).
        batch_size: number of images per network call.
    """

    clean: Tensor
    margin: Tensor
    predictions: Tensor
    pixels: Tensor
    seconds: Tensor
    batch_size: int


@dataclass(frozen=True)
class CorruptionShare:
    """The results of one share of a corruption run; rows of other shares are meaningless.

    Attributes:
        chunks: indices of the chunks of the share.
        state: see `Outcome`.
    """

    chunks: list[int]
    state: dict[str, Tensor]


class CorruptionRun(Work):
    """All images at all cells, except those that `store` has results of.

    A share has whole chunks of images. Without other shares, `workers` processes generate the images.

    Args:
        setup, cells, workers, cache: see `answers`.
        **settings: `store`, `progress` and `note` of `Work`.
    """

    def __init__(
        self,
        setup: Setup,
        images: Images,
        cells: Sequence[Cell],
        *,
        workers: int | None = None,
        cache: Cache | None = None,
        **settings: Any,
    ):
        super().__init__(setup, **settings)
        self.images, self.cells, self.workers, self.cache = images, cells, workers, cache
        self.chunks = list(range(len(spans(images))))
        self.done = 0
        n, count = len(images), len(self.chunks)
        self.state = {
            "clean": torch.zeros(n, dtype=torch.int64),
            "margin": torch.zeros(n),
            "predictions": torch.zeros(n, len(cells), dtype=torch.int32),
            "pixels": torch.zeros(count, len(cells), 32, dtype=torch.uint8),
            "seconds": torch.zeros(len(cells), dtype=torch.float64),
        }

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def total(self) -> int:
        """Number of answers of this share."""
        return len(self.chunks) * (len(self.cells) + 1)

    def prepare(self, shares: int, clean: None = None) -> None:
        shares = min(self._saved_shares(self._matches, self._check) or shares, len(self.chunks))
        self.parts = [self._share(i, shares) for i in range(shares)] if shares > 1 else [self]

    def _share(self, number: int, count: int) -> "CorruptionRun":
        part = self._part(number, count)
        part.chunks = self.chunks[number::count]
        part.state = {name: tensor.clone() for name, tensor in self.state.items()}
        # The shares run in parallel already, each in one process; only GPUs need more for their images.
        part.workers = 1 if self.device.type == "cpu" else max(1, (os.cpu_count() or 1) // count)
        return part

    def attack(self) -> CorruptionShare:
        """Classify the images of this share."""
        with self.store.claimed() if self.store else nullcontext():
            self._classify()
        return CorruptionShare(self.chunks, self.state)

    def _classify(self) -> None:
        if self.store and (saved := self.store.load(self._check)):
            self.state, self.done = saved.tensors, saved.facts["done"]
        state, calls = self.state, 0
        remaining = answers(
            self.setup,
            self.images,
            self.cells,
            workers=self.workers,
            cache=self.cache,
            skip=self.done,
            chunk_indices=self.chunks,
        )
        for number, answer in enumerate(remaining, self.done):
            # A NaN logit counts as wrong; argmax would return its index.
            predicted = torch.where(undefined(answer.logits), -1, answer.logits.topk(1, 1).indices[:, 0])
            if answer.cell < 0:
                state["clean"][answer.rows] = predicted
                state["margin"][answer.rows] = margins(answer.logits)
            else:
                state["predictions"][answer.rows, answer.cell] = predicted.int()
                digest = torch.tensor(list(bytes.fromhex(answer.digest)), dtype=torch.uint8)
                state["pixels"][self.chunks[number // (len(self.cells) + 1)], answer.cell] = digest
                state["seconds"][answer.cell] += answer.seconds
            self.done = number + 1
            calls += len(predicted)
            # The results of a whole run are written as its record at once.
            if self.store and (self.store.due() if self.done < self.total else not self._is_whole):
                self._save()
            if self.progress:
                self.progress(self.current_progress(calls))

    @property
    def _is_whole(self) -> bool:
        return len(self.chunks) == len(self.state["pixels"])

    def _save(self) -> None:
        assert self.store
        self.store.save(self.state, {"done": self.done, "first": self.chunks[0]})

    def saved_result(self) -> CorruptionShare | None:
        saved = self.store.load(self._check) if self.store else None
        if saved is None or saved.facts["done"] < self.total:
            return None
        self.state, self.done = saved.tensors, self.total
        return CorruptionShare(self.chunks, self.state)

    def save_result(self, result: CorruptionShare) -> None:
        self.state, self.done = result.state, self.total
        if self.store and not self._is_whole:
            with self.store.claimed():
                self._save()

    def conclude(self, results: list[CorruptionShare]) -> Outcome:
        """The outcome from the results of all shares."""
        rows = spans(self.images)
        for result in results:
            for name in ("clean", "margin", "predictions"):
                for chunk in result.chunks:
                    self.state[name][rows[chunk]] = result.state[name][rows[chunk]]
            self.state["pixels"][result.chunks] = result.state["pixels"][result.chunks]
        state = self.state
        return Outcome(
            state["clean"],
            state["margin"],
            state["predictions"].long(),
            state["pixels"],
            torch.stack([result.state["seconds"] for result in results]).sum(0),
            self.setup.batch_size,
        )

    def _check(self, saved: Saved) -> None:
        check_facts(saved.facts, {"done": 0, "first": 0})
        check_tensors(saved.tensors, self.state)
        if saved.facts["done"] > self.total or saved.facts.get("first", 0) >= len(spans(self.images)):
            raise ValueError("results of other images")

    def _matches(self, saved: Saved) -> bool:
        """Whether the first clean margins equal those of the interrupted run, on a CPU bit for bit."""
        clean = answers(self.setup, self.images, (), workers=1, chunk_indices=[saved.facts.get("first", 0)])
        with closing(clean):
            first = next(clean)
        saved_margins, current = saved.tensors["margin"][first.rows], margins(first.logits)
        if self.device.type == "cpu":
            return torch.allclose(saved_margins, current, rtol=0, atol=0, equal_nan=True)
        return bool(same_margins(saved_margins, current).all())

    def current_progress(self, calls: int = 0) -> Progress:
        """The progress of this share.

        Args:
            calls: number of images that the network has been called on.
        """
        rows = spans(self.images)
        sizes = [rows[chunk].stop - rows[chunk].start for chunk in self.chunks]
        left = sum(sizes[self.done // (len(self.cells) + 1) :])
        share = self.done / self.total
        return Progress(
            "corruptions", 0, 1, self.done, self.total, left, sum(sizes), calls, share, left="classify"
        )


def classify(setup: Setup, images: Images, cells: Sequence[Cell], **options: Any) -> Outcome:
    """The outcome of a corruption run in this process.

    Args:
        **options: arguments of `CorruptionRun`.
    """
    run = CorruptionRun(setup, images, cells, **options)
    return single(run, Processes(), run.progress)


def answers(
    setup: Setup,
    images: Images,
    cells: Sequence[Cell],
    *,
    workers: int | None = None,
    cache: Cache | None = None,
    skip: int = 0,
    chunk_indices: Sequence[int] | None = None,
) -> Generator[Answers]:
    """Yield the network's answers chunk by chunk: for each chunk first the clean images, then every cell.

    Args:
        setup: the defense. The seed determines the corruptions; seed, image and cell determine the single noise draw of
            a randomized defense.
        workers: number of processes that generate images; None for one per core, if there is enough work.
        cache: cache of corrupted images.
        skip: number of answers to skip.
        chunk_indices: the chunks to classify; None for all.
    """
    network, device = setup.network("corruption"), setup.device
    rows_of = spans(images)
    selected = rows_of if chunk_indices is None else [rows_of[index] for index in chunk_indices]
    queries = [(rows, cell) for rows in selected for cell in range(-1, len(cells))][skip:]
    tasks = _tasks(images, cells, setup.seed, cache, [(rows, cell) for rows, cell in queries if cell >= 0])
    results = in_order(tasks, _workers(images, cells, workers))
    last_time = time.monotonic()
    with frozen(setup.model):
        for rows, cell in queries:
            if cell < 0:
                x, digest = sent(images.x[rows], device), ""
            else:
                corrupted = next(results)
                x, digest = sent_bytes(corrupted.pixels, device), corrupted.digest
            ids = images.ids[rows].to(device)
            logits = network.logits(x, ids, draw=cell + 1).float().cpu()
            now = time.monotonic()
            yield Answers(rows, cell, logits, digest, now - last_time)
            last_time = now


def _tasks(
    images: Images,
    cells: Sequence[Cell],
    seed: int,
    cache: Cache | None,
    queries: Sequence[tuple[slice, int]],
) -> Iterator[Task]:
    cells_of: dict[int, list[int]] = {}
    for rows, cell in queries:
        cells_of.setdefault(rows.start, []).append(cell)
    for rows, pixels, ids in chunks(images):
        if rows.start not in cells_of:
            continue
        digest = digest_of(pixels, ids) if cache else ""
        for number in cells_of[rows.start]:
            cell = cells[number]
            yield Task(pixels, ids, cell.name, cell.severity, seed, cell.jpeg, digest, cache)


def _workers(images: Images, cells: Sequence[Cell], workers: int | None) -> int:
    if workers is not None:
        return workers
    pixels = images.x[:1].numel() / 3 * len(images) * len(cells)
    return (os.cpu_count() or 1) if pixels >= _MIN_PIXELS else 1
