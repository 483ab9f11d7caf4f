"""A defense under corruptions: each image, at each corruption and severity, classified once.

Chunks of images go through all corruptions before the next chunk, and processes make the next images while the
network is busy with these. Nothing that comes out depends on how many there are.
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

# Pixels of all images and cells from which on other processes are worth their start.
_MANY = 30e6


@dataclass(frozen=True)
class Answers:
    """What the network says to one chunk of images: (n, K) logits at one cell.

    Attributes:
        rows: which images.
        cell: its place among the cells; -1 for the images as they are.
        digest: sha256 of the pixels that were asked about, empty for the images as they are.
        seconds: since the answers before.
    """

    rows: slice
    cell: int
    logits: Tensor
    digest: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a defense says to images under corruptions.

    Attributes:
        clean: int64 (N,), predictions on the images as they are; margin: float32 (N,), of the best logit there.
        predictions: int64 (N, cells).
        pixels: uint8 (chunks, cells, 32), sha256 of the corrupted pixels of each chunk.
        seconds: float64 (cells,), spent on each.
        batch_size: images a network call.
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
    """Ask for everything that `store` does not hold yet.

    Args:
        setup, workers, cache: see `answers`.
        store: where to save to and resume from.
        progress: called after every chunk at every cell.
    """
    n, blocks = len(images), len(spans(images))
    state = {
        "clean": torch.zeros(n, dtype=torch.int64),
        "margin": torch.zeros(n),
        "predictions": torch.zeros(n, len(cells), dtype=torch.int32),
        "pixels": torch.zeros(blocks, len(cells), 32, dtype=torch.uint8),
        "seconds": torch.zeros(len(cells), dtype=torch.float64),
    }
    facts: dict[str, Any] = {"done": 0}
    if store and (saved := store.load()):
        if _answers_as(saved, setup, images):
            state, facts = saved.tensors, saved.facts
        else:
            store.forget("the defense gives other logits here than when the run was interrupted")
    total, done = blocks * (len(cells) + 1), facts["done"]
    calls = 0
    queries = answers(setup, images, cells, workers=workers, cache=cache, skip=done)
    for number, answer in enumerate(queries, done):
        # A NaN among the logits is a wrong answer: argmax would make it a class.
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
            progress(_standing(state, images, answer.rows.stop, number + 1, total, calls))
    return Outcome(
        state["clean"],
        state["margin"],
        state["predictions"].long(),
        state["pixels"],
        state["seconds"],
        setup.batch_size,
    )


def _answers_as(saved: Saved, setup: Setup, images: Images) -> bool:
    """Whether the first images' clean margins are those of the run that was interrupted: on a CPU bit for bit."""
    queries = answers(setup, images, (), workers=1)
    with closing(queries):
        first = next(queries)
    then, now = saved.tensors["margin"][first.rows], margins(first.logits)
    if setup.device.type == "cpu":
        return torch.allclose(then, now, rtol=0, atol=0, equal_nan=True)
    return bool(same_margins(then, now).all())


def answers(
    setup: Setup,
    images: Images,
    cells: Sequence[Cell],
    *,
    workers: int | None = None,
    cache: Cache | None = None,
    skip: int = 0,
) -> Generator[Answers]:
    """The network's answers, chunk by chunk, for each first the images as they are and then every cell.

    Args:
        setup: the defense; its seed decides the corruptions, and with image and cell the one draw of a randomised
            defense's noise.
        workers: processes that make images; None for one a core, where there is enough to do.
        cache: where corrupted images are looked for and kept.
        skip: number of answers, from the first, that are not needed again.
    """
    network, device = setup.network("corruption"), setup.device
    wanted = list(_queries(images, cells, skip))
    tasks = _tasks(images, cells, setup.seed, cache, [(rows, cell) for rows, cell in wanted if cell >= 0])
    made = in_order(tasks, _workers(images, cells, workers))
    before = time.monotonic()
    with frozen(setup.model):
        for rows, cell in wanted:
            if cell < 0:
                x, digest = images.x[rows], ""
            else:
                found = next(made)
                x, digest = tensor(found.pixels), found.digest
            ids = images.ids[rows].to(device)
            logits = network.logits(x.to(device), ids, draw=cell + 1).float().cpu()
            now = time.monotonic()
            yield Answers(rows, cell, logits, digest, now - before)
            before = now


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
    wanted: Sequence[tuple[slice, int]],
) -> Iterator[Task]:
    asked: dict[int, list[int]] = {}
    for rows, cell in wanted:
        asked.setdefault(rows.start, []).append(cell)
    for rows, pixels, ids in chunks(images):
        if rows.start not in asked:
            continue
        digest = digest_of(pixels, ids) if cache else ""
        for number in asked[rows.start]:
            cell = cells[number]
            yield Task(pixels, ids, cell.name, cell.severity, seed, cell.jpeg, digest, cache)


def _workers(images: Images, cells: Sequence[Cell], asked: int | None) -> int:
    if asked is not None:
        return asked
    much = images.x[:1].numel() / 3 * len(images) * len(cells) >= _MANY
    return (os.cpu_count() or 1) if much else 1


def _standing(
    state: dict[str, Tensor], images: Images, begun: int, done: int, total: int, calls: int
) -> Progress:
    right = int((state["clean"][:begun] == images.y[:begun]).sum())
    return Progress("corruptions", 0, 1, done, total, right, begun, calls, done / total)
