"""Compare the passes that a record claims with the possible cost of its attacks.

An attack that a row survives costs a known number of passes, which is counted by running it on a dummy network
(`robench.engine.query_cost`). A record in which an attack did not run, or ran with fewer steps than its spec says,
would therefore have to claim passes that it did not spend, in every row.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from robench.attacks._base import Attack
from robench.attacks._external import ForeignAttack
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.engine.counts import shipped
from robench.engine.query_cost import passes
from robench.records.certificates import is_attacked
from robench.records.estimate import NOT_ATTACKED
from robench.records.findings import Finding, equal, rows_hold
from robench.threats.threat import Threat
from robench.verification.evidence import Evidence

# The fewest and the most passes.
Span = tuple[float, float]

# Counting attacks with more iterations, calls or rows would take longer than all other checks.
_MOST_ITERATIONS = 1000
_MOST_CALLS = 50_000
_MOST_RANKS = 2000


@dataclass(frozen=True)
class Cost:
    """The passes of one attack on one row that survives it.

    Attributes:
        forward, backward: fewest and most passes; the upper bound is infinite where it is unknown.
        ranks: restarts or targets of an image, which are attacked one after another.
        minimises: whether a fooled row costs as much as a surviving row.
        at_end: whether a row is judged only after the last step.
        least: fewest forward passes of a row that is fooled; 0 where an attack's passes are divided among the rows, so
            that they say nothing about a row's steps.
    """

    forward: Span
    backward: Span
    ranks: int = 1
    minimises: bool = False
    at_end: bool = False
    least: int = 1

    @property
    def exact(self) -> bool:
        return self.forward[0] == self.forward[1]

    def won(self, steps: int, claimed: Span) -> tuple[Span, Span]:
        """Forward and backward passes of a row whose last rank fooled it after `steps` forward passes, given the
        `claimed` forward passes."""
        if self.minimises and self.exact:
            return self.forward, self.backward
        if not self.least:
            return _meet(self.forward, claimed), self.backward
        earlier = (self.ranks - 1) * self.forward[1] / self.ranks if self.ranks > 1 else 0
        forward = _meet((max(steps, self.least), earlier + steps), claimed)
        if self.exact and self.backward == self.forward:
            return forward, forward
        return forward, (0, self.backward[1])


def cost(attack: Attack[Any] | None, spec: str, threat: Threat, classes: int) -> Cost:
    """The cost of an attack; at least one pass where the cost cannot be counted.

    Args:
        attack: the attack of the spec; None when it cannot be built here.
    """
    # Passes of another library's attack are counted in total and divided among the rows.
    if attack is None or isinstance(attack, ForeignAttack):
        return Cost((0, math.inf), (0, math.inf), least=0)
    ranks = attack.ranks(classes)
    built_in = registry.attacks.holder(specs.parse(spec).name).startswith("robench.")
    unknown = Cost((ranks if built_in else 1, math.inf), (0, math.inf), ranks, attack.minimise)
    iterations = attack.num_queries / attack.horizon
    calls = iterations * attack.eot
    countable = iterations <= _MOST_ITERATIONS and calls <= _MOST_CALLS and ranks <= _MOST_RANKS
    try:
        costs_known = shipped((spec,), threat, classes) if built_in else None
        if costs_known is None and built_in and countable:
            costs_known = passes((spec,), threat, classes)
        if not costs_known:
            return unknown
        (counted,) = costs_known
    except (UsageError, ValueError):
        return unknown
    if attack.cost_varies == 1:
        both = (counted.forward, counted.forward), (counted.backward, counted.backward)
    else:
        both = (ranks, attack.cost_varies * counted.forward), (0, attack.cost_varies * counted.backward)
    return Cost(*both, ranks, attack.minimise, attack.judged_at_end)


def findings(e: Evidence) -> Iterator[Finding]:
    """Check the sums of passes, and whether the passes of each row and each attack are possible."""
    record, rows = e.record, e.rows
    for direction in ("forward", "backward"):
        total = sum(rows[direction])
        yield equal(f"passes.{direction}", record.passes[direction], total, "summed over the samples")
        total = sum(getattr(cost, direction) for cost in record.attacks)
        yield equal(f"attacks.{direction}", total, record.passes[direction], "summed over the attacks")
    names = record.job.suite.attacks
    classes = len(e.images.classes)
    costs = [cost(attack, spec, e.threat, classes) for attack, spec in zip(e.attacks, names, strict=True)]
    spent = [_spent(e, i, costs) for i in range(len(rows["id"]))]
    impossible = [i for i in range(len(spent)) if not _steps_fit(e, i, costs)]
    yield rows_hold("samples.steps", impossible, "possible for the attack that fooled the image")
    for place, direction in enumerate(("forward", "backward")):
        impossible = [
            i for i, parts in enumerate(spent) if not _within(rows[direction][i], _sum(parts[place]))
        ]
        yield rows_hold(f"samples.{direction}", impossible, "possible passes of the attacks on each image")
        if impossible or len(record.attacks) != len(costs):
            continue
        for j, attack_cost in enumerate(record.attacks):
            low, high = _sum([parts[place][j] for parts in spent if j < len(parts[place])])
            # Every attack calls the network at least once.
            low = max(low, int(attack_cost.attacked > 0 and direction == "forward"))
            claimed = getattr(attack_cost, direction)
            shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            detail = f"{claimed} on {attack_cost.attacked} samples; possible: {shown}"
            yield Finding(f"attacks.{attack_cost.spec}.{direction}", _within(claimed, (low, high)), detail)


def _place(e: Evidence, i: int) -> int:
    """Index of the attack that fooled a row; the number of attacks where none did."""
    names = e.record.job.suite.attacks
    by = e.rows["fooled_by"][i]
    return names.index(by) if is_attacked(by) and by in names else len(names)


def _steps_fit(e: Evidence, i: int, costs: list[Cost]) -> bool:
    """Whether a row's steps, which are forward passes, are possible; 0 where no attack fooled it."""
    steps, forward, place = e.rows["steps"][i], e.rows["forward"][i], _place(e, i)
    if place == len(costs):
        # A candidate against a randomized defense may fool none of the fresh draws.
        return steps == 0 or e.draws > 1
    winner, before = costs[place], costs[:place]
    longest = winner.forward[1] / winner.ranks
    if e.draws == 1 and e.asks and all(cost.exact for cost in [*before, winner]):
        last_forward = forward - sum(cost.forward[0] for cost in before)
        at_end = winner.minimises or winner.at_end
        return steps == (longest if at_end else (last_forward - 1) % longest + 1)
    return winner.least <= steps <= min(longest, max(forward, winner.least))


