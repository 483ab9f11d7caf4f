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
        severities: severities in 1 to 5, in ascending order.
        jpeg: whether the images pass through a JPEG file, as in ImageNet-C.
    """

    name: str
    severities: Sequence[int] = SEVERITIES
    jpeg: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.severities, list | tuple) or not self.severities:
            raise UsageError(f"{SPEC} has severities={self.severities!r}: expected a list of some of 1 to 5")
        severities = tuple(self.severities)
        for severity in severities:
            check_corruption(self.name, severity, COMMON + VALIDATION)
        if not isinstance(self.jpeg, bool):
            raise UsageError(f"{SPEC} has jpeg={self.jpeg!r}: expected True or False")
        object.__setattr__(self, "severities", tuple(sorted(set(severities))))

    def __str__(self) -> str:
        return str(self.spec)

    @property
    def spec(self) -> specs.Spec:
        """The canonical spec."""
        arguments = {"name": self.name, "jpeg": self.jpeg}
        if self.severities != SEVERITIES:
            arguments["severities"] = list(self.severities)
        return specs.canonical(specs.Spec(SPEC, arguments), Corruption)


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity."""

    name: str
    severity: int
    jpeg: bool


def corruptions(attacks: Sequence[str | specs.Spec]) -> list[Corruption]:
    """The corruptions in the specs of a suite; empty if they are attacks.

    Raises:
        UsageError: if attacks and corruptions are mixed, a corruption is repeated, or a spec is malformed.
    """
    parsed = [specs.parse(text) for text in attacks]
    if not any(spec.name == SPEC for spec in parsed):
        return []
    if attack_names := [spec.name for spec in parsed if spec.name != SPEC]:
        raise UsageError(
            f"{attack_names[0]} is an attack and cannot be mixed with corruptions: run them separately"
        )
    suite = [specs.build(spec, Corruption) for spec in parsed]
    names = [corruption.name for corruption in suite]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{repeated} is repeated: list its severities in one spec")
    if len({corruption.jpeg for corruption in suite}) > 1:
        raise UsageError("some corruptions use JPEG files and others do not: run them separately")
    return suite


def cells(suite: Sequence[Corruption]) -> list[Cell]:
    """Every corruption at each of its severities, in order."""
    return [Cell(item.name, severity, item.jpeg) for item in suite for severity in item.severities]


__getattr__ = old_names(__name__)
