"""Processes that run the shares of runs, because a small network does not use several cores, nor several GPUs.

On a CPU under Linux each share runs in a forked process, which inherits models and images, so any defense works.
Elsewhere, and with several GPUs, processes are spawned once and build each run from its recipe
(`robench.engine.spawned`). A sample's result depends only on the sample, so it is the same in every process. Each share
has its own store, from which a killed run resumes. The processes end with the process that started them, even if it is
killed.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from robench.core.errors import RobenchError, UsageError, ended, portable
from robench.engine.run_queue import RunQueue, Share
from robench.engine.shares import share_count
from robench.engine.work import Work

# Minimum number of samples per process.
MIN_SAMPLES = 16


def start_method(device: torch.device, model: Any = None) -> str:
    """The start method of processes that run shares on this device: "fork" or "spawn"; "" if not supported.

    Processes are not supported inside the processes of a pool, on the only device that is not a CPU, or if they must be
    spawned and the model cannot be pickled.

    Args:
        model: a model that spawned processes receive; None if they build theirs from a recipe.
    """
    if multiprocessing.current_process().daemon or device.type != "cpu" or torch.cuda.is_available():
        return ""
    # macOS supports fork, but its system libraries do not.
    if sys.platform != "darwin" and hasattr(os, "fork"):
        return "fork"
    try:
        pickle.dumps(model)
    except Exception:
        return ""
    return "spawn"


def choose_workers(
    workers: int | None,
    device: torch.device,
    samples: int,
    model: Any = None,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """The number of processes that share a run.

    Args:
        workers: maximum number; None for one per torch thread, if there are enough samples.
        device: device of the run.
        samples: number of samples of the run.
        model: the model that spawned processes receive; None if they build theirs from a recipe.
        note: called with one line if fewer processes than requested share the run.

    Returns:
        The number of processes; 1 if they are not supported, see `start_method`.

    Raises:
        UsageError: if `workers` is less than 1.
    """
    check_workers(workers)
    if workers is None:
        workers = max(1, min(torch.get_num_threads(), samples // MIN_SAMPLES))
    if workers > 1 and not start_method(device, model):
        if device.type == "cpu" and not torch.cuda.is_available():
            note("running in one process: this system cannot fork, and the model cannot be pickled")
        return 1
    return min(workers, samples)


def may_fork_unasked(device: torch.device) -> bool:
    """Whether a function may share its work with forked processes although its caller did not ask for them.

    Not in a child process, which may be one of many; in a notebook; or beside other threads, whose locks a forked
    process inherits and never releases. Spawned processes would import the caller's script again.
    """
    return (
        start_method(device) == "fork"
        and multiprocessing.parent_process() is None
        and threading.active_count() == 1
        and "ipykernel" not in sys.modules
    )


def check_workers(workers: int | None) -> None:
    """Raise an error for an impossible number of workers."""
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers={workers!r}: expected a whole number of at least 1, or None")


def worker_devices(device: str, workers: int | None, count: int) -> list[str]:
    """The device of each process, for `--device cuda:0,1` or `--workers N` on a machine with GPUs.

    Args:
        device: "cuda", "cuda:1", or several indices, "cuda:0,1".
        workers: maximum number of processes; None for one per listed device.
        count: number of devices of this machine.

    Raises:
        UsageError: if an index is malformed, listed twice or not on this machine.
    """
    kind, _, listed = device.partition(":")
    if not listed:
        # Without a list, one process uses the current device, and more use the first devices.
        return [device] if workers in (None, 1) else [f"{kind}:{i}" for i in range(min(workers or 1, count))]
    texts = [text.strip() for text in listed.split(",")]
    if not all(text.isdecimal() for text in texts) or len({*map(int, texts)}) < len(texts):
        raise UsageError(f'--device "{device}": expected different indices, such as {kind}:0,1')
    if missing := [text for text in texts if int(text) >= count]:
        raise UsageError(
            f'no device "{kind}:{missing[0]}" here ({count} {kind.upper()} devices found): use --device cpu or auto'
        )
    return [f"{kind}:{int(text)}" for text in texts[:workers]]


@dataclass(frozen=True)
class Processes:
    """Runs shares in processes of this machine, or one after another in this process if others are not supported.

    Attributes:
        workers: number of processes at a time.
        shares: number of shares of a new run; 0 for one per process.
        least: minimum number of samples per share, unless `shares` is given.
        devices: device of each process, to use several; empty for that of the run.
    """

    workers: int = 1
    shares: int = 0
    least: int = 1
    devices: tuple[str, ...] = ()

    def shares_of(self, samples: int, batch_size: int) -> int:
        """Number of shares of a new run."""
        if self.devices:
            return share_count(samples, batch_size)
        return self.shares or max(1, min(self.workers, samples // self.least))

    def run(self, queue: RunQueue) -> Iterator[None]:
        """Run all shares.

        Raises:
            Exception: the exception of a process, except for errors of single records, which the queue takes.
        """
        share = queue.take()
        if share is None:
            yield
            return
        queue.waiting.appendleft(share)
        model = share.run.model if share.run.recipe is None else None
        method = "spawn" if self.devices else start_method(share.run.device, model)
        if method == "" or self.workers == 1:
            yield from _in_turns(queue)
            return
        if method == "spawn":
            from robench.engine.spawned import SpawnedPool

            pool = SpawnedPool(queue, self.workers, self.devices)
        else:
            pool = ForkedPool(queue, self.workers)
        try:
            yield from pool.run()
        finally:
            pool.end()


def _in_turns(queue: RunQueue) -> Iterator[None]:
    while share := queue.take():
        share.run.progress = partial(queue.show, share) if queue.progress else None
        try:
            # The only share of a run may use all threads.
            with single_thread(share.run.device if share.entry.count > 1 else None):
                result = share.run.attack()
        except RobenchError as error:
            queue.fail(share, error)
        else:
            if share.entry.count > 1 or queue.total > 1:
                queue.show(share, share.run.current_progress())
            queue.finish(share, result)
        yield
    yield


@contextmanager
def single_thread(device: torch.device | None) -> Iterator[None]:
    """Use one CPU thread inside the block, as the processes of a pool do, so that the results are bit-identical."""
    threads = torch.get_num_threads()
    if device is not None and device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Pool:
    """Processes that each run one share at a time.

    Attributes:
        running: process and share behind each pipe.
    """

    def __init__(self, queue: RunQueue, workers: int):
        self.queue, self.workers = queue, workers
        self.running: dict[Connection, tuple[Any, Share]] = {}

    def begin(self, share: Share) -> None:
        """Start a share in a process."""
        raise NotImplementedError

    def release(self, pipe: Connection, process: Any) -> None:
        """Take back a process whose share has ended."""
        raise NotImplementedError

    def refusal(self, exitcode: int) -> RobenchError | None:
        """The mistake that a process has ended with; None if it died."""
        return None

    def run(self) -> Iterator[None]:
        """Run all shares in the queue."""
        failure: BaseException | None = None
        while True:
            try:
                while failure is None and len(self.running) < self.workers and (share := self.queue.take()):
                    self.begin(share)
                if not self.running:
                    break
                # The next run is prepared while all processes are busy, so that none waits for it.
                ahead = failure is None and not self.queue.waiting and self.queue.start()
                for pipe in wait(list(self.running), 0 if ahead else None):
                    error = self._receive(pipe)  # type: ignore[arg-type]
                    if error is not None and failure is None:
                        failure = error
                        self._stop()
            except KeyboardInterrupt as interrupt:
                # Each process saves its state; a second interrupt ends the processes immediately.
                if failure is not None:
                    raise
                failure = interrupt
                self._stop()
            if failure is None:
                yield
        if failure is not None:
            raise failure
        yield

    def _receive(self, pipe: Connection) -> BaseException | None:
        """Take a message; an error that concerns all records is returned."""
        process, share = self.running[pipe]
        kind: str
        content: Any
        try:
            kind, content = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join()
            kind, content = "died", f"exit code {process.exitcode}"
        if kind == "progress":
            self.queue.show(share, content)
        elif kind == "note":
            share.run.note(content)
        else:
            del self.running[pipe]
            if kind == "died":
                code = process.exitcode
                refusal = self.refusal(code)
                self.end_process(pipe, process)
                if refusal is not None:
                    return refusal
                self.queue.lose(share, content, ended("a process of the run", code))
            else:
                self.release(pipe, process)
            if kind == "done":
                self.queue.finish(share, content)
            elif kind == "failed":
                if not isinstance(content, RobenchError):
                    return content
                self.queue.fail(share, content)
                self._stop(lambda other: other.entry is share.entry)
        return None

    def _stop(self, concerns: Callable[[Share], bool] = lambda share: True) -> None:
        """Stop running shares, which save their state."""
        for pipe, (_, share) in self.running.items():
            if concerns(share):
                with suppress(OSError):
                    pipe.send_bytes(b"stop")

    def end_process(self, pipe: Connection, process: Any) -> None:
        """End a process."""
        process.kill()
        process.join()
        process.close()
        pipe.close()

    def end(self) -> None:
        """End all processes."""
        for pipe, (process, _) in self.running.items():
            self.end_process(pipe, process)
        self.running.clear()


class ForkedPool(Pool):
    """A process is forked for each share. It inherits all that is loaded, so nothing is imported or sent."""

    def begin(self, share: Share) -> None:
        ours, theirs = multiprocessing.Pipe()
        # The child closes its copies of the other pipes, or the end of other processes would not be detected.
        others = [ours, *self.running]
        process = multiprocessing.get_context("fork").Process(
            target=_serve_share, args=(share.run, theirs, others)
        )
        self.running[ours] = process, share
        with warnings.catch_warnings():
            # Python warns of forks in a process with threads; these are torch's, which the child does not use.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()

    def release(self, pipe: Connection, process: Any) -> None:
        self.end_process(pipe, process)


def _serve_share(run: Work, pipe: Connection, others: list[Connection]) -> None:
    """Run one share; the target of a forked process."""
    for other in others:
        other.close()
    become_worker()
    answer(pipe, lambda: run)


def become_worker() -> None:
    """Prepare a new process for shares."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # An interrupt from the keyboard reaches all processes; the main process asks this one to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def answer(pipe: Connection, share: Callable[[], Work]) -> None:
    """Run a share and send its progress, its lines for the user, and its result or its error."""

    def send(kind: str, content: object) -> None:
        pipe.send_bytes(pickle.dumps((kind, content), protocol=5))

    def progress(current: Any) -> None:
        send("progress", current)
        if pipe.poll():
            raise KeyboardInterrupt

    try:
        run = share()
        run.progress, run.note = progress, lambda text: send("note", text)
        if run.store:
            run.store.note = run.note
        result = run.attack()
        send("progress", run.current_progress())
        send("done", result)
    except KeyboardInterrupt:
        send("stopped", None)
    except Exception as error:
        send("failed", portable(error))


def _end_with_parent() -> None:
    """End this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
