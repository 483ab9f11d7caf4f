"""The runs of a diagnosis: radii at which robust accuracy must reach 0, and increasing numbers of steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from robench.core.errors import ResourceError
from robench.diagnosis._base import ATTACKS, OWN, PINTOR, Case, Indicator
from robench.engine.tolerances import POINTS
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, run_all
from robench.records.record import Record
from robench.records.samples import held
from robench.statistics.accuracy import mcnemar
from robench.threats.threat import Threat, largest_distance

RUNS = "runs"
STEPS = (20, 40, 80)
# Number of steps of the runs at large radii.
FAR = 100
# Significance level of McNemar's test, as for the ranks of a board.
CHANCE = 0.05


@dataclass(frozen=True)
class Played:
    """The records of a diagnosis.

    Attributes:
        steps: in increasing order of steps.
        grey: at the radius at which every image can become the same grey image; everywhere: any image.
    """

    steps: tuple[Record, ...]
    grey: Record
    everywhere: Record

    @property
    def records(self) -> tuple[Record, ...]:
        return (*self.steps, self.grey, self.everywhere)


def radius(norm: str, shape: Sequence[int], share: float) -> str:
    """The threat model in which each value of an image (C, H, W) may change by `share`."""
    return f"{norm}:{share * largest_distance(norm, *shape):.6g}"


def play(case: Case, name: str, folder: Path, options: Options) -> Played:
    """Execute the runs, or read their saved records.

    Args:
        name: name of the defense as the user gave it.
        folder: folder of the diagnosis.
    """
    options = replace(options, results=folder / RUNS, command=options.command or "robench diagnose")
    # Without a random start, the runs differ only in the number of steps.
    plain = ("pgd", {"random_start": False}) if case.threat.norm != "L1" else ("apgd-l1", {})

    def run(threat: str | Threat, spec: str) -> Record:
        protocol = choose_protocol(None, case.protocol.dataset, threat, len(case.images))
        protocol = replace(protocol, split=case.protocol.split)
        (record,) = run_all([name], [spec], protocol, [case.knowledge], options)
        return record

    strong = case.spec(ATTACKS[case.threat.norm], steps=FAR)
    shape = case.x.shape[1:]
    return Played(
        steps=tuple(run(case.threat, case.spec(plain[0], steps=steps, **plain[1])) for steps in STEPS),
        grey=run(radius(case.threat.norm, shape, 0.5), strong),
        everywhere=run(radius(case.threat.norm, shape, 1.0), strong),
    )


def indicators(played: Played) -> Iterator[Indicator]:
    """The indicators of the runs."""
    for code, name, record, why, source in (
        ("large-radius", "large radius", played.grey, "the same gray image", OWN),
        ("unconstrained-failure", "unconstrained attack", played.everywhere, "any other", PINTOR),
    ):
        left, place = record.robust_accuracy, f"{record.job.threat}, where every image can become {why}"
        text = f"{left.correct} of {record.job.n} images survive at {place}"
        yield Indicator(code, name, left.value, 0.0, source, text)
    yield _doubling(played.steps)
    warnings = {
        warning.code: warning.text
        for record in played.records
        for warning in record.health
        if warning.code != "more-steps-help"
    }
    text = "; ".join(f"{code}: {text}" for code, text in warnings.items()) or "the runs have no warnings"
    yield Indicator(
        "warnings-of-runs", "warnings of the runs", float(len(warnings)), 0.0, "robench run", text
    )


def _doubling(steps: tuple[Record, ...]) -> Indicator:
    before, after = (_robust(record) for record in steps[-2:])
    newly_fooled, newly_robust = int((before & ~after).sum()), int((after & ~before).sum())
    n = steps[-1].job.n
    shares = (f"{100 * record.robust_accuracy.value:.1f} %" for record in steps)
    accuracies = ", ".join(f"{share} after {count}" for share, count in zip(shares, STEPS, strict=True))
    # The lost share counts only if chance does not explain it.
    significant = mcnemar(newly_fooled, newly_robust) < CHANCE
    value = max(0.0, (newly_fooled - newly_robust) / n) if significant else 0.0
    text = f"{accuracies} steps; the last doubling fools {newly_fooled} more images and misses {newly_robust}"
    return Indicator("more-steps-help", "step doubling", value, POINTS, OWN, text)


def _robust(record: Record) -> np.ndarray:
    robust = held(record)
    if robust is None:
        raise ResourceError(
            f"the samples of {record.folder} cannot be read: remove it, and repeat the diagnosis"
        )
    return robust
