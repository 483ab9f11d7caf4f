"""A sweep: one run for each value of a setting of the defense or of the attacks, as table and picture.

Over a purifier's knob it draws the trade-off between clean and robust accuracy; over an attack's steps or draws it
shows whether the attack has converged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from robench import registry, specs
from robench.content import Protocol, Suite
from robench.defenses import find_card
from robench.direct import find_suite
from robench.engine.attackers import canonical
from robench.errors import UsageError
from robench.evaluate import Options, run_all
from robench.results.grid import Grid
from robench.results.plots.curves import Curve, Point, draw
from robench.results.plots.style import save
from robench.results.record import Record
from robench.results.wording import interval, percent

ATTACK = "attack."
# An attack has converged when its last step costs no more than this: AutoAttack's own threshold, in points,
# and more than one image that chance could explain.
_POINTS, _IMAGES = 0.2, 2


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
        card = find_card(defense, protocol.dataset)
        _builder_takes(card.builder if card else defense, sweep.name)
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


def grid(sweep: Sweep, found: list[tuple[float, Record]]) -> Grid:
    """The sweep's table, with a note for each level of knowledge whose curve has not converged."""
    rows = [
        (
            f"{value:g}",
            record.job.knowledge,
            f"{percent(record.clean_accuracy)} {interval(record.clean_accuracy)}",
            f"{percent(record.robust_accuracy)} {interval(record.robust_accuracy)}",
            "!" if record.health else "",
        )
        for value, record in found
    ]
    job = found[0][1].job
    columns = (sweep.name, "knowledge", "clean %", "robust %", "marks")
    marks = {f"! {mark.code}: {mark.text}": None for _, record in found for mark in record.health}
    return Grid(
        title=f"{job.defense.name.partition('(')[0]} · {job.protocol} · {job.threat}",
        columns=columns,
        groups=(tuple(rows),),
        names=frozenset(("knowledge",)),
        numbers=frozenset((sweep.name, "clean %", "robust %")),
        notes=(*unconverged(sweep, found), *marks),
    )


def unconverged(sweep: Sweep, found: list[tuple[float, Record]]) -> list[str]:
    """A line for each level of knowledge at which the last value of an attack's setting still costs accuracy."""
    if not sweep.of_attack:
        return []
    lines = []
    for level in dict.fromkeys(record.job.knowledge for _, record in found):
        own = [(value, record) for value, record in found if record.job.knowledge == level]
        (before, first), (last, second) = own[-2:]
        lost = first.robust_accuracy.correct - second.robust_accuracy.correct
        if lost >= _IMAGES and 100 * lost / second.job.n > _POINTS:
            lines.append(
                f"! not-converged: {level}: from {sweep.name} {before:g} to {last:g} robust accuracy still falls "
                f"by {100 * lost / second.job.n:.2f} points: go further"
            )
    return lines


def picture(sweep: Sweep, found: list[tuple[float, Record]], path: Path) -> Path:
    """Write the curves as PNG: clean accuracy once, robust accuracy for each level of knowledge."""
    levels = list(dict.fromkeys(record.job.knowledge for _, record in found))
    own = {level: [(v, record) for v, record in found if record.job.knowledge == level] for level in levels}
    curves = [Curve("clean", [Point.of(v, record.clean_accuracy) for v, record in own[levels[0]]])]
    for level in levels:
        curves.append(Curve(f"robust, {level}", [Point.of(v, r.robust_accuracy) for v, r in own[level]]))
    job = found[0][1].job
    title = f"{job.defense.name.partition('(')[0]} under {job.suite.name.partition('(')[0]}, {job.threat}"
    return save(draw(curves, sweep.name.removeprefix(ATTACK), title), path)


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(text)
    return int(value) if value == int(value) and "." not in text and "e" not in text.lower() else value


def _builder_takes(builder: str, name: str) -> None:
    spec = specs.parse(builder)
    kind = registry.purifiers if spec.name in registry.purifiers else registry.defenses
    known = specs.defaults(kind.get(spec.name)) if spec.name in kind else {}
    if name not in known:
        offers = ", ".join(known) or "none"
        raise UsageError(
            f"{spec.name} has no setting {name}: it has {offers}; those of attacks are attack.NAME"
        )


def _with_defense(defense: str, name: str, value: float) -> str:
    """`defense` with one more argument; the purifier's, where it stands before another defense."""
    first, *rest = specs.split(defense, "+")
    spec = specs.parse(first)
    return "+".join([str(specs.Spec(spec.name, {**spec.arguments, name: value})), *rest])


def _with_attack(suite: Suite, name: str, value: float) -> Suite:
    """The suite with that setting in every attack that has it."""
    changed, hit = [], False
    for text in suite.attacks:
        spec = specs.parse(text)
        if name in specs.defaults(registry.attacks.get(spec.name)):
            spec, hit = specs.Spec(spec.name, {**spec.arguments, name: value}), True
        changed.append(canonical(str(spec)))
    if not hit:
        raise UsageError(f"no attack of {suite.name} has the setting {name}")
    return replace(suite, name="+".join(changed), attacks=changed, norms={})
