"""Security curves: robust accuracy as a function of the radius.

Each radius is a separate run, with the same record as `robench run` at that threat. The curve is computed from all
records: an image is robust at a radius if no certificate of any record lies within it. A certificate is an image that
fools the judge. It counts at every radius that contains it, whatever radius it was found at, so the curve never rises,
and no run depends on another.

A single minimum-norm attack (one with the argument `minimise`) covers all radii with one run at the largest radius,
because it searches for the closest adversarial example without using the radius.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from robench.catalog import Protocol, Suite, find_protocol
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.evaluation.protocol import DEFAULT_PROTOCOL, choose_protocol, find_suites
from robench.threats.threat import Threat

if TYPE_CHECKING:
    from robench.evaluation.options import Options
    from robench.records.record import Record

_NUMBER = re.compile(r"(\d{1,9}(\.\d{0,9})?|\.\d{1,9})(e[+-]?\d\d?)?", re.IGNORECASE)
_MAX_COUNT = 100


@dataclass(frozen=True)
class Radii:
    """Evenly spaced radii, such as `0:16/255:9`: start, stop and count.

    Attributes:
        values: the exact radii in increasing order, the first at least 0.
        texts: the radii as written in threats, in the unit of STOP if that is short, such as "2/255".
    """

    values: tuple[Fraction, ...]
    texts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Radii":
        """Parse START:STOP:COUNT.

        Raises:
            UsageError: if the text is malformed, a radius is negative, STOP is not above START, or COUNT is not between
                2 and 100.
        """
        parts = [part.strip() for part in text.split(":")]
        start, stop = (_radius(part) for part in parts[:2]) if len(parts) == 3 else (None, None)
        count = int(parts[2]) if len(parts) == 3 and re.fullmatch(r"[0-9]{1,3}", parts[2]) else 0
        if start is None or stop is None or not start < stop or not 2 <= count <= _MAX_COUNT:
            raise UsageError(
                f'"{text}" is no range of radii: expected START:STOP:COUNT, such as 0:16/255:9, with radii of at '
                f"least 0, STOP above START and COUNT from 2 to {_MAX_COUNT}"
            )
        values = tuple(start + (stop - start) * i / (count - 1) for i in range(count))
        unit = Fraction(parts[1].partition("/")[2].strip() or 1)
        return cls(values, tuple(_format(value, unit) for value in values))


def protocols(
    radii: Radii, protocol: str | None, dataset: str | None, threat: str | None, samples: int | None
) -> list[Protocol]:
    """The protocol of each radius above 0, from `choose_protocol`.

    Args:
        threat: a norm or a transformation; a radius is ignored.
    """
    if threat is None and dataset is not None:
        default = find_protocol(DEFAULT_PROTOCOL).threat
        threat = default and default.kind
    if threat is not None and ":" not in threat:
        threat = f"{threat}:{radii.texts[-1]}"
    kind = _threat(choose_protocol(protocol, dataset, threat, samples)).kind
    pairs = zip(radii.values, radii.texts, strict=True)
    return [choose_protocol(protocol, dataset, f"{kind}:{text}", samples) for value, text in pairs if value]


def runs(
    defenses: list[str], suites: list[str], levels: list[Protocol], knowledge: list[str], options: "Options"
) -> Iterator["Record"]:
    """Run each defense, suite, radius and level of attacker knowledge, and yield the records.

    A minimum-norm attack is run at the largest radius only.

    Args:
        levels: from `protocols`.

    Raises:
        RobenchError: as in `run_all`; also if a suite is a ladder of runs.
    """
    from robench.evaluation.run import Request, run_grid  # imports torch, which parsing does not need

    names = suites or levels[0].suites
    all_suites = find_suites(names)
    for suite in all_suites:
        if suite.rungs:
            raise UsageError(f"{suite.name} is a ladder of runs: a curve needs a single attack")
    requests = []
    for defense in defenses:
        for name, suite in zip(names, all_suites, strict=True):
            minimum_norm = _minimum_norm(suite, _threat(levels[-1]).norm, name)
            requests += [
                Request([defense], [minimum_norm or suite], level, knowledge or None)
                for level in ([levels[-1]] if minimum_norm else levels)
            ]
    for _, record in run_grid(requests, options):
        yield record


def _minimum_norm(suite: Suite, norm: str, name: str) -> Suite | None:
    """The suite with `minimise=True`, if it is a single minimum-norm attack.

    None for other suites, and if `name`, the suite as the user wrote it, has `minimise=False`, which is the default
    and so not part of the canonical name.
    """
    attacks = suite.specs(norm)
    if len(attacks) > 1:
        return None
    spec = attacks[0]
    parameters = specs.defaults(registry.attacks.get(spec.name))
    arguments = specs.parse(name).arguments if "(" in name else {}
    if not {**spec.arguments, **arguments}.get("minimise", "minimise" in parameters):
        return None
    spec = spec.replaced(minimise=True)
    return Suite(name=str(spec), attacks=[spec])


def _threat(protocol: Protocol) -> Threat:
    if protocol.threat is None:
        raise UsageError(f"{protocol.name} has no threat: a curve needs one, such as --threat Linf")
    return protocol.threat


def _radius(text: str) -> Fraction | None:
    """Parse a non-negative number or a fraction of such numbers; None if malformed."""
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    numbers = [Fraction(part) for part in parts]
    if len(numbers) == 1:
        return numbers[0]
    return numbers[0] / numbers[1] if numbers[1] else None


def _format(value: Fraction, unit: Fraction) -> str:
    """Write `value` in this unit if that is exact and short, else as a plain fraction."""
    numerator = f"{float(value * unit):.6g}"
    if not value:
        return "0"
    if Fraction(numerator) == value * unit:
        return numerator if unit == 1 else f"{numerator}/{unit}"
    return f"{value.numerator}/{value.denominator}"
