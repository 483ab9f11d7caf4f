"""What a diagnosis learns from runs, each a record: a radius that must reach 0, and more steps."""

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
from robench.records.samples import read_samples
from robench.statistics.accuracy import mcnemar
from robench.threats.threat import Threat, whole

RUNS = "runs"
STEPS = (20, 40, 80)
# Steps of the runs at a large radius.
FAR = 100
# Fewer images than chance could explain on other images: as for the ranks of a board.
CHANCE = 0.05


@dataclass(frozen=True)
class Played:
    """The records that a diagnosis made.

    Attributes:
        steps: by rising number of steps.
        grey: at a radius where every image can be made the same grey one; everywhere: where it can be made any.
    """

    steps: tuple[Record, ...]
    grey: Record
    everywhere: Record

    @property
    def records(self) -> tuple[Record, ...]:
        return (*self.steps, self.grey, self.everywhere)


def radius(norm: str, shape: Sequence[int], share: float) -> str:
    """The threat in which each value of an image (C, H, W) may change by `share`."""
    return f"{norm}:{share * whole(norm, *shape):.6g}"


def play(case: Case, name: str, folder: Path, options: Options) -> Played:
    """Make the runs, or answer from their records.

    Args:
        name: of the defense, as it was asked for.
        folder: of the diagnosis.
    """
    options = replace(options, results=folder / RUNS, command=options.command or "robench diagnose")
    # Without a random start only the number of steps tells the runs apart.
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
    """What the runs say."""
    for code, name, record, why, source in (
        ("large-radius", "large radius", played.grey, "each image can be made the same grey one", OWN),
        ("unconstrained-failure", "unconstrained attack", played.everywhere, "it may be any image", PINTOR),
    ):
        left = record.robust_accuracy
        text = f"{left.correct} of {record.job.n} images survive at {record.job.threat}, where {why}"
        yield Indicator(code, name, left.value, 0.0, source, text)
    yield _doubling(played.steps)
    found = {
        mark.code: mark.text
        for record in played.records
        for mark in record.health
        if mark.code != "more-steps-help"
    }
    text = "; ".join(f"{code}: {said}" for code, said in found.items()) or "its runs have no marks"
    yield Indicator("marks-of-runs", "marks of the runs", float(len(found)), 0.0, "robench run", text)


def _doubling(steps: tuple[Record, ...]) -> Indicator:
    before, after = (_robust(record) for record in steps[-2:])
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    n = steps[-1].job.n
    said = ", ".join(
        f"{100 * record.robust_accuracy.value:.1f} % after {count}"
        for record, count in zip(steps, STEPS, strict=True)
    )
    # The share lost counts where chance does not explain it.
    sure = mcnemar(lost, won) < CHANCE
    value = max(0.0, (lost - won) / n) if sure else 0.0
    text = f"{said} steps; from the last doubling {lost} images fall and {won} hold again"
    return Indicator("more-steps-help", "step doubling", value, POINTS, OWN, text)


def _robust(record: Record) -> np.ndarray:
    if record.folder is None:
        raise ResourceError("a record without a folder has no samples")
    rows = read_samples(record.folder).sort_by("id")
    return np.asarray(rows["fooled_by"].to_pylist()) == ""
