"""Answers of lanes from a network, in batches that rows and noise draws share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor

from robench.attacks._base import Answer, Objective, Rows, tensors
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
        len(lanes) == len(x) or not (objective is None or isinstance(objective, OnLogits))
    ):
        # Other objectives may use tensors of all lanes.
        lanes = None
    answer = _averaged(network, x, objective, rows, lanes, eot, queries)
    return answer if lanes is None else _scattered(answer, lanes)


def logits_of_draws(network: Evaluates, x: Tensor, ids: Tensor, draws: int) -> Tensor:
    """Logits of images with ids (N,), of any number, in the noise draws 0 .. draws - 1, (draws, N, K)."""
    zeros = torch.zeros_like(ids)
    (logits,) = _entries(network, x, None, None, (ids, zeros, zeros), None, draws)
    return logits


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
    logits, *rest = _entries(network, x, objective, rows, who, lanes, draws)
    mean = (lambda tensor: tensor[0]) if draws == 1 else (lambda tensor: tensor.mean(0))
    if not rest:
        return Answer(x, mean(logits), x.new_empty(0), x.new_empty(0))
    grad, loss, broken, *column = rest
    any_broken = broken[0] if draws == 1 else broken.any(0)
    return Answer(x, mean(logits), mean(loss), mean(grad), any_broken, *map(mean, column))


def _entries(
    network: Evaluates,
    x: Tensor,
    objective: Objective | None,
    rows: Rows | None,
    who: tuple[Tensor, Tensor, Tensor],
    lanes: Tensor | None,
    draws: int,
) -> list[Tensor]:
    """Logits, gradient, loss and broken gradients of every draw in some lanes (L,), or all, (draws, L, ...) each; only
    logits without an objective. Entry i is draw i // L in lane i % L, and a batch holds as many entries as fit."""
    count = len(x) if lanes is None else len(lanes)
    size = network.shapes.full if objective is None or isinstance(objective, OnLogits) else count
    cost = objective.cost if isinstance(objective, Cheapest) and draws == 1 else None
    if draws == 1 and count <= size:
        noise = () if network.stream is None else who
        inputs = [x, *noise] if lanes is None else [tensor.index_select(0, lanes) for tensor in (x, *noise)]
        outputs = _batch(network, objective, rows, lanes, inputs, cost)
        return [tensor[None] for tensor in outputs]
    if lanes is None:
        lanes = torch.arange(count, device=x.device)
    entries = lanes.repeat(draws)
    step = torch.arange(draws, device=x.device).repeat_interleave(count)
    batches = []
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        inputs = [tensor.index_select(0, part) for tensor in (x, *who)]
        inputs[3] = inputs[3] + step[start : start + size]
        batches.append(_batch(network, objective, rows, part, inputs, cost))
    joined = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*batches, strict=True)]
    return [tensor.view(draws, count, *tensor.shape[1:]) for tensor in joined]


def _batch(
    network: Evaluates,
    objective: Objective | None,
    rows: Rows | None,
    lanes: Tensor | None,
    inputs: list[Tensor],
    cost: Callable[[Tensor, Tensor], Tensor] | None,
) -> list[Tensor]:
    """The results of one batch of entries.

    Args:
        lanes: lane of each entry; None for all lanes in order.
        inputs: images, then samples, ranks and draws if the network draws noise.
        cost: if given, only the gradient of the lowest cost may be computed, see `Cheapest`.
    """
    count = len(inputs[0])

    def on_logits(logits: Tensor) -> Tensor:
        # Padding does not enter the loss.
        logits = logits if len(logits) == count else logits[:count]
        loss, given = cast(Objective, objective), cast(Rows, rows)
        if isinstance(loss, OnLogits):
            return loss.of_lanes(logits, given.y, lanes)
        return loss(logits, given)

    def call(size: int) -> list[Tensor]:
        x, *who = (pad(tensor, size) for tensor in inputs)
        numbers = cast(Who, tuple(who)) if who else None
        answer = network.evaluate(x, None if objective is None else on_logits, numbers, cost)
        if objective is None:
            return [answer.logits]
        column = () if answer.column is None else (answer.column,)
        return [answer.logits, answer.grad, answer.loss, cast(Tensor, answer.broken), *column]

    return network.shapes.call("logits" if objective is None else "gradient", count, call)


def _scattered(answer: Answer, lanes: Tensor) -> Answer:
    """The answer of all lanes from that of some; zero elsewhere."""

    def spread(tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor
        return tensor.new_zeros((len(answer.x), *tensor.shape[1:])).index_copy_(0, lanes, tensor)

    return replace(
        answer, **{name: spread(tensor) for name, tensor in tensors(answer).items() if name != "x"}
    )
