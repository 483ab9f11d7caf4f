"""Shared by the tests of single attacks: rows, and a minimal loop of `ask` and `tell`."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robench.attacks._base import Answer, Ask, Attack, OnFeatures, Problem, Rows, gather, select
from robench.core.rng import Stream
from robench.threats.threat import Threat


class RowByRow(nn.Module):
    """A curved classifier whose output for an image does not depend on its lane, bit for bit."""

    def __init__(self, classes: int, side: int = 8, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(classes, 3, side, side, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        weighted = (x[:, None] * self.weight).flatten(2)
        return weighted.sum(2) + 0.3 * weighted.square().sum(2).sin()


def problem(threat: str, classes: int) -> Problem:
    return Problem(Threat.parse(threat), classes, Stream.of(0, "test"))


def rows_of(model: nn.Module, x: Tensor, ranks: Sequence[int] | None = None) -> Rows:
    """Rows of correctly classified images: the labels are the predictions of the model."""
    logits = model(x).detach()
    rank = torch.zeros(len(x)) if ranks is None else torch.tensor(ranks)
    return Rows(x, logits.argmax(1), logits, torch.arange(len(x)), rank.long(), torch.ones(len(x)) > 0)


def answer(model: nn.Module, ask: Ask, rows: Rows) -> Answer:
    """The answer of the model to a query."""
    if ask.objective is None:
        return Answer(ask.x, model(ask.x), torch.empty(0), torch.empty(0))
    point = ask.x.detach().requires_grad_()
    logits = model(point)
    if isinstance(ask.objective, OnFeatures):
        loss = ask.objective(logits, rows, point, (model.features(point),))
    else:
        loss = ask.objective(logits, rows)
    columns = loss.unbind(1) if loss.dim() == 2 else (loss,)
    grads = [torch.autograd.grad(column.sum(), point, retain_graph=True)[0] for column in columns]
    grad = torch.stack(grads, 1) if loss.dim() == 2 else grads[0]
    return Answer(ask.x, logits.detach(), loss.detach(), grad)


def play(
    model: nn.Module,
    attack: Attack,
    task: Problem,
    rows: Rows,
    turns: int,
    delays: Sequence[int] | None = None,
) -> tuple[list[list[Tensor | None]], object]:
    """Run `ask` and `tell`; lane i (re)starts after delays[i] turns.

    Returns:
        The point of each lane in each turn, None where it waits, and the last state.
    """
    state, asked = attack.init(task, rows), []
    for turn in range(turns):
        if delays is not None:
            state = select(torch.tensor(delays) == turn, attack.init(task, rows), state)
        ask, probes = attack.ask(task, rows, state), attack.probes(state)
        waits = torch.zeros(len(ask.x), dtype=torch.bool)
        if probes is not None:
            # All queries of a turn are of one kind.
            ask, waits = replace(ask, objective=None) if probes.any() else ask, probes != probes.any()
        reply = attack.pull_back(task, rows, state, answer(model, ask, rows))
        # A waiting lane ignores its answer and asks again.
        asked.append([None if wait else x for x, wait in zip(ask.x, waits, strict=True)])
        state = attack.tell(task, rows, state, reply)
    return asked, state


def check_lanes(model: nn.Module, attack: Attack, task: Problem, rows: Rows, turns: int) -> None:
    """Every row makes the same queries, bit for bit, next to other rows at other steps and next to copies of itself."""
    lanes = len(rows.x)
    delays = [(5 * i) % 7 for i in range(lanes)]
    mixed, _ = play(model, attack, task, rows, turns + 7, delays)
    for lane in range(0, lanes, 2):
        alone, _ = play(model, attack, task, gather(rows, torch.full((lanes,), lane)), turns)
        ours = [points[lane] for points in mixed[delays[lane] :] if points[lane] is not None]
        theirs = [points[0] for points in alone if points[0] is not None]
        assert min(len(ours), len(theirs)) >= turns // 2
        for question, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            assert torch.equal(one, other), (lane, question)
