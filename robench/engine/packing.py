"""Answers of lanes from a network, in batches that rows and noise draws share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor

from robench.attacks._base import Answer, Objective, Rows, tensors, write
from robench.attacks._objective_types import Cheapest, OnLogits
from robench.core.rng import Stream
from robench.engine.batch_shapes import BatchShapes

# Sample, rank and draw of every row, int64 (N,) each, which determine its noise; None without noise.
Who = tuple[Tensor, Tensor, Tensor] | None


class Evaluates(Protocol):
    """The part of `robench.engine.batched_model.Network` that this needs."""

    shapes: BatchShapes
    stream: Stream | None

    def evaluate(
        self,
        x: Tensor,
        objective: Callable[[Tensor], Tensor] | None,
        who: Who,
        cost: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Answer: ...


def pad(x: Tensor, length: int) -> Tensor:
    """Pad `x` to `length` rows with copies of its first row."""
    missing = length - len(x)
    return x if missing == 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


def answer_of_lanes(
    network: Evaluates,
    x: Tensor,
    objective: Objective | None,
    rows: Rows,
    eot: int,
    queries: Tensor,
    lanes: Tensor | None = None,
) -> Answer:
    """See `Network.answer`."""
    if lanes is not None and (
        _takes_all(network, x, objective, lanes, eot)
        or not (objective is None or isinstance(objective, OnLogits))
    ):
        # Other objectives may use tensors of all lanes.
        lanes = None
    answer = _averaged(network, x, objective, rows, lanes, eot, queries)
    return answer if lanes is None else _scattered(answer, lanes)


def _takes_all(network: Evaluates, x: Tensor, objective: Objective | None, lanes: Tensor, eot: int) -> bool:
    """Whether a batch of these lanes has place for all lanes, which then need not be gathered, padded and scattered.

    The noise of a randomized model depends on the first row of the batch.
    """
    if len(lanes) == len(x):
        return True
    if network.stream is not None or eot > 1:
        return False
    return network.shapes.settled(_kind(objective), len(lanes)) == len(x)


def _kind(objective: Objective | None) -> str:
    """The kind of a call, see `BatchShapes.call`."""
    return "logits" if objective is None else "gradient"


def logits_of_draws(network: Evaluates, x: Tensor, ids: Tensor, draws: int) -> Tensor:
    """Logits of images with ids (N,), of any number, in the noise draws 0 .. draws - 1, (draws, N, K)."""
    zeros = torch.zeros_like(ids)
    (logits,) = _entries(network, x, None, None, (ids, zeros, zeros), None, draws)
    return logits.unflatten(0, (draws, len(ids)))


def _averaged(
    network: Evaluates,
    x: Tensor,
    objective: Objective | None,
    rows: Rows,
    lanes: Tensor | None,
    draws: int,
    queries: Tensor,
) -> Answer:
    """The answer of some lanes (L,), or of all, averaged over draws."""
    who = rows.sample, rows.rank, queries
    entries = _entries(network, x, objective, rows, who, lanes, draws)
    if draws > 1:
        entries = [_over_draws(tensor.unflatten(0, (draws, -1))) for tensor in entries]
    logits, *rest = entries
    if not rest:
        return Answer(x, logits, x.new_empty(0), x.new_empty(0))
    grad, loss, *checked = rest
    return Answer(x, logits, loss, grad, *checked)


def _over_draws(tensor: Tensor) -> Tensor:
    """The mean over the draws, or whether any draw has a property."""
    return tensor.any(0) if tensor.dtype == torch.bool else tensor.mean(0)


def _entries(
    network: Evaluates,
    x: Tensor,
    objective: Objective | None,
    rows: Rows | None,
    who: tuple[Tensor, Tensor, Tensor],
    lanes: Tensor | None,
    draws: int,
) -> list[Tensor]:
    """Logits, gradient, loss and broken gradients of every draw in some lanes (L,), or all, (draws * L, ...) each; only
    logits without an objective. Entry i is draw i // L in lane i % L, and a batch holds as many entries as fit."""
    count = len(x) if lanes is None else len(lanes)
    size = network.shapes.full if objective is None or isinstance(objective, OnLogits) else count
    cost = objective.cost if isinstance(objective, Cheapest) and draws == 1 else None
    if draws == 1 and count <= size:
        noise = () if network.stream is None else who
        if lanes is not None:
            noise = tuple(tensor.index_select(0, lanes) for tensor in noise)
        return _batch(network, objective, rows, x, lanes, noise, cost)
    if lanes is None:
        lanes = torch.arange(count, device=x.device)
    entries = lanes.repeat(draws)
    step = torch.arange(draws, device=x.device).repeat_interleave(count)
    batches = []
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        sample, rank, draw = (tensor.index_select(0, part) for tensor in who)
        noise = sample, rank, draw + step[start : start + size]
        batches.append(_batch(network, objective, rows, x, part, noise, cost))
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*batches, strict=True)]


def _batch(
    network: Evaluates,
    objective: Objective | None,
    rows: Rows | None,
    x: Tensor,
    lanes: Tensor | None,
    noise: tuple[Tensor, ...],
    cost: Callable[[Tensor, Tensor], Tensor] | None,
) -> list[Tensor]:
    """The results of one batch of entries.

    Args:
        x: images of all lanes.
        lanes: lane of each entry; None for all lanes in order.
        noise: sample, rank and draw of each entry if the network draws noise, else empty.
        cost: if given, only the gradient of the lowest cost may be computed, see `Cheapest`.
    """
    count = len(x) if lanes is None else len(lanes)

    def on_logits(logits: Tensor) -> Tensor:
        # Padding does not enter the loss.
        logits = logits if len(logits) == count else logits[:count]
        loss, given = cast(Objective, objective), cast(Rows, rows)
        if isinstance(loss, OnLogits):
            return loss.of_lanes(logits, given.y, lanes)
        return loss(logits, given)

    def call(size: int) -> list[Tensor]:
        images = pad(x, size) if lanes is None else x.index_select(0, pad(lanes, size))
        who = cast(Who, tuple(pad(tensor, size) for tensor in noise)) if noise else None
        answer = network.evaluate(images, None if objective is None else on_logits, who, cost)
        if objective is None:
            return [answer.logits]
        column = () if answer.column is None else (answer.column,)
        return [answer.logits, answer.grad, answer.loss, cast(Tensor, answer.broken), *column]

    return network.shapes.call(_kind(objective), count, call)


def _scattered(answer: Answer, lanes: Tensor) -> Answer:
    """The answer of all lanes from that of some; zero elsewhere."""

    def spread(tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor
        return write(tensor.new_zeros((len(answer.x), *tensor.shape[1:])), lanes, tensor)

    return replace(
        answer, **{name: spread(tensor) for name, tensor in tensors(answer).items() if name != "x"}
    )
