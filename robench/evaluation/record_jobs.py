"""Jobs for the queue of runs: each makes one record, or runs one share of it."""

import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robench.catalog import find_suite
from robench.core.errors import UsageError
from robench.core.io import claim
from robench.corruption.make import enlargement
from robench.engine.checkpoint import FolderStore
from robench.engine.run_queue import Job as QueuedJob
from robench.engine.shares import most_shares
from robench.engine.work import Work
from robench.evaluation import certify_first
from robench.evaluation import estimate as estimates
from robench.evaluation.certify_first import Proven
from robench.evaluation.jobs import job_of, run_of, with_deal, work_of
from robench.evaluation.options import Options
from robench.evaluation.orders import order_of
from robench.evaluation.planning import PlannedRun
from robench.evaluation.reuse import retire, saved_record
from robench.records import corruption
from robench.records.provenance import conditions
from robench.records.record import Job, Record
from robench.records.remote import synced
from robench.records.store import PARTIAL, make_record, place_of, supersede, write_record

# Seconds that a share waits for others that start at the same time.
_PATIENCE = 60.0


def record_job(
    planned: PlannedRun, options: Options, device: torch.device, in_grid: bool = False
) -> QueuedJob[Record | None]:
    """The job that makes the record of a planned run, or runs the share of it that `options.share` names.

    Args:
        in_grid: whether other jobs run beside it, so its lines for the user need its title.
    """
    job = job_of(planned, options, device)
    folder = place_of(options.results, job)
    knowledge = "" if job.knowledge == "full" else f" @{job.knowledge}"
    threat = "" if planned.attacker is None else f", {job.threat}"
    title = f"{job.defense.name} under {job.suite.name}{knowledge}{threat}"
    of_run = options
    if in_grid:
        of_run = replace(options, note=lambda text: options.note(f"{title}: {text}"))
    if options.estimate is not None:
        estimates.check(planned, options.estimate, options.certify_first)
        screened = replace(planned, suite=find_suite(estimates.SCREEN))
        screen_job = job_of(screened, options, device)
        screen = place_of(options.results, screen_job)
        of_screen = _record_steps(screened, screen_job, screen, device, of_run, in_grid)
        steps = estimates.estimate_steps(planned, of_screen, folder, device, of_run)
        # Estimates of several suites share the record of the screen.
        return QueuedJob(steps, f"{title} (estimate)", screen)
    if options.share:
        steps = _share_steps(planned, job, folder, device, options)
    else:
        steps = _record_steps(planned, job, folder, device, of_run, in_grid)
    return QueuedJob(steps, title, folder)


def failed_job(error: Exception, title: str) -> QueuedJob[Any]:
    """A job that fails with an error, in place of one that cannot be planned."""

    def steps() -> Generator[Work, Any, Any]:
        raise error
        yield

    return QueuedJob(steps(), title)


def _record_steps(
    planned: PlannedRun, job: Job, folder: Path, device: torch.device, options: Options, in_grid: bool
) -> Generator[Work, Any, Record]:
    """Return the saved record of a run, or yield the run, receive its outcome and save its record.

    Args:
        in_grid: whether the run shares its workers with others, so the time until its end is not its own.
    """
    # A folder that cannot be written cannot be locked either, but its record can be read.
    fixed = folder.is_dir() and not os.access(folder, os.W_OK)
    if fixed and not options.fresh and (saved := _saved(planned, job, folder, options)):
        return saved
    with claim(folder), synced(folder):
        if not options.fresh and (saved := _saved(planned, job, folder, options)):
            return saved
        # A state with proven images is resumed with the same ones.
        settings = f"{job.key} {options.certify_first}" if options.certify_first else job.key
        store = FolderStore(folder / PARTIAL, settings, conditions(device), options.note)
        store.wait_for_shares()
        if options.fresh:
            store.drop()
        # Written before the first query, so that an error of the folder is reported immediately.
        started = store.begin(datetime.now(UTC).isoformat())
        if store.resumes:
            options.note(f"resuming from {store.folder}")
        if planned.attacker is None:
            _note_enlargement(planned, options.note)
        start_time = time.monotonic()
        proven = certify_first.prove(planned, job, folder, device, options) if options.certify_first else None
        rows = None if proven is None else proven.rows
        work = with_deal(work_of(planned, job, device, options, rows, store=store), store.deal())
        work.recipe = order_of(planned, job, device, options, rows)
        outcome = yield work
        finished = (
            _attacked(planned, outcome, proven) if planned.attacker else _corrupted(planned, job, outcome)
        )
        record = make_record(
            job,
            finished.outcome,
            command=options.command or "robench.run",
            started=datetime.fromisoformat(started),
            finished=datetime.now(UTC),
            seconds=finished.seconds if in_grid else max(finished.seconds, time.monotonic() - start_time),
            device=device,
            extra=finished.extra,
        )
        record = finished.write(folder, record)
        retire(folder, job, options)
        # Replaces the estimate, if there is one.
        supersede(place_of(options.results, estimates.job_of_estimate(job, 0.0)))
        store.drop()
        certify_first.drop(folder)
        return record


