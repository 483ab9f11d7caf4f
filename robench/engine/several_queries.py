"""Turns with several queries of each row, for attacks that only use logits and whose random numbers are known ahead."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.attacks._base import gather, select
from robench.engine.ahead import Plan
from robench.engine.host import on_host
from robench.engine.lanes import put

if TYPE_CHECKING:
    from robench.engine.attack_loop import Loop

# Queries of a row between two reads of the device.
_UNREAD = 16
# Fraction of rows that may stop in such a turn; more would be sent in vain too often.
_STOPS = 1 / 4


def may_go_unread(loop: "Loop", active: Tensor) -> int:
    """The number of queries that the rows can make before the host reads an answer; 0 for a usual turn.

    On a CPU reading is free. A randomized surrogate, and rows that go on in fp32, need the host at every query.
    """
    context = loop.context
    if (
        context.device.type == "cpu"
        or not context.attack.gradient_free
        or context.network.stream is not None
        or loop.exactly(active) is not None
    ):
        return 0
    made = loop.lanes.queries[active, 0] // context.attack.eot
    left = context.attack.num_queries - int(made.min())
    return min(left - 1, _UNREAD) if loop.is_quiet and left > 2 else 0


def turn_unread(loop: "Loop", active: Tensor, queries: int) -> None:
    """Make some queries of each row before the host reads what came of them.

    A row stops before a query whose answer the host must see: if it fools the network, is not finite or ends the row.
    The next turn repeats this query, so the row runs exactly as if every answer was read.
    """
    assert loop.rows is not None and loop.state is not None
    context, attack, rows, state = loop.context, loop.context.attack, loop.rows, loop.state
    running, taken, accepted = rows.active, torch.zeros_like(rows.sample), torch.zeros_like(rows.sample)
    for _ in range(queries):
        ask = attack.ask(context.problem, rows, state)
        answer = context.network.answer(ask.x, None, rows, attack.eot, rows.rank, loop.asking)
        after = attack.tell(context.problem, rows, state, answer)
        facts = loop.verdicts.facts(answer.logits, ask.x, rows)
        running = running & ~(facts["wrong"] | facts["nonfinite"] | attack.finished(after))
        taken, accepted = taken + running, accepted + (running & attack.moved(after))
        state = select(running, after, state)
    loop.state = state
    counts = on_host(taken=taken, accepted=accepted)
    loop.lanes.queries += counts["taken"][:, None] * torch.tensor([attack.eot, 0])
    loop.ahead.note(counts["accepted"].sum(), counts["taken"].sum().clamp_min(1))
    # A row that has stopped needs a usual turn.
    loop.is_quiet = bool((counts["taken"][active] == queries).all())


def is_quiet(wrong: Tensor, active: Tensor) -> bool:
    """Whether few enough of the active rows fool the network for turns that the host does not read."""
    return int((wrong & active).sum()) <= _STOPS * int(active.sum())


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
    if "nonfinite" in facts:
        # Entries after the chosen one are void or queried again.
        counted = facts["nonfinite"] & valid & (plan.offset < used[plan.row])
        loop.losses.count("nonfinite", torch.bincount(lane[counted], minlength=loop.count))
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
