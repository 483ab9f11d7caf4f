"""`robench.run`: run suites on defenses and save records."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from robench.catalog import Protocol, Suite
from robench.core.errors import RobenchError, UsageError
from robench.core.specs import split
from robench.core.torch_state import standard_state
from robench.engine.device import choose_device
from robench.engine.progress import Progress
from robench.engine.run_queue import Executor, Job, RunQueue, run_queue
from robench.engine.spawned import refuse_unguarded
from robench.engine.work import Work
from robench.engine.workers import (
    MIN_SAMPLES,
    Processes,
    check_workers,
    choose_workers,
    start_method,
    worker_devices,
)
from robench.evaluation.cluster import RayCluster
from robench.evaluation.options import Options, default_results
from robench.evaluation.planning import PlannedRun, Sources, plan
from robench.evaluation.progress import Callback, shown
from robench.evaluation.protocol import choose_protocol, find_suites
from robench.evaluation.record_jobs import failed_job, record_job
from robench.records.record import Record
from robench.records.remote import local_copy, push_if_due, remote_of

R = TypeVar("R")

__all__ = ["Options", "Request", "default_results", "run", "run_all", "run_grid"]


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
    """Run one suite on one defense and return its record. A repeated call resumes, or returns the saved record.

    Args:
        defense: name of a defense, as in `load_defense`.
        attack: a suite, or attacks as in `robench.attack`; None for the suite of the protocol.
        protocol: name or path of a protocol; None for "digits-linf". It may not be combined with `dataset`.
        dataset: a dataset, as in `load_dataset`; any other than digits needs a `threat`, unless the suite sets it.
        threat: threat model, as in `robench.attack`; None for that of the protocol.
        samples: number of images, the first of the split; None for that of the protocol.
        knowledge: attacker knowledge, such as "bpda" or "transfer:NAME"; None for that of the protocol.
        progress: as in `robench.attack`.
        **options: the fields of `robench.evaluation.options.Options`, such as `results`, `seed` and `device`.

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
    """Run every combination and yield the records. All names are checked before the first network call.

    The runs share one queue: workers that have no work left for one record start on the next one. If a record fails,
    its error is passed to `options.note`, and the other records are still made.

    Raises:
        RobenchError: at once if a name is unknown, and at the end if records have failed.
    """
    for _, record in run_grid([Request(defenses, suites, protocol, knowledge)], options):
        yield record


@dataclass(frozen=True)
class Request:
    """Runs of every combination of defenses, suites and levels of attacker knowledge; see `run_all`."""

    defenses: Sequence[str]
    suites: Sequence[str | Suite] | None
    protocol: Protocol
    knowledge: Sequence[str] | None = None


def run_grid(requests: Sequence[Request], options: Options) -> Iterator[tuple[int, Record]]:
    """Run all requests in one queue, and yield each record with the index of its request; see `run_all`.

    The first request is planned before the first network call, and the others when workers need their runs.
    """
    if not requests:
        return
    refuse_unguarded()
    options, devices = _devices(_in_copy(options))
    device = choose_device(options.device)
    sources = Sources()

    def planned(request: Request) -> list[PlannedRun]:
        return list(
            plan(request.defenses, request.suites, request.protocol, request.knowledge, options, sources)
        )

    first = planned(requests[0])
    total = len(first) * len(requests)
    executor = _executor(first, total, devices, device, options)

    def jobs() -> Iterator[Job[tuple[int, Record | None]]]:
        for index, request in enumerate(requests):
            try:
                runs = first if index == 0 else planned(request)
            except RobenchError as error:
                names = [name if isinstance(name, str) else name.name for name in request.suites or ()]
                yield failed_job(error, f"{', '.join(request.defenses)} under {', '.join(names)}")
                continue
            while runs:
                yield _indexed(index, record_job(runs.pop(0), options, device, in_grid=total > 1))

    queue = RunQueue(jobs(), executor, total, options.progress, options.note)
    for index, record in run_queue(queue):
        if record is not None:
            yield index, record


def _in_copy(options: Options) -> Options:
    """The options with the folder on this machine that stands for remote results, whose URL is shown instead."""
    folder = local_copy(options.results)
    remote = remote_of(folder)
    if remote is None:
        return options

    def progress(current: Progress) -> None:
        push_if_due()
        if options.progress:
            options.progress(current)

    def note(text: str) -> None:
        options.note(text.replace(str(remote.local), remote.url))

    return replace(options, results=folder, progress=progress, note=note)


def _indexed(index: int, job: Job[R]) -> Job[tuple[int, R]]:
    def steps() -> Generator[Work, Any, tuple[int, R]]:
        return index, (yield from job.steps)

    return Job(steps(), job.title, job.key)


def _devices(options: Options) -> tuple[Options, tuple[str, ...]]:
    """The options with the device of this process, and the device of each process that is spawned, if any."""
    check_workers(options.workers)
    first, *others = options.device.split(",")
    device = choose_device(first)
    if others and (device.type == "cpu" or options.engine != "local"):
        raise UsageError(
            "--engine ray and --device cpu take one device name; --workers sets the number of processes"
        )
    if device.type == "cpu" or options.engine != "local":
        return options, ()
    count = torch.get_device_module(device.type).device_count()
    name = device.type if options.device == "auto" else options.device
    devices = worker_devices(name, options.workers, count)
    return replace(options, device=devices[0]), tuple(devices) if len(devices) > 1 else ()


def _executor(
    first: Sequence[PlannedRun], total: int, devices: tuple[str, ...], device: torch.device, options: Options
) -> Executor:
    """The executor that `options.engine` selects."""
    if options.engine == "ray":
        gpus = options.gpus_per_worker
        default = float(device.type == "cuda")
        return RayCluster(options.address, options.workers or 0, default if gpus is None else gpus)
    if options.engine != "local":
        raise UsageError(f'unknown engine "{options.engine}": expected local or ray')
    # Corrupted images are made by other processes, and classified in this one.
    if options.share or not first or (total == 1 and first[0].attacker is None):
        return Processes()
    if devices:
        return Processes(len(devices), devices=devices)
    if options.compile:
        # A compiled network belongs to one process.
        return Processes()
    if total > 1:
        workers = options.workers or torch.get_num_threads()
        return Processes(workers if start_method(device) else 1, least=1 if options.workers else MIN_SAMPLES)
    return Processes(choose_workers(options.workers, device, len(first[0].images), note=options.note))


def _names(value: str | Sequence[str]) -> list[str]:
    return split(value) if isinstance(value, str) else list(value)
