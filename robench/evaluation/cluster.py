"""Runs of shares on a Ray cluster: `robench run --engine ray`.

A worker builds the run from names, checks by the job's key that its files are the same, and runs the shares that the
driver assigns to it. Only names are sent to workers and only results are returned. The driver alone writes files, each
share when its result arrives, so workers need no shared disk, and if a worker or the driver dies, only the running
shares are lost. A share whose worker dies is assigned again; a share with a user's mistake is not.
"""

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.catalog import Protocol, Suite
from robench.core.errors import CheckFailed, ResourceError, UsageError
from robench.core.trust import is_trusting, trusting
from robench.engine.clean_pass import CleanPass
from robench.engine.device import choose_device
from robench.engine.run import Run
from robench.engine.run_state import ShardResult
from robench.engine.workers import Playable, Standings, portable, single_thread
from robench.evaluation.jobs import job_of, run_of
from robench.evaluation.options import Options
from robench.evaluation.planning import PlannedRun, plan
from robench.records.record import Job

# Number of images per share, which does not depend on the number of workers.
SHARE = 64
# Maximum number of attempts at a share whose worker dies.
_ATTEMPTS = 2
# Seconds to wait for a connection to the head.
_PATIENCE = 10.0
# Seconds between two polls of the cluster.
_POLL = 1.0


@dataclass(frozen=True)
class Order:
    """The description of a run from which a worker builds it.

    Attributes:
        defense: name by which the defense was requested.
        suite, protocol, knowledge: suite, protocol and attacker knowledge of the run.
        key: key of the run's job.
        options: options without callbacks.
        folder: folder to which relative paths refer.
        trust: whether names in files are trusted.
    """

    defense: str
    suite: Suite
    protocol: Protocol
    knowledge: str
    key: str
    options: Options
    folder: str
    trust: bool


