"""Rows whose search and judge disagree, which go on in full precision.

A search in bf16, or with a compiled network, may take a point for an adversarial example that the judge classifies
correctly. Such a row would look for adversarial examples where only the search sees them. This query and all later ones
of the row are answered by the network as it is judged, in fp32.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Rows, gather
from robench.engine.attack_context import AttackContext
from robench.engine.batched_model import pad
from robench.engine.lanes import in_parts


def exact(
    context: AttackContext, answer: Answer, ask: Ask, rows: Rows, state: Any, queries: Tensor, lanes: Tensor
) -> Answer:
    """The answer to a query, with some lanes answered by `context.exact`.

    Args:
        answer: answer of the search to all lanes.
        ask, rows, state: the query, and the rows and the attack's state that it is of.
        queries: number of earlier passes of each row, (S,), on the CPU.
        lanes: (M,) int64, on the CPU; only lanes that make a query.
    """
    network, attack, device = context.exact, context.attack, context.device
    assert network is not None
    for _, part in in_parts(lanes, network.batch_size):
        index = pad(part, network.batch_size)
        place, source = part.to(device), index.to(device)
        few, objective = gather(rows, source), ask.objective
        if objective is not None:
            # An objective may hold values of every lane, such as target classes.
            objective = attack.ask(context.problem, few, gather(state, source)).objective
        points = answer.x.index_select(0, source)
        fresh = network.answer(points, objective, few, attack.eot, queries[index].to(device))
        names = ("logits",) if objective is None else ("logits", "loss", "grad", "broken", "column")
        changed = {name: (getattr(answer, name), getattr(fresh, name)) for name in names}
        answer = replace(
            answer,
            **{
                name: old.index_copy(0, place, new[: len(part)].to(old.dtype))
                for name, (old, new) in changed.items()
                if old is not None and new is not None
            },
        )
    return answer


def disagreements(context: AttackContext, candidates: Tensor, fooled: Tensor, lanes: int) -> Tensor | None:
    """Lanes whose point fools the search but not the judge, bool (lanes,); None if there is no such lane.

    There is none if the search is as exact as the judge, or if the judge draws noise.

    Args:
        candidates: lanes whose points were judged, (M,).
        fooled: number of the judge's draws that each of them fools, (M,).
    """
    if context.exact is None or context.judge.draws > 1 or bool(fooled.all()):
        return None
    disagree = torch.zeros(lanes, dtype=torch.bool)
    disagree[candidates[fooled == 0]] = True
    return disagree
