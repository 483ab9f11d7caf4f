"""Suites of corruptions: specs such as `corruption(name="fog", severities=[1, 3], jpeg=True)` in place of attacks."""

from collections.abc import Sequence
from dataclasses import dataclass

from robench._moved import old_names
from robench.core import specs
from robench.core.errors import UsageError
from robench.corruption.names import COMMON, SEVERITIES, VALIDATION, check_corruption

SPEC = "corruption"


@dataclass(frozen=True)
class Corruption:
    """One corruption of a suite.

    Attributes:
        name: one of COMMON or VALIDATION.
        severities: of 1 to 5, in rising order.
        jpeg: whether the images go through a JPEG file, as ImageNet-C's did, or stay in memory.
    """

    name: str
    severities: Sequence[int] = SEVERITIES
    jpeg: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.severities, list | tuple) or not self.severities:
            raise UsageError(f"{SPEC} has severities={self.severities!r}: expected a list of some of 1 to 5")
        given = tuple(self.severities)
        for severity in given:
            check_corruption(self.name, severity, COMMON + VALIDATION)
        if not isinstance(self.jpeg, bool):
            raise UsageError(f"{SPEC} has jpeg={self.jpeg!r}: expected True or False")
        object.__setattr__(self, "severities", tuple(sorted(set(given))))

    def __str__(self) -> str:
        return str(self.spec)

    @property
    def spec(self) -> specs.Spec:
        """The canonical spec."""
        given = {"name": self.name, "jpeg": self.jpeg}
        if self.severities != SEVERITIES:
            given["severities"] = list(self.severities)
        return specs.canonical(specs.Spec(SPEC, given), Corruption)


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity."""

    name: str
    severity: int
    jpeg: bool


def corruptions(attacks: Sequence[str | specs.Spec]) -> list[Corruption]:
    """The corruptions of a suite's specs; none when they are attacks.

    Raises:
        UsageError: when both are mixed, a corruption stands there twice, or one is malformed.
    """
    parsed = [specs.parse(text) for text in attacks]
    if not any(spec.name == SPEC for spec in parsed):
        return []
    if strange := [spec.name for spec in parsed if spec.name != SPEC]:
        raise UsageError(f"{strange[0]} is an attack and cannot stand beside corruptions: run them apart")
    found = [specs.build(spec, Corruption) for spec in parsed]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} stands there twice: name its severities in one spec")
    if len({each.jpeg for each in found}) > 1:
        raise UsageError("some corruptions go through JPEG files and others do not: run them apart")
    return found


def cells(suite: Sequence[Corruption]) -> list[Cell]:
    """Every corruption at each of its severities, in order."""
    return [Cell(each.name, severity, each.jpeg) for each in suite for severity in each.severities]


__getattr__ = old_names(__name__)
