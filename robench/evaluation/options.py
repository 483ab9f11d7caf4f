"""Options that every kind of evaluation takes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robench.engine.progress import Progress


@dataclass(frozen=True)
class Options:
    """Options of a run. Only the seed, the precision and the batch size affect its result.

    Attributes:
        seed: seed of all random numbers.
        device: torch device; "auto" uses CUDA if available.
        batch_size: number of images per network call, or "auto".
        precision: "fp32", "bf16" or "auto" for the search; verdicts are always fp32.
        compile: use `torch.compile` for the search; verdicts are of the network as it is.
        deterministic: compute the same bits at every run on a GPU; on a CPU this is always so.
        data_dir: folder with the files of the data sets.
        results: folder of all records, or the URL of one on a file system that fsspec knows, such as s3://bucket/results.
        certify_first: certifier, such as "crown", whose proven images are not attacked, with the same verdicts; None to
            attack all.
        fresh: ignore a saved record or an interrupted run and start over.
        checkpoint: checkpoint to load instead of the card's.
        workers: number of processes that split the samples of an attack on a CPU, or generate corrupted images; None
            for one per core, if there is enough work.
        estimate: half width in points of the interval for robust accuracy, to run the suite on a sample of the images
            that survive `quick`; None to run it on all images.
        share: (number, count) to run only one of several shares of each run; None for the whole run.
        engine: "local", or "ray" to run shares on a Ray cluster.
        address: address of the cluster's head; None for RAY_ADDRESS or a cluster on this machine.
        gpus_per_worker: GPUs of each worker of the cluster; None for one if the run is on a GPU.
        command: the command line, for the record.
        progress: called after every query.
        note: called with each line for the user.
    """

    seed: int = 0
    device: str = "auto"
    batch_size: int | str = "auto"
    precision: str = "auto"
    compile: bool = False
    deterministic: bool = False
    data_dir: str | None = None
    results: str | Path = "results"
    certify_first: str | None = None
    fresh: bool = False
    checkpoint: str | None = None
    workers: int | None = None
    estimate: float | None = None
    share: tuple[int, int] | None = None
    engine: str = "local"
    address: str | None = None
    gpus_per_worker: float | None = None
    command: str = ""
    progress: Callable[[Progress], None] | None = None
    note: Callable[[str], None] = lambda text: None


def default_results() -> Path | str:
    """The default folder of records: ROBENCH_RESULTS, or `results` in the current folder."""
    place = os.environ.get("ROBENCH_RESULTS", "results")
    return place if "://" in place else Path(place)
