"""Processes that run the shares of a run on a CPU, because a small network does not use several cores.

On Linux the processes are forked, so any defense works; elsewhere they are spawned and receive a pickled copy. A
sample's result depends only on the sample, so it is the same in every process. Each share has its own store, from
which a killed run resumes. The processes end with the process that started them, even if it is killed.
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
from robench.engine.clean_pass import CleanPass
from robench.engine.progress import Progress
from robench.engine.run_state import ShardResult

# Minimum number of samples per process.
_MIN_SAMPLES = 16


class Playable(Protocol):
    """The part of `robench.engine.run.Run` that executors need."""

    store: Store | None
    progress: Callable[[Progress], None] | None
    note: Callable[[str], None]

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def share(self, number: int, shares: list[Tensor]) -> "Playable": ...

    def attack(self) -> ShardResult: ...

    def finished(self) -> ShardResult | None: ...

    def keep(self, result: ShardResult) -> None: ...

    def standing(self) -> Progress: ...

    @property
    def clean(self) -> CleanPass: ...


def start_method(device: torch.device, model: Any) -> str:
    """The start method of processes that run shares on this device: "fork" or "spawn"; "" if not supported.

    Processes are not supported on machines with a GPU, inside the processes of a pool, or if they must be spawned and
    the model cannot be pickled.
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
        model: the model that spawned processes receive.
        note: called with one line if fewer processes than requested share the run.

    Returns:
        The number of processes; 1 if they are not supported, see `start_method`.

    Raises:
        UsageError: if `workers` is less than 1.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers={workers!r}: expected a whole number of at least 1, or None")
    if workers is None:
        workers = max(1, min(torch.get_num_threads(), samples // _MIN_SAMPLES))
    if workers > 1 and not start_method(device, model):
        if device.type == "cpu" and not torch.cuda.is_available():
            note("running in one process: this system cannot fork, and the model cannot be pickled")
        return 1
    return min(workers, samples)


class Executor(Protocol):
    """Runs the shares of a run; the results do not depend on the executor.

    Attributes:
        shares: number of shares of a new run.
    """

    @property
    def shares(self) -> int: ...

    def play(self, run: Playable, shares: list[Tensor]) -> list[ShardResult]: ...


@dataclass(frozen=True)
class Processes:
    """Runs shares in processes of this machine, or one after another in this process if others are not supported.

    Attributes:
        workers: number of processes at a time.
        shares: number of shares of a new run; 0 for one per process.
    """

    workers: int = 1
    shares: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", self.shares or self.workers)

    def play(self, run: Playable, shares: list[Tensor]) -> list[ShardResult]:
        """Run all shares and return their results in order.

        Raises:
            ResourceError: if a process ends before its share is finished.
            Exception: the exception of a process.
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
    """Shows the progress of a run from the progress of its shares."""

    def __init__(self, run: Playable, shares: list[Tensor], at_once: int):
        self.run, self.at_once = run, at_once
        self.parts = [run.share(number, shares).standing() for number in range(len(shares))]

    def show(self, number: int, standing: Progress) -> None:
        """Update the progress of one share and show that of the run."""
        self.parts[number] = standing
        if self.run.progress:
            together = Progress.together if len(self.parts) <= self.at_once else Progress.of_shares
            self.run.progress(together(self.parts))


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Use one CPU thread inside the block, as the processes of a pool do, so that the results are bit-identical."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Pool:
    """Processes that run one share each; when one ends, the next is started."""

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
                # Each process saves its state; a second interrupt ends the processes immediately.
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
            # The child closes its copies of the other pipes, or the end of other processes would not be detected.
            arguments = (share, theirs, [ours, *(pipe for _, pipe in self.playing.values())])
        else:
            # Pickled here, because torch would share memory if multiprocessing pickled it.
            arguments = (pickle.dumps(share, protocol=5), theirs, [])
        process = self.context.Process(target=_serve, args=arguments)
        self.playing[number] = process, ours
        with warnings.catch_warnings():
            # Python warns of forks in a process with threads; these are torch's, which the child does not use.
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
                f"a process of the run ended (exit code {process.exitcode}), most likely out of memory: repeat the "
                "command with fewer --workers; results saved before are kept"
            )

    def _finish(self, number: int) -> None:
        process, pipe = self.playing.pop(number)
        process.kill()
        process.join()
        process.close()
        pipe.close()

    def _stop(self) -> None:
        """Start no more shares and stop the running ones, which save their state."""
        self.waiting.clear()
        for _, pipe in self.playing.values():
            with suppress(OSError):
                pipe.send_bytes(b"stop")

    def end(self) -> None:
        """End all processes."""
        for number in list(self.playing):
            self._finish(number)


def _silence(run: Playable) -> None:
    """Remove callbacks that only work in the main process and may not be picklable."""
    run.progress, run.note = None, _ignore
    if run.store:
        run.store.note = _ignore


def _ignore(text: str) -> None:
    pass


def _serve(run: Playable | bytes, pipe: Connection, others: list[Connection]) -> None:
    """Run one share; the target of a process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for other in others:
        other.close()
    # An interrupt from the keyboard reaches all processes; the main process asks this one to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)

    def send(kind: str, content: object) -> None:
        pipe.send_bytes(pickle.dumps((kind, content), protocol=5))

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
        send("failed", portable(error))


def _end_with_parent() -> None:
    """End this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def portable(error: Exception) -> Exception:
    """A picklable copy of an error, with its traceback as a note unless it is a user's mistake."""
    lines = "".join(traceback.format_exception(error))
    # An error with a cause comes from a model, and the traceback of the cause is not pickled.
    is_mistake = isinstance(error, RobenchError) and error.__cause__ is None
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not is_mistake:
        error.add_note(f"in a process of the run:\n{lines}")
    return error
