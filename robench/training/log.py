"""CSV log of a training: one line per epoch with stage, epoch, loss, lr and seconds, written immediately."""

import csv
from pathlib import Path

from robench.core.errors import ResourceError
from robench.core.formatting import csv_text
from robench.core.io import write_file
from robench.training.partial import OPTION

COLUMNS = ("stage", "epoch", "loss", "lr", "seconds")


class Log:
    """The log file at `path`; None disables logging.

    A resumed training keeps the lines of the epochs it has finished; a new training overwrites the file.
    """

    def __init__(self, path: Path | None):
        self.path = path

    def begin(self, stage: str, done: int, resumed: bool) -> None:
        """Start the log of a training, or resume it after `done` epochs of `stage`.

        Raises:
            ResourceError: if the file cannot be read or written.
        """
        if self.path is None:
            return
        rows = _rows(self.path) if resumed else []
        if done:
            kept = max((i + 1 for i, row in enumerate(rows) if row[:2] == [stage, str(done)]), default=0)
        else:  # all of the stages before it
            kept = next((i for i, row in enumerate(rows) if row[:1] == [stage]), len(rows))
        write_file(self.path, csv_text([COLUMNS, *rows[:kept]]).encode(), OPTION)

    def epoch(self, stage: str, epoch: int, loss: float, lr: float, seconds: float) -> None:
        """Log a finished epoch.

        Args:
            lr: learning rate of its last step, before layer-wise decay.
            seconds: time since the start of the training, without interruptions.
        """
        if self.path is None:
            return
        line = csv_text([(stage, str(epoch), f"{loss:.6g}", f"{lr:.6g}", f"{seconds:.1f}")])
        try:
            with self.path.open("a", newline="") as file:
                file.write(line)
        except OSError as error:
            raise ResourceError(f"the log {self.path} cannot be written ({error.strerror})") from error


def _rows(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(path.read_text("utf-8").splitlines()))[1:] if path.exists() else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResourceError(
            f"cannot resume the log {path}: it is not a readable CSV file; delete it"
        ) from error