def _saved(planned: PlannedRun, job: Job, folder: Path, options: Options) -> Record | None:
    return saved_record(folder, job, planned.loaded, planned.images, options)


def _share_steps(
    planned: PlannedRun, job: Job, folder: Path, device: torch.device, options: Options
) -> Generator[Work, Any, Record | None]:
    """Run one share of a run. Repeating the run without `share` makes the record.

    Returns:
        The saved record, if there is one.
    """
    assert options.share
    _, count = options.share
    if options.fresh:
        raise UsageError("--share cannot start over: remove earlier shares with robench results prune")
    if planned.attacker is None:
        raise UsageError(f"{planned.suite.name} cannot run in shares: remove --share")
    if options.certify_first:
        raise UsageError("--share runs without --certify-first: give one of them")
    if count > (most := most_shares(planned.images.ids, [attack for _, attack in planned.attacks])):
        reason = "" if most == job.n else ", because the attacks keep groups of images together"
        raise UsageError(f"{count} shares of {job.n} images: expected at most {most}{reason}")
    with synced(folder):
        return _run_share(planned, job, folder, device, options)
    yield


def _run_share(
    planned: PlannedRun, job: Job, folder: Path, device: torch.device, options: Options
) -> Record | None:
    assert options.share
    number, count = options.share
    # Another share may hold the lock while it starts.
    with claim(folder, patience=_PATIENCE):
        if saved := _saved(planned, job, folder, options):
            return saved
        store = FolderStore(folder / PARTIAL, job.key, conditions(device), options.note)
        store.begin(datetime.now(UTC).isoformat(), shares=count)
    run = run_of(planned, job, device, options, store=store)
    run.attack_share(number, count)
    finished = store.finished(count, len(run.attacks))
    end = "; repeat the command without --share to write the record" if finished == count else ""
    subject = f"{job.defense.name}, {job.suite.name}"
    options.note(f"share {number + 1}/{count} of {subject}: finished, {finished} of {count} so far{end}")
    return None


@dataclass(frozen=True)
class _Finished:
    """A finished run: its outcome, additional fields of the record, its duration and a function that saves it."""

    outcome: Any
    extra: dict[str, Any] | None
    seconds: float
    write: Callable[[Path, Record], Record]


def _attacked(planned: PlannedRun, outcome: Any, proven: Proven | None) -> _Finished:
    loaded, images, threat = planned.loaded, planned.images, planned.protocol.threat
    extra: dict[str, Any] = {}
    if loaded.knows:
        extra["classes"] = {"counted": len(images.classes), "of": loaded.knows}
    if proven is not None:
        extra |= proven.extra
        outcome = replace(outcome, proven_by=proven.names)
    return _Finished(
        outcome,
        extra,
        sum(cost.seconds for cost in outcome.attacks),
        lambda folder, record: write_record(folder, record, outcome, images, threat),
    )


def _corrupted(planned: PlannedRun, job: Job, answers: Any) -> _Finished:
    images = planned.images
    outcome, extra = corruption.outcome(job, images, answers)
    return _Finished(
        outcome,
        extra,
        float(answers.seconds.sum()),
        lambda folder, record: corruption.write(folder, record, outcome, images, answers),
    )


def _note_enlargement(planned: PlannedRun, note: Callable[[str], None]) -> None:
    images = planned.images
    scale = enlargement(*images.x.shape[2:])
    if scale > 1:
        note(
            f"corruptions need images of at least 32 px: images of {images.name} are enlarged {scale} times, corrupted "
            "and reduced again, which weakens noise and blur"
        )
