"""What attacks cost, in the words of `robench show` and `robench list`."""

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path

import robench
from robench import registry, specs
from robench.cache import cache_folder
from robench.content import suites
from robench.direct import find_suite
from robench.engine.meter import Passes, passes
from robench.errors import RobenchError, UsageError
from robench.files import write_whole
from robench.threat import Threat

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
        return chosen.kind, passes(tuple(suite.specs(chosen.norm)), chosen, classes)
    spec = specs.parse(suite.attacks[0])
    refused: UsageError | None = None
    norms = specs.build(spec, registry.attacks.get(spec.name)).norms
    # Some search over few parameters, which only a transformation has.
    for name in (*norms, *registry.transformations):
        try:
            chosen = Threat.parse(f"{name}:{_RADII.get(name, '1')}")
            return name, passes(tuple(suite.specs(chosen.norm)), chosen, classes)
        except UsageError as error:
            refused = refused or error
    raise refused or UsageError(f"{suite.name} is defined in no norm")


def brief(name: str) -> str:
    """Forward + backward passes in one cell; empty where they cannot be counted.

    Counting all attacks takes seconds, so what is told here is kept, for as long as no source of the package changes.
    """
    holders = [registry.attacks.holder(specs.parse(each).name) for each in find_suite(name).attacks]
    folder = cache_folder("passes")
    file = folder / f"{hashlib.sha256(f'{_sources()} {name}'.encode()).hexdigest()[:16]}.json"
    own = all(holder.startswith("robench.") for holder in holders)
    if own:
        with suppress(OSError, ValueError):
            return str(json.loads(file.read_text()))
    try:
        _, found = costs(name)
    except UsageError:
        return ""
    told = _sum(found) if found else ""
    if own:
        with suppress(RobenchError):
            write_whole(folder, {file.name: json.dumps(told).encode()})
    return told


@cache
def _sources() -> str:
    """A digest of the package's sources and suites."""
    root = Path(robench.__file__).parent
    files = [*sorted(root.rglob("*.py")), *(suite.path for suite in suites().values())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


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
