"""Costs of attacks on an image that is never fooled, from the shipped counts, or counted.

`passes.json` has the forward and backward passes of each canonical spec under each norm or transformation, with ten
classes; null for attacks of other libraries, whose passes are not counted. `perf/count_passes.py` writes it.
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
# Radii to use without a threat; the costs on an image that is never fooled do not depend on the radius.
_RADII = {"Linf": "8/255", "L2": "0.5", "L1": "12"}


def cost(attacks: tuple[str, ...], threat: Threat, classes: int) -> tuple[Passes, ...]:
    """The cost of each attack on an image that no attack fools: from the shipped counts, else counted by `passes`,
    which can take minutes.

    Args:
        attacks: specs.

    Raises:
        UsageError: if an attack is unknown, has an invalid argument, or does not support the threat's norm.
    """
    counts = shipped(attacks, threat, classes)
    return passes(attacks, threat, classes) if counts is None else counts


def shipped(attacks: tuple[str, ...], threat: Threat, classes: int) -> tuple[Passes, ...] | None:
    """The shipped counts of these attacks, without attacks of other libraries; None if a count is missing.

    Raises:
        UsageError: as in `cost`.
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
    """The norm (or transformation), and the cost of each attack of a suite (or spec) under it.

    Args:
        threat: a threat; None for the first norm or transformation that all attacks support.

    Raises:
        UsageError: as in `cost`; also if the suite is a ladder of runs, or an attack needs an argument.
    """
    suite = find_suite(name)
    if suite.rungs:
        raise UsageError(f"{suite.name} is a ladder of runs, which have different attacks")
    if threat is not None:
        parsed = Threat.parse(threat)
        return parsed.kind, cost(_texts(suite, parsed.norm), parsed, classes)
    return _first(suite, shipped, classes) or _first(suite, cost, classes) or ("", ())


def shipped_cost(suite: Suite) -> tuple[str, tuple[Passes, ...]] | None:
    """`suite_cost` from the shipped counts only; None if there are none."""
    try:
        return _first(suite, shipped, CLASSES)
    except UsageError:
        return None


def countable() -> Iterator[tuple[tuple[str, ...], list[Threat]]]:
    """Specs whose passes are shipped, with threats; the passes are counted under the first threat that works.

    These are all suites, under each norm with its own attacks, and all built-in attacks.
    """
    for suite in [*suites().values(), *built_in()]:
        if not suite.rungs and not corruptions(suite.attacks):
            try:
                threats = list(_threats(suite))
            except UsageError:
                # The attack needs an argument.
                continue
            first = _texts(suite, threats[0].norm)
            yield first, [threat for threat in threats if _texts(suite, threat.norm) == first]
            for norm in suite.norms:
                yield _texts(suite, norm), [Threat.parse(f"{norm}:{_RADII[norm]}")]


def built_in() -> list[Suite]:
    """All built-in attacks, each as a suite."""
    return [
        Suite(name, [Spec(name)])
        for name in registry.attacks
        if registry.attacks.holder(name).startswith("robench.")
    ]


def _first(
    suite: Suite, count: Callable[[tuple[str, ...], Threat, int], tuple[Passes, ...] | None], classes: int
) -> tuple[str, tuple[Passes, ...]] | None:
    """The counts under the first norm or transformation that has counts.

    Raises:
        UsageError: if no norm or transformation is supported; the error of the first one.
    """
    first_error: UsageError | None = None
    supported = False
    for threat in _threats(suite):
        try:
            counts = count(_texts(suite, threat.norm), threat, classes)
        except UsageError as error:
            first_error = first_error or error
            continue
        supported = True
        if counts is not None:
            return threat.kind, counts
    if supported:
        return None
    raise first_error or UsageError(f"{suite.name} supports no norm")


def _texts(suite: Suite, norm: str) -> tuple[str, ...]:
    return tuple(map(str, suite.specs(norm)))


def _threats(suite: Suite) -> Iterator[Threat]:
    """The norms, then the transformations, that all attacks of a suite support.

    Raises:
        UsageError: if the first attack cannot be built, or the suite is a ladder of runs.
    """
    if not suite.attacks:
        raise UsageError(f"{suite.name} is a ladder of runs, which have different attacks")
    spec = suite.attacks[0]
    norms = specs.build(spec, registry.attacks.get(spec.name)).norms
    # Some attacks search few parameters, so they support only transformations.
    for name in (*norms, *registry.transformations):
        with suppress(UsageError):
            threat = Threat.parse(f"{name}:{_RADII.get(name, '1')}")
            build_attacks(suite.specs(threat.norm), threat)
            yield threat


@cache
def _content() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))
