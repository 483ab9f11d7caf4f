"""Attack some rows of a record again, with its own seed and specs: they must come out the same.

Forward passes prove what fooled a defense. That an attack of these specs failed on the rows called robust, and what
the others cost, shows only when it is run again. A few rows, drawn after the record was made, are enough to find out a
record with many false ones: the sample says with what probability it would have missed them.
"""

import hashlib
import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from robench.attacks._external import ForeignAttack
from robench.attacks.build import build_attacks
from robench.core.errors import UsageError
from robench.data._base import Images
from robench.defenses import Loaded
from robench.engine.attack_context import Samples
from robench.engine.outcome import Outcome, ResultWarning
from robench.engine.run import Run
from robench.engine.setup import Setup, find_attacker
from robench.records import randomized
from robench.records.findings import Finding
from robench.records.migration import NOT_ATTACKED
from robench.records.provenance import device_name, platform_facts
from robench.records.record import Job, Record
from robench.verification.evidence import Evidence

REPLAYED = "samples.replayed"
# What must come out the same of a row.
COLUMNS = ("fooled_by", "steps", "forward", "backward")
# On another processor or release of torch the last bits of logits differ, and an attack may take another way: of the
# rows played again this part may end otherwise, and the passes of all.
ELSEWHERE = 0.02
# Shares of false rows for which the probability of missing them all is reported.
_SHARES = (0.05, 0.2)


@dataclass(frozen=True)
class Sample:
    """Which rows are attacked again.

    Attributes:
        count: of them, at the most.
        seed: draws them; whoever made the record must not know it.
    """

    count: int
    seed: int

    @classmethod
    def of(cls, count: int, seed: int | None) -> "Sample":
        return cls(count, secrets.randbits(32) if seed is None else seed)

    def rows(self, ids: list[int]) -> list[int]:
        """Indices into `ids`, rising: the order of sha256 over seed and id decides, so that anyone draws the same."""

        def place(i: int) -> bytes:
            return hashlib.sha256(f"{self.seed} {ids[i]}".encode()).digest()

        return sorted(sorted(range(len(ids)), key=place)[: self.count])


def missed(rows: int, false: int, drawn: int, allowed: int = 0) -> float:
    """The probability that a sample holds no more than `allowed` of the false rows.

    Args:
        rows: all there are, `false` of them false, `drawn` in the sample.
    """
    ways = sum(
        math.comb(false, k) * math.comb(rows - false, drawn - k) for k in range(min(allowed, drawn) + 1)
    )
    return ways / math.comb(rows, drawn)


def attack_again(job: Job, loaded: Loaded, images: Images, rows: list[int], device: torch.device) -> Outcome:
    """The attacks of a job on some of its rows, as they were run: the others stand by and are not attacked.

    Raises:
        UsageError: when an attack is unknown or takes all images in one call, or the attacker cannot be set up.
    """
    threat, defense = job.threat_model, loaded.defense
    attacks = build_attacks(list(job.suite.attacks), threat)
    whole = [spec for spec, attack in attacks if isinstance(attack, ForeignAttack)]
    if whole:
        raise UsageError(
            f"{whole[0]} takes all images in one call: rows of it cannot be attacked again alone"
        )
    searching = find_attacker(job.knowledge, defense, job.dataset.name, device, images.class_subset)
    setup = Setup.of(defense, searching, job, device)
    run = Run(setup, attacks, Samples(images.x, images.y, images.ids), threat)
    # Attacks that couple rows or compare images see the whole run, as they did.
    run.mine = torch.zeros(len(images), dtype=torch.bool)
    run.mine[rows] = True
    return run.play()


