"""Processes that play the shares of a run on a CPU: a small network keeps one core busy, not many.

On Linux the processes are forked, so each has the defense as it is, whatever it is made of; elsewhere they are spawned
and receive a pickled copy. A sample's result depends on the sample alone, so it is the same whichever process attacks
it. Each share is saved in a place of its own, from which a killed run resumes. The processes end with the process that
started them, however it ends.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch
from torch import Tensor

from robench.core.errors import ResourceError, RobenchError, UsageError
from robench.engine.checkpoint import Store
from robench.engine.progress import Progress
from robench.engine.run_state import ShardResult

# Samples that are worth a process.
_SHARE = 16


class Playable(Protocol):
    """A run (robench.engine.run.Run), as far as executors need it."""

    store: Store | None
    progress: Callable[[Progress], None] | None
    note: Callable[[str], None]

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def share(self, number: int, shares: list[Tensor]) -> "Playable": ...

    def attack(self) -> ShardResult: ...

    def standing(self) -> Progress: ...


def start_method(device: torch.device, model: Any) -> str:
    """How processes that share a run on this device start: "fork" or "spawn"; "" where they cannot.

    They cannot on or beside a GPU, inside a pool's process, or where a model that pickle refuses would be sent to them.
    """
    if multiprocessing.current_process().daemon or device.type != "cpu" or torch.cuda.is_available():
        return ""
    # macOS forks too, but its own libraries do not survive it.
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
        workers: at the most; None for one a thread that torch would use, each with samples enough.
        samples: of the run.
        model: what would be sent to processes that cannot be forked.
        note: called with one line where fewer processes than asked for share the run.

    Returns:
        1 where processes cannot share a run, see `start_method`.

    Raises:
        UsageError: for less than one.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers={workers!r}: expected a whole number of at least 1, or None")
    if workers is None:
        workers = max(1, min(torch.get_num_threads(), samples // _SHARE))
    if workers > 1 and not start_method(device, model):
        if device.type == "cpu" and not torch.cuda.is_available():
            note("one process runs it: none can be forked here, and the model cannot be pickled")
        return 1
    return min(workers, samples)


class Executor(Protocol):
    """Plays the shares of a run; their results do not depend on how.

    Attributes:
        shares: number of shares of a run that starts.
    """

    @property
    def shares(self) -> int: ...

    def play(self, run: Playable, shares: list[Tensor]) -> list[ShardResult]: ...


@dataclass(frozen=True)
class Processes:
    """Plays shares in processes of this machine, or in turns in this process where no others can be had.

    Attributes:
        workers: number of processes at the same time.
        shares: number of shares of a run that starts; 0 for one per process.
    """

    workers: int = 1
    shares: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", self.shares or self.workers)

    def play(self, run: Playable, shares: list[Tensor]) -> list[ShardResult]:
        """The results of all shares, in order.

        Raises:
            ResourceError: when a process ends before its share is finished.
            Exception: what a process raised.
        """
        standings = Standings(run, shares, self.workers)
        method = start_method(run.device, run.model)
        if self.workers == 1 or not method:
            return _play_in_turns(run, shares, standings)
        pool = _Pool(run, shares, method, self.workers, standings)
        try:
            return pool.listen()
        finally:
            pool.end()


def _play_in_turns(run: Playable, shares: list[Tensor], standings: "Standings") -> list[ShardResult]:
    results = []
    for number in range(len(shares)):
        share = run.share(number, shares)
        share.progress = partial(standings.show, number)
        with single_thread(run.device):
            results.append(share.attack())
        standings.show(number, share.standing())
    return results


class Standings:
    """Shows where a run stands from where its shares stand."""

    def __init__(self, run: Playable, shares: list[Tensor], at_once: int):
        self.run, self.at_once = run, at_once
        self.parts = [run.share(number, shares).standing() for number in range(len(shares))]

    def show(self, number: int, standing: Progress) -> None:
        """Show the run's progress after one share's."""
        self.parts[number] = standing
        if self.run.progress:
            together = Progress.together if len(self.parts) <= self.at_once else Progress.of_shares
            self.run.progress(together(self.parts))


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Inside the block, torch uses one thread on a CPU, as the processes of a pool do: their bits must agree."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Pool:
    """Processes that play one share each, the next as soon as one ends."""

    def __init__(
        self, run: Playable, shares: list[Tensor], method: str, workers: int, standings: "Standings"
    ):
        self.run, self.shares, self.method, self.workers = run, shares, method, workers
        self.standings = standings
        self.context: Any = multiprocessing.get_context(method)
        self.playing: dict[int, tuple[Any, Connection]] = {}
        self.waiting = list(range(len(shares)))

    def listen(self) -> list[ShardResult]:
        """The results of all shares."""
        results: dict[int, ShardResult] = {}
        failure: BaseException | None = None
        while self.playing or self.waiting:
            try:
                while self.waiting and len(self.playing) < self.workers:
                    self._start(self.waiting.pop(0))
                numbers = {pipe: number for number, (_, pipe) in self.playing.items()}
                for pipe in wait(list(numbers)):
                    number = numbers[pipe]  # type: ignore[index]
                    kind, content = self._receive(number)
                    if kind == "progress":
                        self.standings.show(number, content)
                    elif kind == "note":
                        self.run.note(content)
                    else:
                        self._finish(number)
                        if kind == "done":
                            results[number] = content
                        elif failure is None and kind == "failed":
                            failure = content
                            self._stop()
            except KeyboardInterrupt as interrupt:
                # Each process saves its state; a second interrupt does not wait for that.
                if failure is not None:
                    raise
                failure = interrupt
                self._stop()
        if failure is not None:
            raise failure
        return [results[number] for number in range(len(self.shares))]

    def _start(self, number: int) -> None:
        ours, theirs = self.context.Pipe()
        share = self.run.share(number, self.shares)
        _silence(share)
        if self.method == "fork":
            # The child closes its copies of the other pipes, or their end would go unnoticed.
            arguments = (share, theirs, [ours, *(pipe for _, pipe in self.playing.values())])
        else:
            # Not by multiprocessing's own pickling, for which torch shares memory.
            arguments = (pickle.dumps(share, protocol=5), theirs, [])
        process = self.context.Process(target=_serve, args=arguments)
        self.playing[number] = process, ours
        with warnings.catch_warnings():
            # Python warns of forks beside threads: torch's own, which the process does without.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()

    def _receive(self, number: int) -> tuple[str, Any]:
        process, pipe = self.playing[number]
        try:
            return pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join()
            return "failed", ResourceError(
                f"a process of the run ended (exit code {process.exitcode}), most likely for want of memory: repeat "
                "the command with fewer --workers; what was saved before is intact"
            )

    def _finish(self, number: int) -> None:
        process, pipe = self.playing.pop(number)
        process.kill()
        process.join()
        process.close()
        pipe.close()

    def _stop(self) -> None:
        """Start no other share, and ask those that are under way to save their state."""
        self.waiting.clear()
        for _, pipe in self.playing.values():
            with suppress(OSError):
                pipe.send_bytes(b"stop")

    def end(self) -> None:
        """Leave no process behind."""
        for number in list(self.playing):
            self._finish(number)


def _silence(run: Playable) -> None:
    """Take out of a run what only the process that started it can call, and pickle may refuse."""
    run.progress, run.note = None, _ignore
    if run.store:
        run.store.note = _ignore


def _ignore(text: str) -> None:
    pass


def _serve(run: Playable | bytes, pipe: Connection, others: list[Connection]) -> None:
    """Play one share, in a process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for other in others:
        other.close()
    # An interrupt from the keyboard goes to all processes alike: whoever started this one tells it to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)

    def send(kind: str, what: object) -> None:
        pipe.send_bytes(pickle.dumps((kind, what), protocol=5))

    def progress(standing: Progress) -> None:
        send("progress", standing)
        if pipe.poll():
            raise KeyboardInterrupt

    try:
        share: Playable = pickle.loads(run) if isinstance(run, bytes) else run
        share.progress, share.note = progress, lambda text: send("note", text)
        if share.store:
            share.store.note = share.note
        result = share.attack()
        send("progress", share.standing())
        send("done", result)
    except KeyboardInterrupt:
        send("stopped", None)
    except Exception as error:
        send("failed", _portable(error))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or what it said where it cannot be pickled, with the place where it was raised."""
    place = "".join(traceback.format_exception(error))
    # What a model raised is the cause of the line about it, and its place is lost with the process.
    mistake = isinstance(error, RobenchError) and error.__cause__ is None
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not mistake:
        error.add_note(f"in a process of the run:\n{place}")
    return error
