"""Processes that share a run's samples, on a CPU: a small network keeps one core busy, not many.

Under Linux they are forked, so each has the defense as it is, whatever it is made of; elsewhere they are started from
nothing and receive a pickled copy. A sample's result depends on nothing but the sample, so it is the same whichever
process attacks it, and each process saves its own share: killed, the run goes on from there. They end with the process
that started them, however it ends.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
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


class Player(Protocol):
    """A run (robench.engine.run.Run), as far as it is shared."""

    mine: Tensor
    store: Store | None
    progress: Callable[[Progress], None] | None
    note: Callable[[str], None]

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def attack(self) -> None: ...

    def part(self) -> ShardResult: ...

    def absorb(self, parts: list[ShardResult]) -> None: ...


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


def shares(ids: Tensor, count: int, group: int) -> list[Tensor]:
    """Which samples each process attacks, bool (n,) each: by turns in the order of their ids, `group` together."""
    n = len(ids)
    place = torch.empty(n, dtype=torch.int64)
    place[ids.argsort(stable=True)] = torch.arange(n)
    turn = place // group % count
    return [turn == i for i in range(min(count, -(-n // group)))]


def play(run: Player, shares: list[Tensor]) -> None:
    """Let one process for each share play the run's attacks, and take what they found into the run.

    Raises:
        ResourceError: when a process ends before it is done.
        Exception: what a process raised.
    """
    team = _Team(run, shares, start_method(run.device, run.model))
    try:
        run.absorb(team.listen())
    finally:
        team.end()


class _Team:
    def __init__(self, run: Player, shares: list[Tensor], method: str):
        self.run = run
        context: Any = multiprocessing.get_context(method)
        pipes = [context.Pipe() for _ in shares]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = []
        for number, (_, theirs) in enumerate(pipes):
            share = copy.copy(run)
            share.mine = shares[number]
            share.store = run.store.share(number, len(shares)) if run.store else None
            _silence(share)
            if method == "fork":
                # Pipes of the others are closed here, or their end could not be seen.
                others = [*self.pipes, *(other for _, other in pipes if other is not theirs)]
                arguments = (share, theirs, others)
            else:
                # Not by multiprocessing's own pickling, which torch makes share memory.
                arguments = (pickle.dumps(share, protocol=5), theirs, [])
            self.processes.append(context.Process(target=_serve, args=arguments))
        with warnings.catch_warnings():
            # Python warns of forks beside threads: torch's own, which the process does without.
            warnings.simplefilter("ignore", DeprecationWarning)
            for process in self.processes:
                process.start()
        for _, theirs in pipes:
            theirs.close()

    def listen(self) -> list[ShardResult]:
        """The results of all processes."""
        parts: dict[int, ShardResult] = {}
        standing: dict[int, Progress] = {}
        playing = dict(enumerate(self.pipes))
        failure: BaseException | None = None
        while playing:
            try:
                for pipe in wait(list(playing.values())):
                    number = self.pipes.index(pipe)  # type: ignore[arg-type]
                    kind, what = self._hear(number)
                    if kind == "progress":
                        standing[number] = what
                        if self.run.progress and len(standing) == len(self.pipes):
                            self.run.progress(Progress.together(list(standing.values())))
                    elif kind == "note":
                        self.run.note(what)
                    else:
                        del playing[number]
                        if kind == "done":
                            parts[number] = what
                        elif failure is None and kind == "failed":
                            failure = what
                            self._stop()
            except KeyboardInterrupt as interrupt:
                # Each saves what it has, unless one cannot wait.
                if failure is not None:
                    raise
                failure = interrupt
                self._stop()
        if failure is not None:
            raise failure
        return [parts[number] for number in range(len(self.pipes))]

    def _hear(self, number: int) -> tuple[str, Any]:
        try:
            return pickle.loads(self.pipes[number].recv_bytes())
        except (EOFError, OSError):
            self.processes[number].join()
            code = self.processes[number].exitcode
            return "failed", ResourceError(
                f"a process of the run ended (exit code {code}), most likely for want of memory: repeat the command "
                "with fewer --workers; what was saved before is intact"
            )

    def _stop(self) -> None:
        for pipe in self.pipes:
            with suppress(OSError):
                pipe.send_bytes(b"stop")

    def end(self) -> None:
        """Leave no process behind."""
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join()
            process.close()
            pipe.close()


def _silence(run: Player) -> None:
    """Take out of a run what only the process that started it can call, and pickle may refuse."""
    run.progress, run.note = None, _ignore
    if run.store:
        run.store.note = _ignore


def _ignore(text: str) -> None:
    pass


def _serve(run: Player | bytes, pipe: Connection, others: list[Connection]) -> None:
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
        share: Player = pickle.loads(run) if isinstance(run, bytes) else run
        share.progress, share.note = progress, lambda text: send("note", text)
        if share.store:
            share.store.note = share.note
        share.attack()
        send("done", share.part())
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
