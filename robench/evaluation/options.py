"""Options that every kind of evaluation takes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robench.engine.progress import Progress


@dataclass(frozen=True)
class Options:
    """Options of a run. Only `seed`, `precision`, `batch_size`, `checkpoint`, `estimate` and rounding affect verdicts.

    Attributes:
        seed: seed of all random numbers.
        device: torch device, or several, such as "cuda:0,1"; "auto" uses CUDA if available.
        batch_size: number of images per network call, or "auto".
        precision: precision of the search, "fp32", "bf16" or "auto"; verdicts are always in fp32.
        compile: use `torch.compile` for the search; verdicts come from the original network.
        deterministic: give the same bits in every run on a GPU; on a CPU this is always the case.
        data_dir: folder with the files of the datasets.
        results: folder of all records, or its URL on a file system that fsspec supports, such as s3://bucket/results.
        certify_first: certifier, such as "crown"; images that it proves robust are not attacked. None attacks all.
        fresh: ignore a saved record or an interrupted run and start over.
        checkpoint: checkpoint to load instead of the card's.
        workers: number of processes that share the images; None for one per torch thread on a CPU, if there are enough
            images, and one per GPU of `device`. With `engine="ray"`, the maximum number of workers.
        estimate: attack a random sample of the images that survive `quick`, until half the width of the 95 % interval
            for robust accuracy is at most this many percentage points; None to attack all images.
        share: (number, count) to run only one share of each run, numbered from 0; None for the whole run.
        engine: "local", or "ray" to run shares on a Ray cluster.
        address: address of the head of the Ray cluster; None for RAY_ADDRESS, or a new cluster on this machine.
        gpus_per_worker: GPUs of each Ray worker; None for 1 if the run is on a GPU, else 0.
        command: the command line, for the record.
        progress: called with the progress of the run, see `robench.attack`.
        note: called with each message for the user, a line of text.
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
