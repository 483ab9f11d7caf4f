"""Series: records that differ in a single number: a radius, or a setting of the attack or of the defense."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from robench import catalog
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.defenses.resolution import builder_defaults
from robench.records.record import Record
from robench.reports.ranking import shown_name

# Smallest number of values that a board shows as a series.
LEAST = 3
RADIUS, ATTACK, DEFENSE = "radius", "attack", "defense"
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Series:
    """One row of a board that represents several records.

    Attributes:
        kind: what varies: the `RADIUS`, or a setting of the `ATTACK` or of the `DEFENSE`.
        setting: name of the setting, such as "Linf radius" or "steps".
        defense, suite: names without the setting.
        points: (value, record), by value.
    """

    kind: str
    setting: str
    defense: str
    suite: str
    knowledge: str
    points: tuple[tuple[float, Record], ...]

    @property
    def sparkline(self) -> str:
        """Robust accuracy at each value, as a bar from 0 to 100 %."""
        top = len(_BARS) - 1
        return "".join(_BARS[round(record.robust_accuracy.value * top)] for _, record in self.points)

    @property
    def values(self) -> str:
        """Each value with its robust accuracy: "0.05: 80.00, 0.1: 61.00"."""
        return ", ".join(f"{x:.4g}: {100 * record.robust_accuracy.value:.2f}" for x, record in self.points)


def series(records: Sequence[Record]) -> list[Series]:
    """Every series of at least `LEAST` values, in the order of its first record."""
    points: dict[tuple, dict[float, Record]] = {}
    for record in records:
        if not record.corrupted:
            for place, value in _places(record):
                points.setdefault(place, {})[value] = record
    return [
        Series(*place[:5], points=tuple(sorted(members.items())))
        for place, members in points.items()
        if len(members) >= LEAST
    ]


def folded(all_series: Iterable[Series]) -> set[int]:
    """The ids of the records that their series replaces on a board: in a series over a radius those without a shipped
    protocol, over an attack's setting without a shipped suite, over a defense's setting without a plain name."""
    return {id(record) for run in all_series for _, record in run.points if _FOLDED[run.kind](run, record)}


_FOLDED = {
    RADIUS: lambda series, record: record.job.protocol not in catalog.protocols(),
    ATTACK: lambda series, record: record.job.suite.name not in catalog.suites(),
    DEFENSE: lambda series, record: shown_name(record) != series.defense,
}


def _places(record: Record) -> Iterator[tuple[tuple, float]]:
    """For each series that a record may belong to, the common properties and the record's value."""
    job, threat = record.job, record.job.threat_model
    name, suite = shown_name(record), job.suite.name
    images = (job.dataset.digest, job.n, job.defense.checkpoint_sha256)
    yield (RADIUS, f"{threat.kind} radius", name, suite, job.knowledge, *images), threat.eps
    # An estimate of a suite is not a point among runs on all images.
    for base, setting, value in attack_settings(() if record.is_estimate else job.suite.attacks):
        yield (ATTACK, setting, name, base, job.knowledge, job.threat, *images), value
    for base, setting, value in defense_settings(job.defense.name):
        yield (DEFENSE, setting, base, suite, job.knowledge, job.threat, job.seed, *images), value


def defense_settings(defense: str) -> Iterator[tuple[str, str, float]]:
    """Each numeric setting of a defense: its name without the setting, the setting, the value.

    Defaults come from the card and its builder, so that "de3-digits" is in a series with
    "de3-digits(sigma=140)".
    """
    try:
        first, *rest = specs.split(defense, "+")
        spec = specs.parse(first)
        card = catalog.cards().get(spec.name)
        builder = card.spec if card else specs.Spec(spec.name)
        arguments = {**builder_defaults(builder.name), **builder.arguments}
    except UsageError:
        return
    for base, setting, value in _settings(spec, arguments):
        yield "+".join([base, *rest]), setting, value


def attack_settings(attacks: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Each numeric setting of a suite of one attack: its spec without the setting, the setting, the value."""
    # Defaults of attacks from other packages are ignored, because reading them would import the packages.
    if len(attacks) == 1:
        spec = specs.parse(attacks[0])
        if spec.name in registry.attacks and registry.attacks.holder(spec.name).startswith("robench."):
            yield from _settings(spec, registry.attacks.describe(spec.name).defaults)


def _settings(spec: specs.Spec, defaults: dict) -> Iterator[tuple[str, str, float]]:
    for name, value in {**defaults, **spec.arguments}.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            others = {key: argument for key, argument in spec.arguments.items() if key != name}
            yield str(specs.Spec(spec.name, others)), name, float(value)
