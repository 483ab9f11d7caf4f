"""The passes that a record claims, held to what its attacks can cost.

An attack that a row survives costs a known number of passes, counted by playing it on a dummy network
(`robench.engine.query_cost`). So a record in which an attack did not run, or ran with fewer steps than its spec says,
must claim passes that it did not spend, row by row.
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
from robench.records.findings import Finding, equal, rows_named
from robench.threats.threat import Threat
from robench.verification.evidence import Evidence

# The fewest and the most passes.
Span = tuple[float, float]

# Counting what takes more turns than this would take longer than everything else here.
_TURNS = 1000


@dataclass(frozen=True)
class Cost:
    """Passes of one attack on one row that survives it.

    Attributes:
        forward, backward: at least and at most; infinite where it is not known.
        ranks: rows an image gives, one after another.
        minimises: whether a row that is fooled costs as much.
        at_end: whether a row is fooled only when it has played to its end.
        least: forward passes of a row that is fooled at once.
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
        """Forward and backward passes of a row that it fools after `steps`, `claimed` forward ones for it."""
        if self.minimises and self.exact:
            return self.forward, self.backward
        earlier = (self.ranks - 1) * self.forward[1] / self.ranks if self.ranks > 1 else 0
        forward = _meet((max(steps, self.least), earlier + steps), claimed)
        if self.exact and self.backward == self.forward:
            return forward, forward
        return forward, (0, self.backward[1])


def cost(attack: Attack[Any] | None, spec: str, threat: Threat, classes: int) -> Cost:
    """What an attack costs; where it cannot be counted, at least one pass.

    Args:
        attack: of that spec; None when it cannot be built here.
    """
    # What another library's attack does is counted in sum, and shared out.
    if attack is None or isinstance(attack, ForeignAttack):
        return Cost((0, math.inf), (0, math.inf), least=0)
    ranks = attack.ranks(classes)
    unknown = Cost((1, math.inf), (0, math.inf), ranks, attack.minimise)
    ours = registry.attacks.holder(specs.parse(spec).name).startswith("robench.")
    quick = attack.num_queries <= _TURNS * attack.horizon
    try:
        known = shipped((spec,), threat, classes) if ours else None
        if known is None and ours and quick:
            known = passes((spec,), threat, classes)
        if not known:
            return unknown
        (counted,) = known
    except (UsageError, ValueError):
        return unknown
    if attack.cost_varies == 1:
        both = (counted.forward, counted.forward), (counted.backward, counted.backward)
    else:
        both = (ranks, attack.cost_varies * counted.forward), (0, attack.cost_varies * counted.backward)
    return Cost(*both, ranks, attack.minimise, attack.judged_at_end)


def findings(e: Evidence) -> Iterator[Finding]:
    """Sums of passes, and for each row and each attack whether they can be true."""
    record, rows = e.record, e.rows
    for direction in ("forward", "backward"):
        total = sum(rows[direction])
        yield equal(f"passes.{direction}", record.passes[direction], total, "summed over the samples")
        total = sum(getattr(each, direction) for each in record.attacks)
        yield equal(f"attacks.{direction}", total, record.passes[direction], "summed over the attacks")
    names = record.job.suite.attacks
    classes = len(e.images.classes)
    costs = [cost(*each, e.threat, classes) for each in zip(e.attacks, names, strict=True)]
    spent = [_spent(e, i, costs) for i in range(len(rows["id"]))]
    odd = [i for i in range(len(spent)) if not _steps_fit(e, i, costs)]
    yield Finding("samples.steps", not odd, f"what the attack that fooled a row can take; {rows_named(odd)}")
    for place, direction in enumerate(("forward", "backward")):
        odd = [i for i, parts in enumerate(spent) if not _within(rows[direction][i], _sum(parts[place]))]
        detail = f"what its attacks can cost each row; {rows_named(odd)}"
        yield Finding(f"samples.{direction}", not odd, detail)
        if odd or len(record.attacks) != len(costs):
            continue
        for j, each in enumerate(record.attacks):
            low, high = _sum([parts[place][j] for parts in spent if j < len(parts[place])])
            # Whatever an attack is, it asks something.
            low = max(low, int(each.attacked > 0 and direction == "forward"))
            claimed = getattr(each, direction)
            shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            detail = f"{claimed} on {each.attacked} samples, which can take {shown}"
            yield Finding(f"attacks.{each.spec}.{direction}", _within(claimed, (low, high)), detail)


def _place(e: Evidence, i: int) -> int:
    """Which attack fooled a row; how many there are where none did."""
    names = e.record.job.suite.attacks
    by = e.rows["fooled_by"][i]
    return names.index(by) if is_attacked(by) and by in names else len(names)


def _steps_fit(e: Evidence, i: int, costs: list[Cost]) -> bool:
    """Whether the row that fooled can have taken its number of steps; none where no attack fooled."""
    steps, forward, place = e.rows["steps"][i], e.rows["forward"][i], _place(e, i)
    if place == len(costs):
        # What an attack of a randomised defense left may fool no fresh draw.
        return steps == 0 or e.draws > 1
    winner, before = costs[place], costs[:place]
    longest = winner.forward[1] / winner.ranks
    if e.draws == 1 and e.asks and all(each.exact for each in [*before, winner]):
        own = forward - sum(each.forward[0] for each in before)
        at_end = winner.minimises or winner.at_end
        return steps == (longest if at_end else (own - 1) % longest + 1)
    return winner.least <= steps <= min(longest, max(forward, winner.least))


def _spent(e: Evidence, i: int, costs: list[Cost]) -> tuple[list[Span], list[Span]]:
    """Forward and backward passes that each attack can have cost a row, up to the last one that did."""
    if e.rows["fooled_by"][i] == "clean":
        # Judged again on fresh draws, a row that was attacked may have its clean image wrong.
        played = costs if e.draws > 1 else []
        return [(0, each.forward[1]) for each in played], [(0, each.backward[1]) for each in played]
    place = _place(e, i)
    if e.draws > 1 or not e.asks:
        # A row leaves an attack when its surrogate is fooled, or the suite when every draw of the search is.
        played = costs if e.draws > 1 else costs[: place + 1]
        sure = min(place + 1, len(costs)) if e.draws == 1 or place < len(costs) else 0
        least = [min(each.least, each.forward[0]) * (j < sure) for j, each in enumerate(played)]
        forward = [(low, each.forward[1]) for low, each in zip(least, played, strict=True)]
        return forward, [(0, each.backward[1]) for each in played]
    forward = [each.forward for each in costs[:place]]
    backward = [each.backward for each in costs[:place]]
    if place < len(costs):
        low, high = _sum(forward)
        claimed = (e.rows["forward"][i] - high, e.rows["forward"][i] - low)
        own = costs[place].won(e.rows["steps"][i], claimed)
        forward.append(own[0])
        low, high = _sum(backward)
        backward.append(_meet(own[1], (e.rows["backward"][i] - high, e.rows["backward"][i] - low)))
    return forward, backward


def _meet(one: Span, other: Span) -> Span:
    return max(one[0], other[0]), min(one[1], other[1])


def _sum(spans: list[Span]) -> Span:
    return sum(low for low, _ in spans), sum(high for _, high in spans)


def _within(value: float, span: Span) -> bool:
    return span[0] <= value <= span[1]
