"""Estimates of a suite's robust accuracy (`robench run --estimate`), for a fraction of its price.

The suite `quick` runs on all images. The suite to estimate runs on all images that `quick` fools, which is cheap, and
on a growing random sample of the others, until the interval for the result of the whole suite is narrow enough.

Both are runs of their own. That of the suite is the beginning of its run on all images: it stays in the folder for
partial results, and a run without `estimate` continues it.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from robench.attacks._external import ForeignAttack
from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim
from robench.engine.checkpoint import FolderStore
from robench.engine.outcome import Outcome
from robench.engine.shares import Deal, share_count
from robench.engine.work import Work
from robench.evaluation.jobs import job_of, run_of
from robench.evaluation.options import Options
from robench.evaluation.orders import order_of
from robench.evaluation.planning import PlannedRun
from robench.evaluation.reuse import saved_record
from robench.records import estimate
from robench.records.estimate import NOT_ATTACKED, OUTSIDE, Estimate, random_order
from robench.records.provenance import conditions
from robench.records.record import Job, Record
from robench.records.remote import synced
from robench.records.samples import read_samples
from robench.records.store import PARTIAL, make_record, place_of, write_record
from robench.statistics.sampling import Sample

SCREEN = "quick"
# Bounds of the number of images in a share of the sample, and the number of shares between them.
_SMALLEST, _LARGEST, _SHARES = 16, 64, 32


def check(planned: PlannedRun, half_width: float, certify_first: str | None = None) -> None:
    """Refuse suites that cannot be estimated.

    Raises:
        UsageError: in one line.
    """
    if not 0 < half_width <= 50:
        raise UsageError(
            f"--estimate {half_width:g}: expected half the width of the interval in points, such as 0.5"
        )
    if certify_first:
        raise UsageError("--estimate runs without --certify-first: give one of them")
    if planned.attacker is None:
        raise UsageError(f"{planned.suite.name} has no attacks: remove --estimate")
    if planned.suite.name == SCREEN:
        raise UsageError(f"--estimate starts from {SCREEN}: choose another suite, such as autoattack")
    if planned.loaded.defense.stochastic:
        raise UsageError(
            f"{planned.loaded.name} is randomized: --estimate supports deterministic defenses only"
        )
    for spec, attack in planned.attacks:
        if isinstance(attack, ForeignAttack) or attack.group > 1:
            raise UsageError(f"{spec} needs all images at once: remove --estimate")


def job_of_estimate(job: Job, half_width: float) -> Job:
    """The job of an estimate of a job."""
    suite = replace(job.suite, name=job.suite.name + estimate.SUFFIX)
    return replace(job, suite=suite, half_width=half_width)


@dataclass(frozen=True)
class Sampling:
    """The split of a run's samples: first those that the screen fools, then the others in random order.

    Attributes:
        order: position of each sample in the random order; OUTSIDE for those that the screen fools.
        share: the share of each sample.
        certain: number of shares of the samples that the screen fools.
    """

    order: tuple[int, ...]
    share: tuple[int, ...]
    certain: int

    @classmethod
    def of(cls, survives: Sequence[bool], ids: Sequence[int], seed: int, batch_size: int) -> "Sampling":
        """The split for the samples that survive the screen."""
        inside = [i for i, survived in enumerate(survives) if survived]
        outside = [i for i, survived in enumerate(survives) if not survived]
        order, share = [OUTSIDE] * len(ids), [0] * len(ids)
        certain = share_count(len(outside), batch_size)
        for place, i in enumerate(outside):
            share[i] = place % certain
        size = min(max(-(-len(inside) // _SHARES), _SMALLEST), _LARGEST)
        for i, place in zip(inside, random_order([ids[i] for i in inside], seed), strict=True):
            order[i], share[i] = place, certain + place // size
        return cls(tuple(order), tuple(share), certain)

    @cached_property
    def drawn(self) -> list[int]:
        """Number of sampled images in the first 0, 1, 2, ... shares."""
        sizes = Counter(
            share for share, place in zip(self.share, self.order, strict=True) if place != OUTSIDE
        )
        return list(accumulate((sizes[share] for share in range(self.count)), initial=0))

    @property
    def count(self) -> int:
        """Number of shares."""
        return max(self.share) + 1

    def next(self, current: Estimate, first: int, half_width: float) -> int:
        """Number of shares with which the interval is narrow enough if no further image is fooled.

        Args:
            current: the counts after `first` shares.
        """
        population, ones = current.sample.population, current.sample.ones
        for more in range(first + 1, self.count):
            sample = Sample(population, self.drawn[more], ones)
            if replace(current, sample=sample).half_width <= half_width:
                return more
        return self.count


def estimate_steps(
    planned: PlannedRun,
    screened: Generator[Work, Any, Record],
    folder: Path,
    device: torch.device,
    options: Options,
) -> Generator[Work, Any, Record]:
    """Run the screen and the suite on a sample, and save the record of the estimate.

    Args:
        screened: the steps that make the record of the screen.
        folder: the folder of the suite's record.

    Returns:
        The record of the estimate, or that of the suite on all images if there is one.
    """
    assert options.estimate
    job, screen = job_of(planned, options, device), (yield from screened)
    own = job_of_estimate(job, options.estimate)
    place = place_of(options.results, own)
    with claim(folder), claim(place), synced(folder), synced(place):
        if not options.fresh and (
            saved := saved_record(folder, job, planned.loaded, planned.images, options)
        ):
            return saved
        if not options.fresh and (saved := saved_record(place, own, planned.loaded, planned.images, options)):
            return saved
        store = FolderStore(folder / PARTIAL, job.key, conditions(device), options.note)
        if options.fresh:
            store.drop()
        sampling = _sampling(planned, screen, job)
        started = _begin(store, sampling)
        if store.resumes:
            options.note(f"resuming from {store.folder}")
        current = Estimate(job.n, 0, Sample(sampling.drawn[sampling.count], 0, 0))
        first = sampling.certain
        while True:
            first = sampling.next(current, first, options.estimate)
            run = run_of(planned, job, device, options, store=store)
            run.deal = Deal(sampling.share, first)
            run.recipe = order_of(planned, job, device, options)
            outcome: Outcome = yield run
            if outcome.of_draws > 1:
                raise UsageError(f"{planned.loaded.name} turns out to be randomized: remove --estimate")
            outcome = _with_order(outcome, sampling, first)
            current = Estimate.of(outcome.fooled_by, sampling.order)
            if current.half_width <= options.estimate or first == sampling.count:
                break
        record = make_record(
            own,
            outcome,
            command=options.command or "robench.run",
            started=datetime.fromisoformat(started),
            finished=datetime.now(UTC),
            seconds=sum(cost.seconds for cost in outcome.attacks),
            device=device,
            extra={estimate.FIELD: {"screen": screen.key, **current.figures()}},
        )
        warning = current.warning(job.suite.name, SCREEN)
        record = replace(record, robust_accuracy=current.accuracy, health=(warning, *record.health))
        return write_record(place, record, outcome, planned.images, planned.protocol.threat)


def _sampling(planned: PlannedRun, screen: Record, job: Job) -> Sampling:
    rows = read_samples(screen.folder or Path()).to_pydict()
    survives = [by == "" for by in rows["fooled_by"]]
    return Sampling.of(survives, rows["id"], job.seed, job.batch_size)


def _begin(store: FolderStore, sampling: Sampling) -> str:
    """Begin the run of the suite, or continue an earlier estimate of it.

    Raises:
        ResourceError: if there are results of a run on all images.
    """
    if store.resumes and store.deal() != sampling.share:
        raise ResourceError(
            f"{store.folder} is the beginning of a run on all images: finish it without --estimate, or start over with "
            "--fresh"
        )
    if store.deal() != sampling.share:
        store.drop()
    return store.begin(datetime.now(UTC).isoformat(), deal=sampling.share)


def _with_order(outcome: Outcome, sampling: Sampling, first: int) -> Outcome:
    """The outcome of the first shares, in which the other samples are marked as not attacked."""
    left = [share >= first for share in sampling.share]
    fooled_by = [NOT_ATTACKED if out else by for out, by in zip(left, outcome.fooled_by, strict=True)]
    return replace(
        outcome,
        fooled_by=fooled_by,
        robust=outcome.robust & ~torch.tensor(left),
        order=torch.tensor(sampling.order),
    )
