"""What attacks cost on an image that is never fooled, from the counts that are shipped, or counted.

`passes.json` holds, for each norm or transformation and each canonical spec, forward and backward passes with ten
classes; null for other libraries' attacks, whose passes are not counted. `perf/count_passes.py` writes it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from robench.attacks.build import build_attacks
from robench.catalog import Suite, find_suite, suites
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.corruption.suite import corruptions
from robench.engine.query_cost import Passes, passes
from robench.threats.threat import Threat

FILE = Path(__file__).with_name("passes.json")
CLASSES = 10
# Where no threat is named; on an image that is never fooled the radius costs nothing.
_RADII = {"Linf": "8/255", "L2": "0.5", "L1": "12"}


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


def suite_cost(
    name: str, threat: str | None = None, classes: int = CLASSES
) -> tuple[str, tuple[Passes, ...]]:
    """The norm (or transformation), and what each attack of a suite (or spec) costs in it; the first that suits them
    if none is given.

    Raises:
        UsageError: as `cost`; also for a ladder of runs, and an attack that needs an argument.
    """
    suite = find_suite(name)
    if suite.rungs:
        raise UsageError(f"{suite.name} is a ladder of runs: each has attacks of its own")
    if threat is not None:
        chosen = Threat.parse(threat)
        return chosen.kind, cost(_texts(suite, chosen.norm), chosen, classes)
    return _first(suite, shipped, classes) or _first(suite, cost, classes) or ("", ())


def shipped_cost(suite: Suite) -> tuple[str, tuple[Passes, ...]] | None:
    """`suite_cost` from the counts that are shipped alone; None where there are none."""
    try:
        return _first(suite, shipped, CLASSES)
    except UsageError:
        return None


def countable() -> Iterator[tuple[tuple[str, ...], list[Threat]]]:
    """Specs whose passes are shipped, with the threats of which the first suits that they can be counted in.

    Every suite's, in each norm it is written for, and every built-in attack's.
    """
    for suite in [*suites().values(), *built_in()]:
        if not suite.rungs and not corruptions(suite.attacks):
            try:
                threats = list(_threats(suite))
            except UsageError:
                # It needs an argument.
                continue
            first = _texts(suite, threats[0].norm)
            yield first, [threat for threat in threats if _texts(suite, threat.norm) == first]
            for norm in suite.norms:
                yield _texts(suite, norm), [Threat.parse(f"{norm}:{_RADII[norm]}")]


def built_in() -> list[Suite]:
    """Every built-in attack, as a suite of its own."""
    return [
        Suite(name, [Spec(name)])
        for name in registry.attacks
        if registry.attacks.holder(name).startswith("robench.")
    ]


def _first(
    suite: Suite, count: Callable[[tuple[str, ...], Threat, int], tuple[Passes, ...] | None], classes: int
) -> tuple[str, tuple[Passes, ...]] | None:
    """The counts in the first norm or transformation that has them.

    Raises:
        UsageError: where no norm or transformation suits, as for the first of them.
    """
    refused: UsageError | None = None
    suited = False
    for threat in _threats(suite):
        try:
            counts = count(_texts(suite, threat.norm), threat, classes)
        except UsageError as error:
            refused = refused or error
            continue
        suited = True
        if counts is not None:
            return threat.kind, counts
    if suited:
        return None
    raise refused or UsageError(f"{suite.name} is defined in no norm")


def _texts(suite: Suite, norm: str) -> tuple[str, ...]:
    return tuple(map(str, suite.specs(norm)))


def _threats(suite: Suite) -> Iterator[Threat]:
    """The norms, and then the transformations, that all attacks of a suite are defined in.

    Raises:
        UsageError: when its first attack cannot be built, or there is none, as in a ladder of runs.
    """
    if not suite.attacks:
        raise UsageError(f"{suite.name} is a ladder of runs: each has attacks of its own")
    spec = suite.attacks[0]
    norms = specs.build(spec, registry.attacks.get(spec.name)).norms
    # Some search over few parameters, which only a transformation has.
    for name in (*norms, *registry.transformations):
        with suppress(UsageError):
            threat = Threat.parse(f"{name}:{_RADII.get(name, '1')}")
            build_attacks(suite.specs(threat.norm), threat)
            yield threat


@cache
def _content() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))
