"""How jobs are run, whatever they are."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robench.engine.progress import Progress


@dataclass(frozen=True)
class Options:
    """How a job is run; only seed, precision and batch size change its result.

    Attributes:
        workers: processes that share the samples of an attack on a CPU, or make corrupted images; None for one a core,
            where there is enough to do.
        share: (number, count): play one of several shares of each run and leave the rest to others; None for all.
        results: folder of all records.
        fresh: start over, whatever record or partial run is there.
        progress: called after every query; note: called with each line that a user should read.
    """

    seed: int = 0
    device: str = "auto"
    batch_size: int | str = "auto"
    precision: str = "auto"
    data_dir: str | None = None
    results: str | Path = "results"
    fresh: bool = False
    checkpoint: str | None = None
    workers: int | None = None
    share: tuple[int, int] | None = None
    command: str = ""
    progress: Callable[[Progress], None] | None = None
    note: Callable[[str], None] = lambda text: None


def default_results() -> Path:
    """Where records go by default: ROBENCH_RESULTS, or `results` in the current folder."""
    return Path(os.environ.get("ROBENCH_RESULTS", "results"))
