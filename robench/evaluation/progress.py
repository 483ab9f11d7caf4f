"""Progress of a run on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from robench.core.sanitize import plain
from robench.engine.progress import Progress as RunProgress

Callback = Callable[[RunProgress], None]


@contextmanager
def shown(progress: bool | Callback | None) -> Iterator[Callback | None]:
    """The function that a run calls to report its progress: True for a bar on stderr, False or None for none."""
    if progress is True:
        with Bar(Console(stderr=True)) as bar:
            yield bar.update
    else:
        yield progress or None


class Bar:
    """Shows a progress bar on a terminal, and one line per attack elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.last: RunProgress | None = None
        # Passes and time at the start of the current attack.
        self.start = (0, 0.0)

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """Print a line that stays on the screen."""
        self.console.print(Text(plain(f"robench: {text}")), soft_wrap=True)

    def done(self) -> None:
        """Remove the bar of a finished run."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task, self.last, self.start = None, None, (0, 0.0)

    def update(self, progress: RunProgress) -> None:
        """Show the progress of a run."""
        is_new_attack = self.last is None or self.last.index != progress.index
        self.last = progress
        label = f"{progress.index + 1}/{progress.attacks} {progress.attack}"
        if is_new_attack and self.task is not None:
            self.bar.remove_task(self.task)
        if is_new_attack:
            self.task = self.bar.add_task(label, total=1.0, facts="")
            self.start = (progress.passes, self.bar.get_time())
            if not self.console.is_terminal:
                self.note(
                    f"{label}: {progress.survivors} of {progress.samples} images still to {progress.left}"
                )
        assert self.task is not None
        seconds = self.bar.get_time() - self.start[1]
        speed = (progress.passes - self.start[0]) / seconds if seconds > 0 else 0.0
        state = "survive" if progress.left == "attack" else f"left to {progress.left}"
        facts = f"{progress.survivors}/{progress.samples} {state}, {speed:,.0f} passes/s"
        self.bar.update(self.task, description=label, completed=progress.share, facts=facts)
