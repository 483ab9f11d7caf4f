"""Attack some rows of a record again, with the same seed and specs, and compare the results.

Forward passes prove that certificates fool a defense. Only running the attacks again can show that they failed on the
rows called robust, and what the other rows cost. A few rows, drawn after the record was made, suffice to expose a
record with many false rows. The finding states the probability of missing them.
"""

import hashlib
import math
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robench.attacks._base import Attack
from robench.attacks._external import ForeignAttack
from robench.attacks.build import build_attacks
from robench.core.errors import ResourceError, UsageError
from robench.data._base import Images
from robench.defenses import Loaded
from robench.engine.attack_context import Samples
from robench.engine.outcome import Outcome, ResultWarning
from robench.engine.run import Run
from robench.engine.setup import Setup, find_attacker
from robench.records import estimate, randomized
from robench.records.certificates import is_attacked
from robench.records.findings import Finding
from robench.records.migration import NOT_ATTACKED
from robench.records.provenance import device_name, platform_facts
from robench.records.record import Job, Record
from robench.verification.evidence import Evidence

REPLAYED = "samples.replayed"
# The columns that must be the same.
COLUMNS = ("fooled_by", "steps", "forward", "backward")
# On another processor or release of torch the last bits of logits differ, and an attack may take another path: this
# share of the rows may get another verdict, and all of them other passes.
TOLERATED_SHARE = 0.02
# More rows than images with a thousand targets each; their results take less than a gigabyte.
_MOST_ROWS = 10_000_000
# Shares of false rows for which the probability of missing them all is reported.
_SHARES = (0.05, 0.2)


@dataclass(frozen=True)
class Sample:
    """Which rows to attack again.

    Attributes:
        count: the maximum number of rows.
        seed: selects the rows; the author of the record must not know it.
    """

    count: int
    seed: int

    @classmethod
    def of(cls, count: int, seed: int | None) -> "Sample":
        return cls(count, secrets.randbits(32) if seed is None else seed)

    def rows(self, ids: list[int]) -> list[int]:
        """Sorted indices into `ids`, selected by sha256 of seed and id, so that anyone draws the same rows."""

        def place(i: int) -> bytes:
            return hashlib.sha256(f"{self.seed} {ids[i]}".encode()).digest()

        return sorted(sorted(range(len(ids)), key=place)[: self.count])


def missed(rows: int, false: int, drawn: int, allowed: int = 0) -> float:
    """The probability that a sample contains at most `allowed` of the false rows.

    Args:
        rows: total number of rows; `false` of them are false, and `drawn` are in the sample.
    """
    counts = range(min(allowed, drawn) + 1)
    ways = sum(math.comb(false, k) * math.comb(rows - false, drawn - k) for k in counts)
    return ways / math.comb(rows, drawn)


def attacks_of(job: Job, images: int, classes: int) -> list[tuple[str, Attack[Any]]]:
    """Build the attacks of a job to run them again.

    Args:
        images: number of images that an attack takes.

    Raises:
        UsageError: when an attack is unknown.
        ResourceError: when an attack has more rows than can be attacked again.
    """
    attacks = build_attacks(list(job.suite.attacks), job.threat_model)
    for spec, attack in attacks:
        rows = images * attack.ranks(classes)
        if rows > _MOST_ROWS:
            raise ResourceError(
                f"{spec} has {rows:,} rows for {images:,} images: expected at most {_MOST_ROWS:,} in a record"
            )
    return attacks


def attack_again(
    job: Job,
    loaded: Loaded,
    images: Images,
    rows: list[int],
    device: torch.device,
    proven: Sequence[int] = (),
) -> Outcome:
    """Repeat the attacks of a job on some of its rows. The other rows are present but not attacked.

    Args:
        proven: rows that the record counts as robust without an attack.

    Raises:
        UsageError: when an attack is unknown or takes all images in one call, or the attacker cannot be set up.
        ResourceError: when an attack has more rows than can be attacked again.
    """
    threat, defense = job.threat_model, loaded.defense
    attacks = attacks_of(job, len(images), len(images.classes))
    external = [spec for spec, attack in attacks if isinstance(attack, ForeignAttack)]
    if external:
        raise UsageError(
            f"{external[0]} takes all images in one call: single images cannot be attacked again"
        )
    attacker = find_attacker(job.knowledge, defense, job.dataset.name, device, images.class_subset)
    setup = Setup.of(defense, attacker, job, device)
    run = Run(setup, attacks, Samples(images.x, images.y, images.ids), threat)
    # Attacks that couple rows or compare images see all rows, as in the original run.
    run.selected = torch.zeros(len(images), dtype=torch.bool)
    run.selected[[*rows, *proven]] = True
    run.proven[list(proven)] = True
    return run.outcome()


