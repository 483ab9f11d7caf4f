"""Corruption runs: each image is classified once at each corruption and severity.

Images are processed in chunks, each through all corruptions. Other processes generate the next corrupted images while
the network classifies the current ones. The results do not depend on the number of processes.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.corruption.cache import Cache
from robench.corruption.suite import Cell
from robench.corruption.tasks import Task, digest_of, in_order
from robench.data import Images
from robench.data.corrupted import chunks, spans, tensor
from robench.engine.batched_model import frozen, undefined
from robench.engine.checkpoint import Saved, Store
from robench.engine.progress import Progress
from robench.engine.setup import Setup
from robench.engine.tolerances import margins, same_margins

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


def play(
    setup: Setup,
    images: Images,
    cells: Sequence[Cell],
    *,
    workers: int | None = None,
    cache: Cache | None = None,
    store: Store | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Classify all images at all cells, except those that `store` has results of.

    Args:
        setup, workers, cache: see `answers`.
        store: where to save to and resume from.
        progress: called after every chunk at every cell.
    """
    n, count = len(images), len(spans(images))
    state = {
        "clean": torch.zeros(n, dtype=torch.int64),
        "margin": torch.zeros(n),
        "predictions": torch.zeros(n, len(cells), dtype=torch.int32),
        "pixels": torch.zeros(count, len(cells), 32, dtype=torch.uint8),
        "seconds": torch.zeros(len(cells), dtype=torch.float64),
    }
    facts: dict[str, Any] = {"done": 0}
    if store and (saved := store.load()):
        if _matches(saved, setup, images):
            state, facts = saved.tensors, saved.facts
        else:
            store.forget("the logits of the defense differ from those before the interruption")
    total, done = count * (len(cells) + 1), facts["done"]
    calls = 0
    remaining = answers(setup, images, cells, workers=workers, cache=cache, skip=done)
    for number, answer in enumerate(remaining, done):
        # A NaN logit counts as wrong; argmax would return its index.
        predicted = torch.where(undefined(answer.logits), -1, answer.logits.topk(1, 1).indices[:, 0])
        if answer.cell < 0:
            state["clean"][answer.rows] = predicted
            state["margin"][answer.rows] = margins(answer.logits)
        else:
            state["predictions"][answer.rows, answer.cell] = predicted.int()
            digest = torch.tensor(list(bytes.fromhex(answer.digest)), dtype=torch.uint8)
            state["pixels"][number // (len(cells) + 1), answer.cell] = digest
            state["seconds"][answer.cell] += answer.seconds
        facts = {"done": number + 1}
        calls += len(predicted)
        if store and number + 1 < total and store.due():
            store.save(state, facts)
        if progress:
            progress(_progress(state, images, answer.rows.stop, number + 1, total, calls))
    return Outcome(
        state["clean"],
        state["margin"],
        state["predictions"].long(),
        state["pixels"],
        state["seconds"],
        setup.batch_size,
    )


def _matches(saved: Saved, setup: Setup, images: Images) -> bool:
    """Whether the first clean margins equal those of the interrupted run, on a CPU bit for bit."""
    clean = answers(setup, images, (), workers=1)
    with closing(clean):
        first = next(clean)
    saved_margins, current = saved.tensors["margin"][first.rows], margins(first.logits)
    if setup.device.type == "cpu":
        return torch.allclose(saved_margins, current, rtol=0, atol=0, equal_nan=True)
    return bool(same_margins(saved_margins, current).all())


def answers(
    setup: Setup,
    images: Images,
    cells: Sequence[Cell],
    *,
    workers: int | None = None,
    cache: Cache | None = None,
    skip: int = 0,
) -> Generator[Answers]:
    """Yield the network's answers chunk by chunk: for each chunk first the clean images, then every cell.

    Args:
        setup: the defense. The seed determines the corruptions; seed, image and cell determine the single noise draw of
            a randomised defense.
        workers: number of processes that generate images; None for one per core, if there is enough work.
        cache: cache of corrupted images.
        skip: number of answers to skip.
    """
    network, device = setup.network("corruption"), setup.device
    queries = list(_queries(images, cells, skip))
    tasks = _tasks(images, cells, setup.seed, cache, [(rows, cell) for rows, cell in queries if cell >= 0])
    results = in_order(tasks, _workers(images, cells, workers))
    last_time = time.monotonic()
    with frozen(setup.model):
        for rows, cell in queries:
            if cell < 0:
                x, digest = images.x[rows], ""
            else:
                corrupted = next(results)
                x, digest = tensor(corrupted.pixels), corrupted.digest
            ids = images.ids[rows].to(device)
            logits = network.logits(x.to(device), ids, draw=cell + 1).float().cpu()
            now = time.monotonic()
            yield Answers(rows, cell, logits, digest, now - last_time)
            last_time = now


def _queries(images: Images, cells: Sequence[Cell], skip: int) -> Iterator[tuple[slice, int]]:
    queries = ((rows, cell) for rows in spans(images) for cell in range(-1, len(cells)))
    for number, query in enumerate(queries):
        if number >= skip:
            yield query


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


def _progress(
    state: dict[str, Tensor], images: Images, started: int, done: int, total: int, calls: int
) -> Progress:
    correct = int((state["clean"][:started] == images.y[:started]).sum())
    return Progress("corruptions", 0, 1, done, total, correct, started, calls, done / total)