@dataclass(frozen=True)
class RayCluster:
    """An executor (`robench.engine.workers.Executor`) whose processes are actors of a Ray cluster.

    Attributes:
        order: description of the run.
        address: address of the cluster's head; None for RAY_ADDRESS or a cluster on this machine.
        workers: maximum number of actors; 0 for as many as the cluster has resources for.
        gpus: number of GPUs per actor, which may be a fraction.
        samples: number of samples of the run.
    """

    order: Order
    address: str | None
    workers: int
    gpus: float
    samples: int

    @property
    def shares(self) -> int:
        """Number of shares, which does not depend on the number of workers."""
        return -(-self.samples // SHARE)

    def play(self, run: Playable, shares: list[Tensor]) -> list[ShardResult]:
        """Run all shares and return their results in order.

        Raises:
            CheckFailed: if a share loses its worker twice; the other shares are finished and saved.
            ResourceError: if there is no cluster.
            Exception: the exception of a worker.
        """
        with _connected(self.address) as ray:
            deal = _Deal(ray, self, run, shares)
            try:
                return deal.play()
            finally:
                deal.end()


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise ResourceError("--engine ray needs Ray: pip install 'robench[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        host, _, port = (address or "").rpartition(":")
        if port.isdecimal() and "://" not in host:
            # Ray would retry for minutes.
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError) as error:
        raise ResourceError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Deal:
    """Assigns shares to idle workers until all are finished."""

    def __init__(self, ray: Any, cluster: RayCluster, run: Playable, shares: list[Tensor]):
        self.ray, self.cluster, self.run, self.shares = ray, cluster, run, shares
        self.standings = Standings(run, shares, at_once=0)
        self.waiting: deque[int] = deque()
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.playing: dict[Any, tuple[Any, int]] = {}
        self.losses: Counter[int] = Counter()
        self.lost: dict[int, str] = {}
        self.clean = ray.put(run.clean)
        self.actor = ray.remote(num_cpus=1, num_gpus=cluster.gpus, max_restarts=0)(Worker)

    def play(self) -> list[ShardResult]:
        """Run all shares and return their results in order."""
        results: dict[int, ShardResult] = {}
        for number in range(len(self.shares)):
            share = self.run.share(number, self.shares)
            if result := share.finished():
                results[number] = result
                self.standings.show(number, share.standing())
            else:
                self.waiting.append(number)
        while self.waiting or self.playing:
            self._hire()
            while self.idle and self.waiting:
                number, actor = self.waiting.popleft(), self.idle.pop()
                self.playing[actor.play.remote(self.clean, number, len(self.shares))] = actor, number
            for reference in self._ready():
                if reference in self.starting:
                    self._start(reference)
                elif result := self._take(reference):
                    number, answer = result
                    share = self.run.share(number, self.shares)
                    share.keep(answer)
                    results[number] = answer
                    self.standings.show(number, share.standing())
        if self.lost:
            number, reason = next(iter(self.lost.items()))
            raise CheckFailed(
                f"{len(self.lost)} of {len(self.shares)} shares lost their worker {_ATTEMPTS} times, the first of them "
                f"share {number + 1} ({reason}); the others are saved: repeat the command to play what is missing"
            )
        return [results[number] for number in range(len(self.shares))]

    def _hire(self) -> None:
        """Start as many workers as the cluster has resources for, including machines that have joined later."""
        resources = self.ray.cluster_resources()
        capacity = int(resources.get("CPU", 0))
        if self.cluster.gpus:
            capacity = min(capacity, int(resources.get("GPU", 0) / self.cluster.gpus))
        needed = min(self.cluster.workers or capacity, capacity, len(self.waiting) + len(self.playing))
        for _ in range(needed - len(self.starting) - len(self.idle) - len(self.playing)):
            actor = self.actor.remote(self.cluster.order)
            self.starting[actor.ready.remote()] = actor

    def _ready(self) -> list[Any]:
        references = [*self.starting, *self.playing]
        if not references:
            time.sleep(_POLL)
            return []
        return self.ray.wait(references, num_returns=1, timeout=_POLL)[0]

    def _start(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        # An actor that dies before it is ready has no share to lose.
        with suppress(self.ray.exceptions.RayError):
            self.ray.get(reference)
            self.idle.append(actor)

    def _take(self, reference: Any) -> tuple[int, ShardResult] | None:
        """The number and the result of a finished share; None if its worker has died."""
        actor, number = self.playing.pop(reference)
        try:
            kind, content = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            reason = type(error).__name__
            self.losses[number] += 1
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(actor)
            if self.losses[number] < _ATTEMPTS:
                self.run.note(
                    f"share {number + 1} of {len(self.shares)} lost its worker ({reason}): it starts again"
                )
                self.waiting.append(number)
            else:
                self.lost[number] = reason
            return None
        self.idle.append(actor)
        if kind == "failed":
            raise content
        return number, content

    def end(self) -> None:
        """End all workers."""
        for actor in [*self.starting.values(), *self.idle, *(actor for actor, _ in self.playing.values())]:
            self.ray.kill(actor)


class Worker:
    """An actor that runs shares of one run."""

    def __init__(self, order: Order):
        self.order = order
        self.run: Run | None = None

    def ready(self) -> str:
        """The machine's name, once the worker has started."""
        return socket.gethostname()

    def play(self, clean: CleanPass, number: int, count: int) -> tuple[str, Any]:
        """Run one of `count` shares and return ("done", its result) or ("failed", the error)."""
        try:
            with trusting() if self.order.trust else nullcontext():
                self.run = self.run or _rebuilt(self.order)
                with self.run.prepared(clean), single_thread(self.run.device):
                    return "done", self.run.share(number, self.run.split(count)).attack()
        except Exception as error:
            return "failed", portable(error)


def order_of(planned: PlannedRun, job: Job, device: torch.device, options: Options) -> Order:
    """The order of a planned run."""
    plain = replace(
        options,
        batch_size=job.batch_size,
        precision=job.precision,
        device=device.type,
        progress=None,
        note=_ignore,
        command="",
    )
    return Order(
        planned.name,
        planned.suite,
        planned.protocol,
        planned.knowledge,
        job.key,
        plain,
        str(Path.cwd()),
        is_trusting(),
    )


def _rebuilt(order: Order) -> Run:
    if Path(order.folder).is_dir():
        os.chdir(order.folder)
    device = choose_device(order.options.device)
    planned = plan([order.defense], [order.suite], order.protocol, [order.knowledge], order.options)
    for candidate in planned:
        job = job_of(candidate, order.options, device)
        if job.key == order.key:
            return run_of(candidate, job, device, order.options)
    raise UsageError(
        f"{order.defense} or the images differ between {socket.gethostname()} and the machine that started the run: "
        "install the same release, checkpoint and data on both"
    )


def _ignore(text: str) -> None:
    pass
