"""What attacks cost, in the words of `robench show` and `robench list`."""

from collections.abc import Iterator
from contextlib import suppress

from robench.attacks.build import build_attacks
from robench.catalog import Suite, find_suite, suites
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.corruption.suite import corruptions
from robench.engine.counts import cost, shipped
from robench.engine.query_cost import Passes
from robench.threats.threat import Threat

CLASSES = 10
# Where no threat is named; on an image that is never fooled the radius costs nothing.
_RADII = {"Linf": "8/255", "L2": "0.5", "L1": "12"}


def costs(name: str, threat: str | None = None, classes: int = CLASSES) -> tuple[str, tuple[Passes, ...]]:
    """The norm (or transformation), and what each attack of a suite (or spec) costs in it; the first that suits them
    if none is said.

    Raises:
        UsageError: as `passes`; also for a ladder of runs, and an attack that needs an argument.
    """
    suite = find_suite(name)
    if suite.rungs:
        raise UsageError(f"{suite.name} is a ladder of runs: each has attacks of its own")
    if threat is not None:
        chosen = Threat.parse(threat)
        return chosen.kind, cost(_texts(suite, chosen.norm), chosen, classes)
    refused: UsageError | None = None
    for get in (shipped, cost):
        for chosen in _threats(suite):
            try:
                found = get(_texts(suite, chosen.norm), chosen, classes)
            except UsageError as error:
                refused = refused or error
                continue
            if found is not None:
                return chosen.kind, found
    raise refused or UsageError(f"{suite.name} is defined in no norm")


def brief(suite: Suite) -> str:
    """Forward + backward passes in one cell, from the counts that are shipped; empty where there are none.

    Counting takes minutes for some attacks, so nothing is counted here: `lines` does that.
    """
    try:
        for threat in _threats(suite):
            if found := shipped(_texts(suite, threat.norm), threat, CLASSES):
                return _sum(found)
    except UsageError:
        pass
    return ""


def countable() -> Iterator[tuple[tuple[str, ...], list[Threat]]]:
    """Specs whose passes are shipped, with the threats of which the first suits that they can be counted in.

    Every suite's, in each norm it is written for, and every built-in attack's.
    """
    own = [
        Suite(name, [Spec(name)])
        for name in registry.attacks
        if registry.attacks.holder(name).startswith("robench.")
    ]
    for suite in [*suites().values(), *own]:
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


def lines(name: str, threat: str | None, classes: int) -> list[str]:
    """A line an attack, and their sum.

    Raises:
        UsageError: as `costs`, where a threat is named; else there are no lines for what cannot be counted.
    """
    try:
        norm, found = costs(name, threat, classes)
    except UsageError:
        if threat is not None:
            raise
        return []
    if not found:
        return []
    told = [f"{each.spec}: {_sum([each])}" for each in found]
    told += [f"in all: {_sum(found)}"] if len(found) > 1 else []
    head = f"passes for an image that is never fooled, {norm}, {classes} classes, forward + backward, as counted:"
    return ["", head, *(f"  {line}" for line in told)]


def _sum(found: tuple[Passes, ...] | list[Passes]) -> str:
    return f"{sum(each.forward for each in found):,} + {sum(each.backward for each in found):,}"