def findings(e: Evidence, loaded: Loaded, device: torch.device, sample: Sample) -> Iterator[Finding]:
    """Draw rows, attack them, compare, and say what such a sample misses."""
    if randomized.chosen_on(e.record):
        raise UsageError(
            f"{e.record.folder} is judged on the draws that its candidates were chosen on: robench results migrate, "
            "then --replay"
        )
    # Of a row that is wrong without an attack nothing is left to play, nor of one that a mark says was not attacked.
    spared = any(mark.code == NOT_ATTACKED for mark in e.record.health)
    rows_ = zip(e.rows["fooled_by"], e.rows["forward"], strict=True)
    open_ = [
        i
        for i, (by, forward) in enumerate(rows_)
        if by != "clean" and not (spared and by in ("", "noise") and not forward)
    ]
    rows = [open_[k] for k in sample.rows([e.rows["id"][i] for i in open_])]
    again = attack_again(e.record.job, loaded, e.images, rows, device)
    played: dict[str, list[Any]] = {name: _list(getattr(again, name)) for name in COLUMNS}
    here = same_machine(e.record, device)
    allowed = 0 if here else math.ceil(ELSEWHERE * len(rows))
    compared = COLUMNS if here else COLUMNS[:1]
    other = [i for i in rows if any(e.rows[name][i] != played[name][i] for name in compared)]
    complete = len(rows) == len(open_) and here
    yield Finding(
        REPLAYED,
        len(other) <= allowed,
        _detail(e, played, rows, other, sample, here),
        tuple(f"samples.{name}" for name in COLUMNS) if complete else (),
    )
    if complete:
        yield from _whole(e, again)
    elif rows:
        yield Finding(REPLAYED, True, _odds(len(open_), len(rows), allowed))


def same_machine(record: Record, device: torch.device) -> bool:
    """Whether the bits must be the same here: one processor, one release of torch."""
    processor = record.device.rpartition(", ")[0] or record.device
    here = device_name(device)
    return (
        processor == (here.rpartition(", ")[0] or here)
        and record.platform.get("torch") == platform_facts()["torch"]
    )


def _whole(e: Evidence, again: Outcome) -> Iterator[Finding]:
    """When every row was attacked again, the costs of the attacks and all warnings are known too."""

    def told(costs: Any) -> list[tuple[Any, ...]]:
        return [(c.spec, c.attacked, c.survivors, c.forward, c.backward) for c in costs]

    same = told(again.attacks) == told(e.record.attacks)
    names = ("attacked", "survivors", "forward", "backward")
    covered = tuple(f"attacks.{name}" for name in names)
    yield Finding("attacks", same, "each as it was, attacked again", (*covered, "passes"))
    carried = {_figures(mark) for mark in e.record.health}
    lost = [mark for mark in again.health if _figures(mark) not in carried]
    detail = f"{', '.join(mark.code for mark in again.health) or 'no warnings'} when attacked again"
    detail += "".join(f"; {mark.code} is missing: {mark.text}" for mark in lost)
    yield Finding("health", not lost, detail, ("health",))


def _figures(mark: ResultWarning) -> tuple[str, ...]:
    """A warning's code and its numbers; a release may word it otherwise."""
    return mark.code, *re.findall(r"\d+", mark.text)


def _detail(
    e: Evidence,
    played: dict[str, list[Any]],
    rows: list[int],
    other: list[int],
    sample: Sample,
    here: bool,
) -> str:
    what = "verdict, attack, steps and passes" if here else "verdict and attack"
    detail = f"{len(rows) - len(other)} of {len(rows)} rows attacked again (seed {sample.seed}) have the same {what}"
    if not here:
        made = f"{e.record.device} with torch {e.record.platform.get('torch')}"
        detail += f" (made on {made}: {ELSEWHERE:.0%} may differ)"
    if other:
        i = other[0]
        was, now = (", ".join(f"{name} {rows_[name][i]!r}" for name in COLUMNS) for rows_ in (e.rows, played))
        detail += f"; row {i}: the record says {was}, found {now}"
    return detail


def _odds(population: int, drawn: int, allowed: int) -> str:
    what = "misses them all" if not allowed else "finds too few of them"
    parts = []
    for share in _SHARES:
        false = max(1, round(share * population))
        parts.append(f"{share:.0%} ({false}): {missed(population, false, drawn, allowed):.2g}")
    return (
        f"if some of the {population} rows that were attacked were false, a sample of {drawn} {what} with probability "
        + ", ".join(parts)
    )


def _list(column: Any) -> list[Any]:
    return column if isinstance(column, list) else column.tolist()
