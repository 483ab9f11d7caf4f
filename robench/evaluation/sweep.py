"""Sweeps: one run for each value of an argument of the defense or of the attacks.

A sweep over an argument of a purifier shows the trade-off between clean and robust accuracy. A sweep over the steps or
the noise draws of an attack shows whether the attack has converged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from robench.catalog import Protocol, Suite, find_suite
from robench.core import registry, specs
from robench.core.errors import UsageError, some
from robench.defenses.resolution import ResolvedDefense, resolve

if TYPE_CHECKING:
    from robench.evaluation.options import Options
    from robench.records.record import Record

ATTACK = "attack."


@dataclass(frozen=True)
class Sweep:
    """An argument and its values, such as `sigma=0:140:20` or `attack.steps=10,50,200`.

    Attributes:
        name: an argument of the defense's builder, or "attack." and an argument of the attacks.
        values: in increasing order.
    """

    name: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Sweep":
        """Parse NAME=START:STOP:STEP (STOP included) or NAME=VALUE,VALUE,...

        Raises:
            UsageError: if the text is malformed, or has fewer than two or more than a hundred values.
        """
        name, _, values_text = (part.strip() for part in text.partition("="))
        try:
            if ":" in values_text:
                start, stop, step = map(_number, values_text.split(":"))
                count = round((stop - start) / step) if step else -1
                misses = abs(start + count * step - stop) > 1e-9 * max(1.0, abs(stop))
                valid = 0 < count <= 1000 and not misses
                values = [start + i * step for i in range(count + 1)] if valid else []
            else:
                values = [_number(value) for value in values_text.split(",")]
        except ValueError:
            values = []
        values = sorted(set(values))
        if not name or not 2 <= len(values) <= 100:
            raise UsageError(
                f'"{text}" is no sweep: expected NAME=START:STOP:STEP, such as sigma=0:140:20, or NAME=A,B,..., with 2 '
                "to 100 values; STOP - START must be a multiple of STEP"
            )
        return cls(name, tuple(values))

    @property
    def of_attack(self) -> bool:
        return self.name.startswith(ATTACK)


def sweep(
    sweep: Sweep,
    defense: str,
    suite: str | None,
    protocol: Protocol,
    knowledge: list[str],
    options: "Options",
) -> Iterator[tuple[float, "Record"]]:
    """Run every value and level of attacker knowledge, and yield each value with its record.

    Raises:
        RobenchError: as in `run_all`; also if neither the defense nor an attack has the argument.
    """
    from robench.evaluation.run import Request, run_grid  # imports torch, which parsing does not need

    if not sweep.of_attack:
        _check_builder(resolve(defense, protocol.dataset), sweep.name)
    attacks = find_suite(suite or protocol.suites[0])
    if attacks.rungs:
        raise UsageError(f"{attacks.name} is a ladder of runs: a sweep needs a single attack")
    requests = []
    for value in sweep.values:
        name, changed = defense, attacks
        if sweep.of_attack:
            changed = _with_attack(attacks, sweep.name.removeprefix(ATTACK), value)
        else:
            name = _with_defense(defense, sweep.name, value)
        requests.append(Request([name], [changed], protocol, knowledge or None))
    for index, record in run_grid(requests, options):
        yield sweep.values[index], record


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(text)
    return int(value) if value == int(value) and "." not in text and "e" not in text.lower() else value


def _check_builder(defense: ResolvedDefense, name: str) -> None:
    spec = defense.card.spec if defense.card else defense.spec
    if ":" in spec.name:
        # A loader checks the arguments itself, those of a function say.
        return
    builders = registry.purifiers if spec.name in registry.purifiers else registry.defenses
    parameters = specs.defaults(builders.get(spec.name)) if spec.name in builders else {}
    if name not in parameters:
        raise UsageError(
            f"{spec.name} has no argument {name}: it has {some(parameters, name)}; write attack.NAME for an "
            "argument of the attacks"
        )


def _with_defense(defense: str, name: str, value: float) -> str:
    """Set an argument of `defense`; of PURIFIER+CLASSIFIER, that of the purifier."""
    first, *rest = specs.split(defense, "+")
    spec = specs.parse(first)
    return "+".join([str(spec.replaced(**{name: value})), *rest])


def _with_attack(suite: Suite, name: str, value: float) -> Suite:
    """Set an argument of all attacks of the suite that have it."""
    from robench.attacks.build import canonical

    attacks, is_used = [], False
    for spec in suite.attacks:
        if name in specs.defaults(registry.attacks.get(spec.name)):
            spec, is_used = spec.replaced(**{name: value}), True
        attacks.append(canonical(spec))
    if not is_used:
        raise UsageError(f"no attack of {suite.name} has an argument {name}")
    return replace(suite, name="+".join(map(str, attacks)), attacks=attacks, norms={})
