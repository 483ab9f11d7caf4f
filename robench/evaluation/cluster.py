"""Runs of shares on a Ray cluster: `robench run --engine ray`.

A worker builds the run from names, checks by the job's key that its files are the same, and runs the shares that the
driver assigns to it. Only names are sent to workers and only results are returned. The driver alone writes files, each
share when its result arrives, so workers need no shared disk, and if a worker or the driver dies, only the running
shares are lost. A share whose worker dies is assigned again; a share with a user's mistake is not.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from robench.core.errors import CheckFailed, ResourceError, RobenchError, one_line, portable
from robench.core.formatting import install
from robench.engine.run_queue import ATTEMPTS, RunQueue, Share
from robench.engine.shares import share_count
from robench.engine.spawned import Builder, Task
from robench.engine.work import Work
from robench.engine.workers import Processes, single_thread

# Seconds to wait for a connection to the head, before workers are started again, and until a line says what is missing.
_PATIENCE = 10.0
# Number of times that workers are started if not one of them starts.
_STARTS = 3
# Seconds between two polls of the cluster.
_POLL = 1.0


@dataclass(frozen=True)
class RayCluster:
    """An executor (`robench.engine.run_queue.Executor`) whose processes are actors of a Ray cluster.

    Attributes:
        address: address of the cluster's head; None for RAY_ADDRESS or a cluster on this machine.
        most: maximum number of actors; 0 for as many as the cluster has resources for.
        gpus: number of GPUs per actor, which may be a fraction.
    """

    address: str | None
    most: int
    gpus: float
    workers: int = 0

    def shares_of(self, samples: int, batch_size: int) -> int:
        """Number of shares of a new run."""
        return share_count(samples, batch_size)

    def run(self, queue: RunQueue) -> Iterator[None]:
        """Run all shares.

        Raises:
            ResourceError: if there is no cluster.
            Exception: the exception of a worker, except for errors of single records, which the queue takes.
        """
        share = queue.take()
        if share is not None:
            queue.waiting.appendleft(share)
        if share is None or (queue.total == 1 and share.entry.count == 1):
            # Not worth a cluster.
            yield from Processes().run(queue)
            return
        with _connected(self.address) as ray:
            actors = _Actors(ray, self, queue)
            try:
                yield from actors.run()
            finally:
                actors.end()


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise ResourceError(f"--engine ray needs Ray: {install('ray')}") from None
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
    except Exception as error:
        # Ray raises a plain Exception if its processes take longer than 30 seconds to start.
        place = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
        raise ResourceError(f"{place}: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Actors:
    """Gives shares to idle actors until all are finished."""

    def __init__(self, ray: Any, cluster: RayCluster, queue: RunQueue):
        self.ray, self.cluster, self.queue = ray, cluster, queue
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.running: dict[Any, tuple[Any, Share]] = {}
        # The clean passes of open runs, in the cluster's memory. A job may have several runs.
        self.clean: dict[Work | None, Any] = {}
        # Number of times that workers did not start, and whether one ever did.
        self.failed_starts, self.is_proven = 0, False
        self.hire_at = 0.0
        self.say_at = time.monotonic() + _PATIENCE
        self.actor = ray.remote(num_cpus=1, num_gpus=cluster.gpus, max_restarts=0)(Worker)

    def run(self) -> Iterator[None]:
        """Run all shares in the queue."""
        while True:
            # As many shares wait as there are actors, so that none waits for the clean pass of the next run.
            while len(self.queue.waiting) < max(self._count, 1) and self.queue.start():
                pass
            # Shares of runs that have failed may still be running.
            if not self.queue.open:
                break
            self._hire()
            self._note_absence()
            while self.idle and self.queue.waiting:
                self._begin(self.queue.waiting.popleft())
            for reference in self._ready():
                if reference in self.starting:
                    self._started(reference)
                else:
                    self._take(reference)
            yield
        yield

    @property
    def _count(self) -> int:
        return len(self.starting) + len(self.idle) + len(self.running)

    def _hire(self) -> None:
        """Start as many workers as the cluster has resources for, including machines that have joined later."""
        if time.monotonic() < self.hire_at:
            return
        resources = self.ray.cluster_resources()
        capacity = int(resources.get("CPU", 0))
        if self.cluster.gpus:
            capacity = min(capacity, int(resources.get("GPU", 0) / self.cluster.gpus))
        needed = min(self.cluster.most or capacity, capacity, len(self.queue.waiting) + len(self.running))
        for _ in range(needed - self._count):
            actor = self.actor.remote()
            self.starting[actor.ready.remote()] = actor

    def _begin(self, share: Share) -> None:
        entry, run = share.entry, share.run
        if entry.run not in self.clean:
            open_runs = {other.run for other in self.queue.open.values()}
            self.clean = {kept: clean for kept, clean in self.clean.items() if kept in open_runs}
            self.clean[entry.run] = self.ray.put(run.clean)
        recipe = run.recipe
        assert recipe is not None
        task = Task(recipe.key, recipe, share.number, entry.count)
        actor = self.idle.pop()
        self.running[actor.run.remote(task, self.clean[entry.run])] = actor, share

    def _ready(self) -> list[Any]:
        references = [*self.starting, *self.running]
        if not references:
            time.sleep(_POLL)
            return []
        return self.ray.wait(references, num_returns=1, timeout=_POLL)[0]

    def _started(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            # It has no share to lose.
            self._note_failed_start(error)
        else:
            self.idle.append(actor)
            self.is_proven = True

    def _note_failed_start(self, error: Exception) -> None:
        """Wait before workers are started again.

        Raises:
            ResourceError: if no worker starts in several attempts.
        """
        now, reason = time.monotonic(), one_line(error, 300)
        # Workers that were started together count once.
        if now >= self.hire_at:
            self.hire_at = now + _PATIENCE
            self.failed_starts += 1
            if self.failed_starts == 1:
                self.queue.note(f"a worker does not start ({reason}): trying again")
        if self.failed_starts >= _STARTS and not self.is_proven and not self.starting:
            raise ResourceError(
                f"no worker starts on the cluster: install the same release of robench on its machines ({reason})"
            ) from error

    def _note_absence(self) -> None:
        """Say once what the cluster has if no worker is there for a while."""
        now = time.monotonic()
        if self.idle or self.running:
            self.say_at = now + _PATIENCE
        elif now >= self.say_at:
            self.say_at = math.inf
            has = self.ray.cluster_resources()
            self.queue.note(
                f"waiting for a worker, which needs 1 CPU and {self.cluster.gpus:g} GPUs: the cluster has "
                f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, used or not"
            )

    def _take(self, reference: Any) -> None:
        """Take the result of a share, or give the share back if its worker has died."""
        actor, share = self.running.pop(reference)
        entry = share.entry
        try:
            kind, content = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(actor)
            reason = type(error).__name__
            self.queue.lose(share, reason, _lost(share, reason))
            return
        self.idle.append(actor)
        if kind == "failed":
            if not isinstance(content, RobenchError):
                raise content
            self.queue.fail(share, content)
        elif entry.is_open:
            share.run.save_result(content)
            self.queue.show(share, share.run.current_progress())
            self.queue.finish(share, content)

    def end(self) -> None:
        """End all workers."""
        for actor in [*self.starting.values(), *self.idle, *(actor for actor, _ in self.running.values())]:
            self.ray.kill(actor)


def _lost(share: Share, reason: str) -> RobenchError:
    return CheckFailed(
        f"share {share.number + 1} of {share.entry.count} lost its worker {ATTEMPTS} times ({reason}); the others are "
        "saved: repeat the command to run what is missing"
    )


class Worker:
    """An actor that runs shares of all runs of a grid."""

    def __init__(self) -> None:
        self.builder = Builder()

    def ready(self) -> str:
        """The machine's name, once the worker has started."""
        return socket.gethostname()

    def run(self, task: Task, clean: Any) -> tuple[str, Any]:
        """Run one share and return ("done", its result) or ("failed", the error)."""
        try:
            share = self.builder.share(task, clean)
            with single_thread(share.device):
                return "done", share.attack()
        except Exception as error:
            return "failed", portable(error)
