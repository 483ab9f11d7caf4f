"""Progress of a training on stderr: stage, epoch, loss and remaining time."""

import time

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
    """Shows one progress bar per stage on a terminal, and a line every 30 seconds elsewhere.

    Args:
        shown: whether to show anything.
    """

    def __init__(self, shown: bool):
        self.console = Console(stderr=True, quiet=not shown)
        show_bars = shown and self.console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not show_bars,
        )
        self.print_lines = shown and not show_bars
        self.task = self.bars.add_task("", start=False, visible=False, loss="")
        self.started = self.printed = 0.0
        self.first_epoch = self.epochs = 0
        self.stage = ""

    def __enter__(self) -> "Reporter":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Start a stage of `total` epochs, or resume it after `done` epochs."""
        self.stage, self.epochs, self.first_epoch = stage, total, done
        self.started = self.printed = time.monotonic()
        self.task = self.bars.add_task(stage, total=total, completed=done, loss="")

    def epoch(self, done: int, loss: float) -> None:
        """Show the number of finished epochs and the mean loss of the last one."""
        self.bars.update(self.task, completed=done, loss=f"{loss:.4f}")
        now = time.monotonic()
        if self.print_lines and (done == self.epochs or now - self.printed >= 30):
            self.printed = now
            left = (now - self.started) / (done - self.first_epoch) * (self.epochs - done)
            self.say(f"{self.stage}: epoch {done}/{self.epochs}, loss {loss:.4f}, {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(Text(plain_lines(text)), soft_wrap=True)
