"""The path of an attack, point by point. Unlike in a run, a row continues after it has fooled the defense."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Problem, Rows
from robench.attacks.build import build_attacks
from robench.core.rng import Stream
from robench.diagnosis._base import Case
from robench.engine.batched_model import pad, wrong
from robench.engine.loss_monitor import VANISHED


@dataclass(frozen=True)
class Paths:
    """The paths of N images over T points, on the CPU.

    Attributes:
        loss: (N, T) float64, the loss that the attack maximizes.
        vanished: bool (N, T), whether the gradient is practically zero.
        wrong: bool (N, T), whether the surrogate is fooled; fooled: bool (N, T), whether the judge is, in any draw.
        last: (N, C, H, W), the attack's final answer; fooled_last: bool (N,), whether it fools the judge.
    """

    loss: Tensor
    vanished: Tensor
    wrong: Tensor
    fooled: Tensor
    last: Tensor
    fooled_last: Tensor

    @property
    def failed(self) -> Tensor:
        """Whether no point of an image's path fools the judge, bool (N,)."""
        return ~self.fooled.any(1)


def follow(case: Case, spec: str) -> Paths:
    """Run the attack `spec` on every image of `case` to its end.

    The path of a sample depends only on seed, spec and sample.
    """
    ((name, attack),) = build_attacks([spec], case.threat)
    parts = []
    for start in range(0, len(case.x), case.network.batch_size):
        piece = slice(start, start + case.network.batch_size)
        parts.append(_follow(case, name, attack, case.x[piece], case.y[piece], case.ids[piece]))
    return Paths(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _follow(case: Case, name: str, attack: Any, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    network, judge, n = case.network, case.judge, len(x)
    logits = network.logits(x, ids)
    x, y, ids, clean = (pad(part, network.batch_size) for part in (x, y, ids, logits))
    rows = Rows(x, y, clean, ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))
    problem = Problem(case.threat, clean.shape[1], Stream.of(case.seed, name))
    state = attack.init(problem, rows)
    queries = torch.zeros_like(ids)
    points: list[tuple[Tensor, ...]] = []
    while not bool(attack.finished(state).all()):
        ask = attack.ask(problem, rows, state)
        answer = network.answer(ask.x, ask.objective, rows, case.eot, queries)
        answer = attack.pull_back(problem, rows, state, answer)
        state = attack.tell(problem, rows, state, answer)
        queries += case.eot
        surrogate = wrong(answer.logits, y)
        judged = surrogate if case.surrogate_is_judge else judge.fooled(ask.x, y, ids) > 0
        tiny = answer.grad.flatten(1).abs().amax(1) < VANISHED
        points.append((answer.loss.double(), tiny, surrogate, judged))
    loss, vanished, fooled_network, fooled = (
        torch.stack(column, 1)[:n].cpu() for column in zip(*points, strict=True)
    )
    last = attack.best(state)
    fooled_last = judge.fooled(last, y, ids)[:n].cpu() > 0
    return loss, vanished, fooled_network, fooled, last[:n].cpu(), fooled_last
