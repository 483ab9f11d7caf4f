"""What attacks cost, in the words of `robench show` and `robench list`."""

from collections.abc import Sequence

from robench.core import index
from robench.core.errors import UsageError

CLASSES = 10
# An attack's spec, and its forward and backward passes.
Cost = tuple[str, int, int]


def passes(name: str) -> dict[str, int] | None:
    """Forward and backward passes of a shipped suite or built-in attack; None if they are not counted."""
    known = index.section("cost").get(name)
    if not known:
        return None
    _, forward, backward = zip(*known["passes"], strict=True)
    return {"forward": sum(forward), "backward": sum(backward)}


def lines(name: str, threat: str | None, classes: int) -> list[str]:
    """A line an attack, and their sum.

    What is shipped is read; else the passes are counted, which can take minutes.

    Raises:
        UsageError: for an unknown attack, a wrong argument, or one not defined in the threat's norm, where a threat is
            named; else there are no lines for what cannot be counted.
    """
    try:
        kind, passes = _costs(name, threat, classes)
    except UsageError:
        if threat is not None:
            raise
        return []
    if not passes:
        return []
    rows = [f"{row[0]}: {_sum([row])}" for row in passes]
    rows += [f"in all: {_sum(passes)}"] if len(passes) > 1 else []
    head = f"passes for an image that is never fooled, {kind}, {classes} classes, forward + backward, as counted:"
    return ["", head, *(f"  {row}" for row in rows)]


def _costs(name: str, threat: str | None, classes: int) -> tuple[str, Sequence[Cost]]:
    known = index.section("cost").get(name)
    if known and threat is None and classes == CLASSES:
        return known["kind"], known["passes"]
    from robench.engine.counts import suite_cost

    kind, passes = suite_cost(name, threat, classes)
    return kind, [(cost.spec, cost.forward, cost.backward) for cost in passes]


def _sum(passes: Sequence[Cost]) -> str:
    return f"{sum(row[1] for row in passes):,} + {sum(row[2] for row in passes):,}"