def findings(e: Evidence, loaded: Loaded, device: torch.device, sample: Sample) -> Iterator[Finding]:
    """Draw rows, attack them again, compare the results, and report the probability of missing false rows."""
    if randomized.chosen_on(e.record):
        raise UsageError(
            f"{e.record.folder} is judged on the draws that its candidates were chosen on: run robench results "
            "migrate, then use --replay"
        )
    # Skip rows that are misclassified without an attack, and rows that a warning says were not attacked.
    skipped = any(warning.code == NOT_ATTACKED for warning in e.record.health)
    pairs = zip(e.rows["fooled_by"], e.rows["forward"], strict=True)
    candidates = [
        i
        for i, (by, forward) in enumerate(pairs)
        if by not in ("clean", estimate.NOT_ATTACKED)
        and (forward or is_attacked(by) or not skipped)
        and i not in e.proven
    ]
    rows = [candidates[k] for k in sample.rows([e.rows["id"][i] for i in candidates])]
    again = attack_again(e.record.job, loaded, e.images, rows, device, e.proven)
    replayed: dict[str, list[Any]] = {name: _list(getattr(again, name)) for name in COLUMNS}
    same_device = same_machine(e.record, device)
    allowed = 0 if same_device else math.ceil(TOLERATED_SHARE * len(rows))
    compared = COLUMNS if same_device else COLUMNS[:1]
    differing = [i for i in rows if any(e.rows[name][i] != replayed[name][i] for name in compared)]
    complete = len(rows) == len(candidates) and same_device
    covers = tuple(f"samples.{name}" for name in COLUMNS) if complete else ()
    detail = _detail(e, replayed, rows, differing, sample, same_device)
    yield Finding(REPLAYED, len(differing) <= allowed, detail, covers)
    if complete:
        yield from _whole(e, again)
    elif rows:
        yield Finding(REPLAYED, True, _odds(len(candidates), len(rows), allowed))


def same_machine(record: Record, device: torch.device) -> bool:
    """Whether results must be bit-identical: the same processor and the same release of torch."""
    processor = record.device.rpartition(", ")[0] or record.device
    here = device_name(device)
    same_processor = processor == (here.rpartition(", ")[0] or here)
    return same_processor and record.platform.get("torch") == platform_facts()["torch"]


def _whole(e: Evidence, again: Outcome) -> Iterator[Finding]:
    """After attacking every row again, compare the costs of the attacks and all warnings too."""

    def figures(costs: Any) -> list[tuple[Any, ...]]:
        return [(c.spec, c.attacked, c.survivors, c.forward, c.backward) for c in costs]

    same = figures(again.attacks) == figures(e.record.attacks)
    names = ("attacked", "survivors", "forward", "backward")
    covered = (*(f"attacks.{name}" for name in names), "passes")
    yield Finding("attacks", same, "costs of each attack when attacked again", covered)
    recorded = {_figures(warning) for warning in e.record.health}
    missing = [warning for warning in again.health if _figures(warning) not in recorded]
    detail = f"{', '.join(warning.code for warning in again.health) or 'no warnings'} when attacked again"
    detail += "".join(f"; {warning.code} is missing: {warning.text}" for warning in missing)
    yield Finding("health", not missing, detail, ("health",))


def _figures(warning: ResultWarning) -> tuple[str, ...]:
    """A warning's code and numbers; its wording may differ between releases."""
    return warning.code, *re.findall(r"\d+", warning.text)


def _detail(
    e: Evidence,
    replayed: dict[str, list[Any]],
    rows: list[int],
    differing: list[int],
    sample: Sample,
    same_device: bool,
) -> str:
    what = "verdict, attack, steps and passes" if same_device else "verdict and attack"
    same = len(rows) - len(differing)
    detail = f"{same} of {len(rows)} images attacked again (seed {sample.seed}) have the same {what}"
    if not same_device:
        origin = f"{e.record.device} with torch {e.record.platform.get('torch')}"
        detail += f" (made on {origin}: {TOLERATED_SHARE:.0%} may differ)"
    if differing:
        i = differing[0]
        was, now = (", ".join(f"{name} {r[name][i]!r}" for name in COLUMNS) for r in (e.rows, replayed))
        detail += f"; image {i}: the record says {was}, found {now}"
    return detail


def _odds(population: int, drawn: int, allowed: int) -> str:
    what = "miss them" if not allowed else "find too few of them"
    few, many = (max(1, round(share * population)) for share in _SHARES)
    odds = [f"{missed(population, false, drawn, allowed):.2g}" for false in (few, many)]
    return (
        f"if {few} of the {population} attacked images had false results, a sample of {drawn} would {what} with "
        f"probability {odds[0]}; if {many} had, with probability {odds[1]}"
    )


def _list(column: Any) -> list[Any]:
    return column if isinstance(column, list) else column.tolist()
