"""Spawned processes that run shares: one per GPU of this machine, or where processes cannot be forked.

They live as long as the grid. Each builds a run from its recipe when it gets the first share of it, so a defense that
several records use is loaded once per process. Only recipes, the results of the clean pass and the results of shares
are sent, which are plain data. A model that a program passes to `robench.attack` has no recipe, so its run is pickled.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from robench.core.errors import RobenchError, UsageError
from robench.engine.checkpoint import Store
from robench.engine.run_queue import Entry, RunQueue, Share
from robench.engine.work import Recipe, Work
from robench.engine.workers import Pool, answer, become_worker

# Exit code of a process that would run the script of its caller again.
_UNGUARDED = 86


def refuse_unguarded() -> None:
    """End this process if it is a spawned one that imports its caller's script, which starts the same run again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_UNGUARDED)


@dataclass(frozen=True)
class Task:
    """One share of a run, as it is sent to a process.

    Attributes:
        key: identifies the run.
        recipe: description of the run; None for a process that has built it.
        number, count: the share, from 0, and the number of shares.
        store: where the share is saved; None if the sender saves it.
    """

    key: str
    recipe: Recipe | None
    number: int
    count: int
    store: Store | None = None


class Builder:
    """Builds runs in a worker process, and keeps the last one.

    Args:
        device: device of this process; None for that of the recipe.
    """

    def __init__(self, device: str | None = None):
        self.device = device
        self.key = ""
        self.run: Work | None = None

    def share(self, task: Task, clean: Any) -> Work:
        """The run of a share, ready to be called."""
        if self.run is None or self.key != task.key:
            assert task.recipe is not None
            # Freed first, because a GPU may not have room for two defenses.
            self.run = None
            self.run, self.key = task.recipe.build(self.device), task.key
            self.run.prepare(task.count, clean)
        share = self.run.parts[task.number]
        share.store = task.store
        return share


@dataclass(frozen=True)
class PickledRun:
    """The recipe of a run that is known only as an object.

    Attributes:
        content: the run, pickled, because torch would share memory if multiprocessing pickled it.
        key: identifies the run.
    """

    content: bytes
    key: str

    @classmethod
    def of(cls, entry: Entry) -> "PickledRun":
        run = entry.run
        assert run is not None
        kept = run.progress, run.note, run.store, run.parts, run.clean
        run.progress, run.note, run.store, run.parts, run.clean = None, _ignore, None, [], None
        try:
            return cls(pickle.dumps(run, protocol=5), str(entry.index))
        finally:
            run.progress, run.note, run.store, run.parts, run.clean = kept

    def build(self, device: str | None) -> Work:
        return pickle.loads(self.content)


class SpawnedPool(Pool):
    """Processes that are started once.

    Args:
        devices: device of each process; empty for that of the runs.
    """

    def __init__(self, queue: RunQueue, workers: int, devices: tuple[str, ...] = ()):
        super().__init__(queue, workers)
        self.devices: list[str | None] = [*(devices or [None] * workers)]
        self.idle: list[tuple[Connection, Any]] = []
        self.device_of: dict[Connection, str | None] = {}
        # The key of the run that each process has built, and the recipe of the current run; a job may have several.
        self.key_of: dict[Connection, str] = {}
        self.recipes: dict[Work | None, Recipe] = {}

    def begin(self, share: Share) -> None:
        pipe, process = self.idle.pop() if self.idle else self._spawn()
        self.running[pipe] = process, share
        entry, store = share.entry, share.run.store
        if entry.run not in self.recipes:
            self.recipes = {entry.run: share.run.recipe or PickledRun.of(entry)}
        recipe = self.recipes[entry.run]
        # A process that has built this run has its clean pass as well.
        known = self.key_of.get(pipe) == recipe.key
        self.key_of[pipe] = recipe.key
        task = Task(recipe.key, None if known else recipe, share.number, entry.count, _plain(store))
        # If the process has died, the next read reports it.
        with suppress(OSError):
            pipe.send_bytes(pickle.dumps((task, None if known else share.run.clean), protocol=5))

    def _spawn(self) -> tuple[Connection, Any]:
        ours, theirs = multiprocessing.Pipe()
        device = self.device_of[ours] = self.devices.pop(0)
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, device))
        with _interrupts_ignored():
            process.start()
        theirs.close()
        return ours, process

    def refusal(self, exitcode: int) -> RobenchError | None:
        if exitcode != _UNGUARDED:
            return None
        return UsageError(
            "the processes of a run import the script that started it: call robench under "
            'if __name__ == "__main__", or with workers=1'
        )

    def release(self, pipe: Connection, process: Any) -> None:
        self.idle.append((pipe, process))

    def end_process(self, pipe: Connection, process: Any) -> None:
        self.devices.append(self.device_of.pop(pipe))
        self.key_of.pop(pipe, None)
        super().end_process(pipe, process)

    def end(self) -> None:
        super().end()
        while self.idle:
            self.end_process(*self.idle.pop())


def _serve(pipe: Connection, device: str | None) -> None:
    """Run shares until the pipe is closed; the target of a spawned process."""
    become_worker()
    builder = Builder(device)
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        # A share that failed before the request to stop reached it.
        if content != b"stop":
            answer(pipe, lambda content=content: builder.share(*pickle.loads(content)))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that start inside the block ignore Ctrl-C from their first instruction."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _plain(store: Store | None) -> Store | None:
    """The store without a callback that cannot be pickled."""
    if store is not None:
        store = copy.copy(store)
        store.note = _ignore
    return store


def _ignore(text: str) -> None:
    pass
