"""The security curve: accuracy over the radius, as table and picture.

Each radius is a run of its own, with the record that `robench run` at that threat leaves and whose key nothing is
added to. The curve is read from all of them: an image counts as robust at a radius when none of their certificates
lies within it. A certificate is an image that fools the judge, whichever radius it was looked for in, so one found
at a smaller radius carries over to the larger ones, and one found at a larger radius counts wherever it is near
enough. So the curve never rises, and no run depends on another.

A single attack for the least distance (one with the setting `minimise`) answers for all radii by one run at the
largest: it knows of no radius, and its certificates are as near as it could make them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from robench.catalog import Protocol, Suite, find_protocol
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.evaluation.protocol import DEFAULT_PROTOCOL, choose_protocol, find_suites
from robench.evaluation.run import Options, run_all
from robench.records.record import Record
from robench.threats.threat import Threat

_NUMBER = re.compile(r"(\d{1,9}(\.\d{0,9})?|\.\d{1,9})(e[+-]?\d\d?)?", re.IGNORECASE)
_MOST = 100


@dataclass(frozen=True)
class Radii:
    """`0:16/255:9`: from, to, and how many, evenly spaced.

    Attributes:
        values: exact, in rising order, the first 0 or more.
        texts: as they stand in threats: in the unit that the last one was given in, "2/255" say, where that is short.
    """

    values: tuple[Fraction, ...]
    texts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Radii":
        """Read START:STOP:COUNT.

        Raises:
            UsageError: for anything else, a negative radius, STOP not above START, and a COUNT not in 2 .. 100.
        """
        parts = [part.strip() for part in text.split(":")]
        start, stop = (_radius(part) for part in parts[:2]) if len(parts) == 3 else (None, None)
        count = int(parts[2]) if len(parts) == 3 and re.fullmatch(r"[0-9]{1,3}", parts[2]) else 0
        if start is None or stop is None or not start < stop or not 2 <= count <= _MOST:
            raise UsageError(
                f'--curve "{text}": expected START:STOP:COUNT, such as 0:16/255:9: radii of 0 or more, STOP above '
                f"START, 2 to {_MOST} of them"
            )
        values = tuple(start + (stop - start) * i / (count - 1) for i in range(count))
        unit = Fraction(parts[1].partition("/")[2].strip() or 1)
        return cls(values, tuple(_written(value, unit) for value in values))


def protocols(
    radii: Radii, protocol: str | None, dataset: str | None, threat: str | None, samples: int | None
) -> list[Protocol]:
    """The protocol of each radius above 0, as `choose_protocol` names it.

    Args:
        threat: its radius does not count; a norm or a transformation alone will do.
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
    defenses: list[str], suites: list[str], levels: list[Protocol], knowledge: list[str], options: Options
) -> Iterator[Record]:
    """A record for each defense, suite, radius and level of knowledge; one at the largest radius may do for all.

    Args:
        levels: of `protocols`.

    Raises:
        RobenchError: as `run_all`; also for a ladder of runs.
    """
    asked = suites or levels[0].suites
    found = find_suites(asked)
    for suite in found:
        if suite.rungs:
            raise UsageError(f"{suite.name} is a ladder of runs: draw the curve of one attack")
    for name in defenses:
        for text, suite in zip(asked, found, strict=True):
            least = _minimising(suite, _threat(levels[-1]).norm, text)
            for level in [levels[-1]] if least else levels:
                options.note(f"{name} under {(least or suite).name}, {level.threat}")
                yield from run_all([name], [least or suite], level, knowledge or None, options)


def _minimising(suite: Suite, norm: str, asked: str) -> Suite | None:
    """The suite that looks for the least distance, if it is one attack that can; unless `asked`, the name as it was
    typed, says `minimise=False`, which the canonical name leaves out."""
    attacks = suite.specs(norm)
    if len(attacks) > 1:
        return None
    spec = attacks[0]
    known = specs.defaults(registry.attacks.get(spec.name))
    typed = specs.parse(asked).arguments if "(" in asked else {}
    if not {**spec.arguments, **typed}.get("minimise", "minimise" in known):
        return None
    spec = spec.replaced(minimise=True)
    return Suite(name=str(spec), attacks=[spec])


def _threat(protocol: Protocol) -> Threat:
    if protocol.threat is None:
        raise UsageError(f"{protocol.name} has no threat: a curve needs one, --threat Linf, say")
    return protocol.threat


def _radius(text: str) -> Fraction | None:
    """A number or a fraction of numbers, 0 or more; None for anything else."""
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    numbers = [Fraction(part) for part in parts]
    if len(numbers) == 1:
        return numbers[0]
    return numbers[0] / numbers[1] if numbers[1] else None


def _written(value: Fraction, unit: Fraction) -> str:
    """`value` in that unit where that is exact and short, else as a plain fraction."""
    short = f"{float(value * unit):.6g}"
    if not value:
        return "0"
    if Fraction(short) == value * unit:
        return short if unit == 1 else f"{short}/{unit}"
    return f"{value.numerator}/{value.denominator}"
