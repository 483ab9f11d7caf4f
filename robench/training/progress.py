"""Show the progress of training on stderr: stage, epoch, loss, time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from robench.core.sanitize import plain_lines


class Reporter:
    """One progress bar per stage on a terminal, else a line every 30 seconds; nothing if `shown` is false."""

    def __init__(self, shown: bool):
        self.console = Console(stderr=True, quiet=not shown)
        live = shown and self.console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not live,
        )
        self.plain = shown and not live
        self.task = self.bars.add_task("", start=False, visible=False, loss="")
        self.started = self.last = 0.0
        self.first = self.total = 0
        self.stage = ""

    def __enter__(self) -> "Reporter":
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Start a stage of `total` epochs, or resume it after `done` of them."""
        self.stage, self.total, self.first = stage, total, done
        self.started = self.last = time.monotonic()
        self.task = self.bars.add_task(stage, total=total, completed=done, loss="")

    def epoch(self, done: int, loss: float) -> None:
        """Show that `done` epochs of the stage are finished, the last with this mean loss."""
        self.bars.update(self.task, completed=done, loss=f"{loss:.4f}")
        now = time.monotonic()
        if self.plain and (done == self.total or now - self.last >= 30):
            self.last = now
            left = (now - self.started) / (done - self.first) * (self.total - done)
            self.say(f"{self.stage}: epoch {done}/{self.total}, loss {loss:.4f}, {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(Text(plain_lines(text)), soft_wrap=True)
