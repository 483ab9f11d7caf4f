"""The queue of the runs of a grid, whose shares an executor gives to its workers.

Each record is a job: a generator that yields its run, or several in turn, and receives the outcome of each. The queue
starts the next job when few shares are waiting, so no worker waits for the last share of a record, and ends a job when
its last share is finished. The results of a run depend on neither the executor nor the other runs.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from robench.core.errors import RobenchError
from robench.engine.progress import Progress
from robench.engine.work import Work

# Maximum number of attempts at a share whose worker dies.
ATTEMPTS = 2

R = TypeVar("R")


class Executor(Protocol):
    """Runs the shares in a queue.

    Attributes:
        workers: number of shares that run at the same time; 0 if unknown.
    """

    @property
    def workers(self) -> int: ...

    def shares_of(self, samples: int, batch_size: int) -> int:
        """Number of shares of a new run."""
        ...

    def run(self, queue: "RunQueue") -> Iterator[None]:
        """Run all shares; the iterator advances whenever results may have arrived."""
        ...


@dataclass(frozen=True)
class Job(Generic[R]):
    """One record to be.

    Attributes:
        steps: a generator that may yield runs, receives the outcome of each and returns the result of the job.
        title: name of the record in messages.
        key: jobs with the same key never run at the same time.
    """

    steps: Generator[Work, Any, R]
    title: str = ""
    key: Hashable = None


@dataclass(eq=False)
class Entry:
    """A started job, with the results of the shares of its run."""

    index: int
    job: Job
    run: Work | None = None
    results: dict[int, Any] = field(default_factory=dict)
    progress: list[Progress] = field(default_factory=list)
    losses: Counter[int] = field(default_factory=Counter)
    lost: list[tuple[int, RobenchError]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether the run of this job still needs its shares."""
        return self.run is not None

    @property
    def count(self) -> int:
        """Number of shares."""
        return len(self.progress)


@dataclass(frozen=True)
class Share:
    """A share of a run in the queue."""

    entry: Entry
    number: int
    run: Work


