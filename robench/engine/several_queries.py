"""Turns with several queries of each row, for attacks whose next queries are known while candidates are rejected."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.attacks._base import gather
from robench.engine.ahead import Plan
from robench.engine.host import on_host
from robench.engine.lanes import put

if TYPE_CHECKING:
    from robench.engine.attack_loop import Loop


def turn_ahead(loop: "Loop", active: Tensor, plan: Plan) -> None:
    """Query several steps ahead when few rows are left and rejected candidates do not change the next query.

    Further lanes evaluate later queries of the same row. The first accepted one invalidates those after it, which
    are queried again, so the row runs exactly as if it were alone in its lane.
    """
    assert loop.rows is not None and loop.state is not None
    context, attack, problem, rows = loop.context, loop.context.attack, loop.context.problem, plan.rows
    active_lanes, lane = plan.lanes, plan.lanes[plan.row]
    current = gather(loop.state, plan.source)
    before = attack.advance(problem, rows, current, plan.ahead)
    ask = attack.ask(problem, rows, before)
    queries = loop.lanes.queries[lane, 0] + plan.offset * attack.eot
    answer = loop.query(ask.x, ask, rows, before, queries, loop.exactly(lane))
    after = attack.tell(problem, rows, before, answer)
    facts = on_host(
        finished=attack.finished(before),
        moved=attack.moved(after),
        over=attack.finished(after),
        **loop.verdicts.facts(answer.logits, ask.x, rows),
    )
    valid = ~facts["finished"]
    draws = loop.verdicts.judge(ask.x, ask.x, facts, rows, valid)
    disagree = loop.verdicts.disagree
    event = facts["moved"]
    if draws is not None:
        event = event | (draws > 0)
    if disagree is not None and bool(disagree.any()):
        after = loop.told_exactly(answer, ask, rows, before, queries, disagree.nonzero()[:, 0])
        facts["over"] = attack.finished(after).cpu()
        event = event | disagree
    event = valid & event

    # For each row: the first entry with an event, else the last valid one.
    first = plan.first(event)
    chosen = torch.where(first < len(event), first, plan.last(valid))
    if disagree is not None:
        loop.go_on_exactly(active_lanes[disagree[chosen]])
    source, index = active_lanes.to(context.device), chosen.to(context.device)
    used = plan.offset[chosen] + 1
    loop.state = put(loop.state, source, after, index, current)
    loop.lanes.queries[active_lanes] += used[:, None] * loop.passes(answer)
    lane_draws, points = None, loop.rows.x
    if draws is not None and bool(draws[chosen].any()):
        lane_draws = torch.zeros(loop.count, dtype=torch.int64)
        lane_draws[active_lanes] = draws[chosen]
        points = points.index_copy(0, source, ask.x.index_select(0, index))
    loop.ahead.note(event[chosen].sum(), used.sum())
    over = torch.zeros_like(active)
    over[active_lanes] = facts["over"][chosen]
    loop.settle(active, lane_draws, points, over)
