"""`robench.run`: run suites on defenses and save records."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robench.catalog import Protocol, Suite
from robench.core.errors import UsageError
from robench.core.io import claim
from robench.core.specs import split
from robench.core.torch_state import standard_state
from robench.corruption.cache import Cache
from robench.corruption.make import enlargement
from robench.corruption.suite import cells
from robench.engine import corruption_run
from robench.engine.checkpoint import FolderStore
from robench.engine.device import choose_device
from robench.engine.knowledge import Attacker
from robench.engine.outcome import Outcome
from robench.engine.setup import Setup
from robench.engine.workers import Executor, Processes, choose_workers
from robench.evaluation.cluster import RayCluster, order_of
from robench.evaluation.jobs import job_of, run_of
from robench.evaluation.options import Options, default_results
from robench.evaluation.planning import PlannedRun, plan
from robench.evaluation.progress import Callback, shown
from robench.evaluation.protocol import choose_protocol, find_suites
from robench.evaluation.reuse import retire, saved_record
from robench.records import corruption
from robench.records.provenance import conditions
from robench.records.record import Job, Record
from robench.records.store import PARTIAL, make_record, record_folder, write_record

# Seconds that a share waits for others that start at the same time.
_PATIENCE = 60.0

__all__ = ["Options", "default_results", "run", "run_all"]


@standard_state()
def run(
    defense: str | Sequence[str],
    attack: str | Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    dataset: str | None = None,
    threat: str | None = None,
    samples: int | None = None,
    knowledge: str | None = None,
    progress: bool | Callback | None = None,
    **options: Any,
) -> Record:
    """Run one suite on one defense and return its record. Re-running resumes, or returns the saved record.

    Args:
        defense: a card, a family, the path of a card or a builder's spec.
        attack: a suite or specs; None for the suite of the protocol.
        protocol: name or path; None to use `dataset`, `threat` and `samples`, or the default protocol.
        dataset, threat, samples: data set, threat model and number of images, instead of a protocol's.
        knowledge: attacker knowledge; None for that of the protocol.
        progress: True shows a progress bar on stderr; a function is called after every query.
        **options: the fields of `Options`.

    Raises:
        RobenchError: for every error that a user can fix.
    """
    suites = find_suites(_names(attack)) if attack else None
    chosen_protocol = choose_protocol(protocol, dataset, threat, samples, suites)
    levels = [knowledge] if knowledge else None
    if options.get("share"):
        raise UsageError("robench.run returns a record: use robench.evaluation.run.run_all to run shares")
    with shown(progress) as update:
        run_options = Options(progress=update, **options)
        records = list(run_all(_names(defense), suites, chosen_protocol, levels, run_options))
    if len(records) != 1:
        raise UsageError(
            f"robench.run needs one defense and one attack, but this made {len(records)} records"
        )
    return records[0]


def run_all(
    defenses: Sequence[str],
    suites: Sequence[str | Suite] | None,
    protocol: Protocol,
    knowledge: Sequence[str] | None,
    options: Options,
) -> Iterator[Record]:
    """Run every combination and yield the records. All names are checked before the first network call."""
    for planned in plan(defenses, suites, protocol, knowledge, options):
        if planned.note:
            options.note(planned.note)
        if record := (_share if options.share else _record)(planned, options):
            yield record


def _record(planned: PlannedRun, options: Options) -> Record:
    """Return the saved record of a run, or run it and save its record."""
    device = choose_device(options.device)
    job = job_of(planned, options, device)
    folder = _folder(job, options)
    with claim(folder):
        if not options.fresh and (
            saved := saved_record(folder, job, planned.loaded, planned.images, options)
        ):
            return saved
        store = FolderStore(folder / PARTIAL, job.key, conditions(device), options.note)
        store.wait_for_shares()
        if options.fresh:
            store.drop()
        # Written before the first query, so that an error of the folder is reported immediately.
        started = store.begin(datetime.now(UTC).isoformat())
        if store.resumes:
            options.note(f"resuming from {store.folder}")
        start_time = time.monotonic()
        evaluate = _attack if planned.attacker else _corrupt
        finished = evaluate(planned, job, store, device, options)
        record = make_record(
            job,
            finished.outcome,
            command=options.command or "robench.run",
            started=datetime.fromisoformat(started),
            finished=datetime.now(UTC),
            seconds=max(finished.seconds, time.monotonic() - start_time),
            device=device,
            extra=finished.extra,
        )
        record = finished.write(folder, record)
        retire(folder, job, options)
        store.drop()
        return record


def _share(planned: PlannedRun, options: Options) -> Record | None:
    """Run one share of a run. Repeating the run without `share` makes the record.

    Returns:
        The saved record, if there is one.
    """
    assert options.share
    (number, count), device = options.share, choose_device(options.device)
    if options.fresh:
        raise UsageError("--share cannot start over: remove earlier shares with robench results prune")
    if planned.attacker is None:
        raise UsageError(f"{planned.suite.name} cannot run in shares: remove --share")
    job = job_of(planned, options, device)
    if count > job.n:
        raise UsageError(f"{count} shares of {job.n} images: expected at most one share per image")
    folder = _folder(job, options)
    # Another share may hold the lock while it starts.
    with claim(folder, patience=_PATIENCE):
        if saved := saved_record(folder, job, planned.loaded, planned.images, options):
            return saved
        store = FolderStore(folder / PARTIAL, job.key, conditions(device), options.note)
        store.begin(datetime.now(UTC).isoformat(), shares=count)
    run = run_of(planned, job, device, options, store=store)
    run.play_share(number, count)
    finished = store.finished(count, len(run.attacks))
    end = "; repeat the command without --share to write the record" if finished == count else ""
    subject = f"{job.defense.name}, {job.suite.name}"
    options.note(f"share {number + 1}/{count} of {subject}: finished, {finished} of {count} so far{end}")
    return None


def _folder(job: Job, options: Options) -> Path:
    return record_folder(
        options.results, job.protocol, job.defense.name, job.suite.name, job.knowledge, options.seed
    )


@dataclass(frozen=True)
class _Finished:
    """A finished run: its outcome, additional fields of the record, its duration and a function that saves it."""

    outcome: Outcome
    extra: dict[str, Any] | None
    seconds: float
    write: Callable[[Path, Record], Record]


def _attack(
    planned: PlannedRun, job: Job, store: FolderStore, device: torch.device, options: Options
) -> _Finished:
    loaded, images, threat = planned.loaded, planned.images, planned.protocol.threat
    assert threat is not None
    outcome = run_of(
        planned, job, device, options, store=store, executor=_executor(planned, job, device, options)
    ).play()
    extra = {"classes": {"counted": len(images.classes), "of": loaded.knows}} if loaded.knows else None
    return _Finished(
        outcome,
        extra,
        sum(cost.seconds for cost in outcome.attacks),
        lambda folder, record: write_record(folder, record, outcome, images, threat),
    )


def _executor(planned: PlannedRun, job: Job, device: torch.device, options: Options) -> Executor:
    """The executor that `options.engine` selects."""
    if options.engine == "local":
        workers = choose_workers(options.workers, device, job.n, planned.loaded.defense, options.note)
        return Processes(workers)
    if options.engine != "ray":
        raise UsageError(f'unknown engine "{options.engine}": expected local or ray')
    gpus = options.gpus_per_worker
    return RayCluster(
        order_of(planned, job, device, options),
        options.address,
        options.workers or 0,
        gpus if gpus is not None else float(device.type == "cuda"),
        job.n,
    )


def _corrupt(
    planned: PlannedRun, job: Job, store: FolderStore, device: torch.device, options: Options
) -> _Finished:
    loaded, images = planned.loaded, planned.images
    scale = enlargement(*images.x.shape[2:])
    if scale > 1:
        options.note(
            f"corruptions need images of at least 32 px: images of {images.name} are enlarged {scale} times, corrupted "
            "and reduced again, which weakens noise and blur"
        )
    answers = corruption_run.play(
        Setup.of(loaded.defense, Attacker(), job, device),
        images,
        cells(planned.corruptions),
        workers=options.workers,
        cache=Cache(),
        store=store,
        progress=options.progress,
    )
    outcome, extra = corruption.outcome(job, images, answers)
    return _Finished(
        outcome,
        extra,
        float(answers.seconds.sum()),
        lambda folder, record: corruption.write(folder, record, outcome, images, answers),
    )


def _names(value: str | Sequence[str]) -> list[str]:
    return split(value) if isinstance(value, str) else list(value)