def _spent(e: Evidence, i: int, costs: list[Cost]) -> tuple[list[Span], list[Span]]:
    """The possible forward and backward passes of each attack on a row, up to the last attack that ran on it."""
    if e.rows["fooled_by"][i] == NOT_ATTACKED:
        return [], []
    if i in e.proven:
        return [(0, 0)] * len(costs), [(0, 0)] * len(costs)
    if e.rows["fooled_by"][i] == "clean":
        # On fresh draws, the clean image of an attacked row may be misclassified.
        possible = costs if e.draws > 1 else []
        return [(0, cost.forward[1]) for cost in possible], [(0, cost.backward[1]) for cost in possible]
    place = _place(e, i)
    if e.draws > 1 or not e.asks:
        # A row leaves an attack when the surrogate is fooled, and the suite when every draw of the search is fooled.
        possible = costs if e.draws > 1 else costs[: place + 1]
        certain = min(place + 1, len(costs)) if e.draws == 1 or place < len(costs) else 0
        least = [min(cost.least, cost.forward[0]) * (j < certain) for j, cost in enumerate(possible)]
        forward = [(low, cost.forward[1]) for low, cost in zip(least, possible, strict=True)]
        return forward, [(0, cost.backward[1]) for cost in possible]
    forward = [cost.forward for cost in costs[:place]]
    backward = [cost.backward for cost in costs[:place]]
    if place < len(costs):
        low, high = _sum(forward)
        claimed = (e.rows["forward"][i] - high, e.rows["forward"][i] - low)
        winner_passes = costs[place].won(e.rows["steps"][i], claimed)
        forward.append(winner_passes[0])
        low, high = _sum(backward)
        backward.append(_meet(winner_passes[1], (e.rows["backward"][i] - high, e.rows["backward"][i] - low)))
    return forward, backward


def _meet(one: Span, other: Span) -> Span:
    return max(one[0], other[0]), min(one[1], other[1])


def _sum(spans: list[Span]) -> Span:
    return sum(low for low, _ in spans), sum(high for _, high in spans)


def _within(value: float, span: Span) -> bool:
    return span[0] <= value <= span[1]
