"""What attacks cost on an image that is never fooled, from the counts that are shipped, or counted.

`passes.json` holds, for each norm or transformation and each canonical spec, forward and backward passes with ten
classes; null for other libraries' attacks, whose passes are not counted. `perf/count_passes.py` writes it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from robench.attacks.build import build_attacks
from robench.engine.query_cost import Passes, passes
from robench.threats.threat import Threat

FILE = Path(__file__).with_name("passes.json")


def cost(attacks: tuple[str, ...], threat: Threat, classes: int) -> tuple[Passes, ...]:
    """What each attack costs on an image that no attack fools: as shipped where that is known, else counted by
    `passes`, which can take minutes.

    Args:
        attacks: specs.

    Raises:
        UsageError: for an unknown attack, a wrong argument, or one not defined in the threat's norm.
    """
    known = shipped(attacks, threat, classes)
    return passes(attacks, threat, classes) if known is None else known


def shipped(attacks: tuple[str, ...], threat: Threat, classes: int) -> tuple[Passes, ...] | None:
    """The shipped counts of these attacks, without other libraries'; None when one of them is not there.

    Raises:
        UsageError: as `cost`.
    """
    content = _content()
    counts = content["counts"].get(threat.kind, {})
    canonical = [spec for spec, _ in build_attacks(list(attacks), threat)]
    if classes != content["classes"] or any(spec not in counts for spec in canonical):
        return None
    return tuple(Passes(spec, *counts[spec]) for spec in canonical if counts[spec] is not None)


@cache
def _content() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))
