"""A sweep: one run for each value of a setting of the defense or of the attacks.

Over a purifier's knob it draws the trade-off between clean and robust accuracy; over an attack's steps or draws it
shows whether the attack has converged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from robench.attacks.build import canonical
from robench.catalog import Protocol, Suite, find_suite
from robench.core import registry, specs
from robench.core.errors import UsageError, some
from robench.defenses import ResolvedDefense, resolve
from robench.evaluation.run import Options, run_all
from robench.records.record import Record

ATTACK = "attack."


@dataclass(frozen=True)
class Sweep:
    """`sigma=0:140:20`, or `attack.steps=10,50,200`.

    Attributes:
        name: an argument of the defense's builder, or after "attack." of the attacks.
        values: in rising order.
    """

    name: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Sweep":
        """Read NAME=START:STOP:STEP (STOP included) or NAME=VALUE,VALUE,...

        Raises:
            UsageError: for anything else, and for fewer than two or more than a hundred values.
        """
        name, _, said = (part.strip() for part in text.partition("="))
        try:
            if ":" in said:
                start, stop, step = map(_number, said.split(":"))
                count = round((stop - start) / step) if step else -1
                off = abs(start + count * step - stop) > 1e-9 * max(1.0, abs(stop))
                values = [] if off or not 0 < count <= 1000 else [start + i * step for i in range(count + 1)]
            else:
                values = [_number(value) for value in said.split(",")]
        except ValueError:
            values = []
        values = sorted(set(values))
        if not name or not 2 <= len(values) <= 100:
            raise UsageError(
                f'--sweep "{text}": expected NAME=START:STOP:STEP, such as sigma=0:140:20, or NAME=A,B,...; '
                "2 to 100 values, STOP reached by whole steps"
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
    options: Options,
) -> Iterator[tuple[float, Record]]:
    """A record for each value and level of knowledge, in order.

    Raises:
        RobenchError: as `run_all`; also when neither defense nor attacks take the setting.
    """
    if not sweep.of_attack:
        _builder_takes(resolve(defense, protocol.dataset), sweep.name)
    attacks = find_suite(suite or protocol.suites[0])
    if attacks.rungs:
        raise UsageError(f"{attacks.name} is a ladder of runs: sweep one attack")
    for value in sweep.values:
        name, played = defense, attacks
        if sweep.of_attack:
            played = _with_attack(attacks, sweep.name.removeprefix(ATTACK), value)
        else:
            name = _with_defense(defense, sweep.name, value)
        for record in run_all([name], [played], protocol, knowledge or None, options):
            yield value, record


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(text)
    return int(value) if value == int(value) and "." not in text and "e" not in text.lower() else value


def _builder_takes(defense: ResolvedDefense, name: str) -> None:
    spec = defense.card.spec if defense.card else defense.spec
    kind = registry.purifiers if spec.name in registry.purifiers else registry.defenses
    known = specs.defaults(kind.get(spec.name)) if spec.name in kind else {}
    if name not in known:
        raise UsageError(
            f"{spec.name} has no setting {name}: it has {some(known, name)}; those of attacks are attack.NAME"
        )


def _with_defense(defense: str, name: str, value: float) -> str:
    """`defense` with one more argument; the purifier's, where it stands before another defense."""
    first, *rest = specs.split(defense, "+")
    spec = specs.parse(first)
    return "+".join([str(spec.replaced(**{name: value})), *rest])


def _with_attack(suite: Suite, name: str, value: float) -> Suite:
    """The suite with that setting in every attack that has it."""
    changed, hit = [], False
    for spec in suite.attacks:
        if name in specs.defaults(registry.attacks.get(spec.name)):
            spec, hit = spec.replaced(**{name: value}), True
        changed.append(canonical(spec))
    if not hit:
        raise UsageError(f"no attack of {suite.name} has the setting {name}")
    return replace(suite, name="+".join(map(str, changed)), attacks=changed, norms={})