class RunQueue(Generic[R]):
    """The shares of all runs.

    Args:
        jobs: one for each record, in order; consumed when workers need shares.
        executor: runs the shares.
        total: number of jobs.
        progress: called with the progress of the run, or of the grid if there are several jobs.
        note: called with each line for the user.
    """

    def __init__(
        self,
        jobs: Iterable[Job[R]],
        executor: Executor,
        total: int = 1,
        progress: Callable[[Progress], None] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.entries = (Entry(index, job) for index, job in enumerate(jobs))
        self.executor, self.total = executor, total
        self.progress, self.note = progress, note
        self.waiting: deque[Share] = deque()
        self.open: dict[int, Entry] = {}
        self.failures: list[tuple[Entry, RobenchError]] = []
        self._postponed: deque[Entry] = deque()
        self._ended = self._next = 0
        self._results: dict[int, list[R]] = {}

    # -- for executors -----------------------------------------------------------------------------------

    def take(self) -> Share | None:
        """The next share; jobs are started until there is one. None if there is none for now."""
        while not self.waiting:
            if not self.start():
                return None
        return self.waiting.popleft()

    def start(self) -> bool:
        """Start the next job; False if there is none for now."""
        entry = self._next_entry()
        if entry is None:
            return False
        run = self._step(entry, lambda: next(entry.job.steps))
        if run is not None:
            self._open(entry, run)
        return True

    def show(self, share: Share, progress: Progress) -> None:
        """Show the progress of a share."""
        share.entry.progress[share.number] = progress
        if share.entry.is_open:
            self._show(share.entry)

    def finish(self, share: Share, result: Any) -> None:
        """Take the result of a share."""
        share.entry.results[share.number] = result
        self._end_if_complete(share.entry)

    def lose(self, share: Share, reason: str, error: RobenchError) -> None:
        """Run a share again whose worker has died; after the last attempt its job fails when all others have run.

        Args:
            error: the error of the job.
        """
        entry = share.entry
        entry.losses[share.number] += 1
        if not entry.is_open:
            return
        if entry.losses[share.number] < ATTEMPTS:
            self.note(
                f"share {share.number + 1} of {entry.count} lost its worker ({reason}): it starts again"
            )
            self.waiting.append(share)
        else:
            entry.lost.append((share.number, error))
            self._end_if_complete(entry)

    def fail(self, share: Share, error: RobenchError) -> None:
        """End the job of a share with an error; the other jobs go on."""
        if share.entry.is_open:
            self._abort(share.entry, error)

    # -- for the caller ----------------------------------------------------------------------------------

    def ready(self) -> Iterator[R]:
        """The results that have arrived, in the order of their jobs."""
        while self._next in self._results:
            yield from self._results.pop(self._next)
            self._next += 1

    def close(self) -> None:
        """End jobs that are not finished, so that they release what they hold."""
        for entry in self.open.values():
            entry.job.steps.close()
        self.open.clear()

    def raise_failures(self) -> None:
        """Raise one error for all failed jobs, of the kind with the highest exit code.

        Raises:
            RobenchError: if a job has failed.
        """
        if not self.failures:
            return
        worst = max((error for _, error in self.failures), key=lambda error: error.exit_code)
        if self.total == 1:
            raise worst
        titles = "; ".join(entry.job.title for entry, _ in self.failures)
        raise type(worst)(f"{len(self.failures)} of {self.total} records failed: {titles}") from worst

    # -----------------------------------------------------------------------------------------------------

    def _next_entry(self) -> Entry | None:
        busy = {entry.job.key for entry in self.open.values()} - {None}
        for entry in self._postponed:
            if entry.job.key not in busy:
                self._postponed.remove(entry)
                return entry
        for entry in self.entries:
            if entry.job.key not in busy:
                return entry
            # An earlier job makes the same record, which is then the result of both.
            self._postponed.append(entry)
        return None

    def _open(self, entry: Entry, run: Work) -> None:
        """Prepare the next run of a job and queue its shares."""
        try:
            run.prepare(self.executor.shares_of(*run.shape))
        except RobenchError as error:
            self._abort(entry, error)
            return
        entry.run, self.open[entry.index] = run, entry
        entry.losses.clear()
        entry.progress = [part.current_progress() for part in run.parts]
        for number, part in enumerate(run.parts):
            if result := part.saved_result():
                entry.results[number] = result
                entry.progress[number] = part.current_progress()
            else:
                self.waiting.append(Share(entry, number, part))
        if entry.results:
            self._show(entry)
        self._end_if_complete(entry)

    def _end_if_complete(self, entry: Entry) -> None:
        run = entry.run
        if run is None or len(entry.results) + len(entry.lost) < entry.count:
            return
        if entry.lost:
            self._abort(entry, entry.lost[0][1])
            return
        try:
            outcome = run.conclude([entry.results[number] for number in range(entry.count)])
        except RobenchError as error:
            self._abort(entry, error)
            return
        self._forget(entry)
        following = self._step(entry, lambda: entry.job.steps.send(outcome))
        if following is not None:
            self._open(entry, following)

    def _step(self, entry: Entry, action: Callable[[], Work]) -> Work | None:
        """Advance a job; None if it has ended."""
        try:
            return action()
        except StopIteration as end:
            self._results[entry.index] = [end.value]
        except RobenchError as error:
            self._results[entry.index] = []
            self.failures.append((entry, error))
            if self.total > 1:
                self.note(f"{entry.job.title} failed: {error}")
        self._ended += 1
        return None

    def _abort(self, entry: Entry, error: RobenchError) -> None:
        self._forget(entry)
        # The job ends its blocks and raises the error again.
        self._step(entry, lambda: entry.job.steps.throw(error))

    def _forget(self, entry: Entry) -> None:
        self.open.pop(entry.index, None)
        self.waiting = deque(share for share in self.waiting if share.entry is not entry)
        entry.run, entry.results = None, {}

    def _show(self, entry: Entry) -> None:
        if self.progress is None:
            return
        parts = entry.progress
        together = Progress.together if len(parts) <= self.executor.workers else Progress.of_shares
        progress = together(parts)
        if self.total > 1:
            first = self.open[min(self.open)]
            progress = together(first.progress)
            done = self._ended + sum(Progress.of_shares(other.progress).share for other in self.open.values())
            progress = progress.of_grid(first.job.title, first.index, self.total, done / self.total)
        self.progress(progress)


def run_queue(queue: RunQueue[R]) -> Iterator[R]:
    """Run all jobs and yield their results in order.

    A job that fails is named, and the others go on.

    Raises:
        RobenchError: at the end, if jobs have failed.
    """
    try:
        with closing(queue.executor.run(queue)) as steps:  # type: ignore[type-var]
            for _ in steps:
                yield from queue.ready()
        yield from queue.ready()
    finally:
        queue.close()
    queue.raise_failures()


def single(run: Work, executor: Executor, progress: Callable[[Progress], None] | None = None) -> Any:
    """The outcome of one run."""

    def steps() -> Generator[Work, Any, Any]:
        return (yield run)

    (outcome,) = run_queue(RunQueue([Job(steps())], executor, progress=progress, note=run.note))
    return outcome
