"""What a run shows on stderr while it works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from robench.core.sanitize import plain
from robench.engine.progress import Progress as Standing

Callback = Callable[[Standing], None]


@contextmanager
def shown(progress: bool | Callback | None) -> Iterator[Callback | None]:
    """What a run calls to show where it stands: a bar on stderr for True, nothing for False or None."""
    if progress is True:
        with Bar(Console(stderr=True)) as bar:
            yield bar.update
    else:
        yield progress or None


class Bar:
    """What a run shows on stderr: a moving bar on a terminal, a line an attack elsewhere."""

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
        self.last: Standing | None = None
        self.passes = (0, 0.0)

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """A line for the user that stays."""
        self.console.print(Text(plain(f"robench: {text}")), soft_wrap=True)

    def done(self) -> None:
        """A record is there: the next one gets a bar of its own."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task, self.last, self.passes = None, None, (0, 0.0)

    def update(self, standing: Standing) -> None:
        """Show where a run stands."""
        fresh = self.last is None or self.last.index != standing.index
        self.last = standing
        if fresh and self.task is not None:
            self.bar.remove_task(self.task)
        if fresh:
            label = f"{standing.index + 1}/{standing.attacks} {standing.attack}"
            self.task = self.bar.add_task(label, total=1.0, facts="")
            self.passes = (standing.passes, self.bar.get_time())
            if not self.console.is_terminal:
                self.note(f"{label}: {standing.survivors} of {standing.samples} images still to attack")
        assert self.task is not None
        seconds = self.bar.get_time() - self.passes[1]
        speed = (standing.passes - self.passes[0]) / seconds if seconds > 0 else 0.0
        facts = f"{standing.survivors}/{standing.samples} survive, {speed:,.0f} passes/s"
        self.bar.update(self.task, completed=standing.share, facts=facts)
