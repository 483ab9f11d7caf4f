"""A training's epochs as CSV: stage, epoch, loss, lr, seconds; one line each, written at once."""

import csv
import io
from pathlib import Path

from robench.core.errors import ResourceError
from robench.core.io import write_file
from robench.training.partial import OPTION

COLUMNS = ("stage", "epoch", "loss", "lr", "seconds")


class Log:
    """The log at `path`; none for None.

    An interrupted training that goes on keeps the lines of the epochs behind it; any other starts over.
    """

    def __init__(self, path: Path | None):
        self.path = path

    def begin(self, stage: str, done: int) -> None:
        """A training starts, or goes on with `done` epochs of `stage` behind it.

        Raises:
            ResourceError: when the file cannot be read or written.
        """
        if self.path is None:
            return
        rows = _rows(self.path) if done else []
        last = max((i for i, row in enumerate(rows) if row[:2] == [stage, str(done)]), default=-1)
        write_file(self.path, _lines([list(COLUMNS), *rows[: last + 1]]).encode(), OPTION)

    def epoch(self, stage: str, epoch: int, loss: float, lr: float, seconds: float) -> None:
        """An epoch is done.

        Args:
            lr: the learning rate of its last step, before the factors of layers.
            seconds: since the training began, without interruptions.
        """
        if self.path is None:
            return
        line = _lines([[stage, str(epoch), f"{loss:.6g}", f"{lr:.6g}", f"{seconds:.1f}"]])
        try:
            with self.path.open("a", newline="") as file:
                file.write(line)
        except OSError as error:
            raise ResourceError(f"the log {self.path} cannot be written ({error.strerror})") from error


def _rows(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(path.read_text("utf-8").splitlines()))[1:] if path.exists() else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResourceError(f"the log {path} is not one that can be gone on with: delete it") from error


def _lines(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
