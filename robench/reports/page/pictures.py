"""Pictures of certificates for the pages, of records whose images are at hand."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from robench.core.errors import RobenchError
from robench.data import load_dataset, needs_files
from robench.data._base import Images
from robench.records.record import Record
from robench.reports.plots.adversarial_examples import draw, examples


@dataclass(frozen=True)
class Picture:
    """A PNG under the name that its content decides, with the same in words.

    Attributes:
        png: empty when a file of that name is there already, or when there is no picture.
        missing: why there is none; empty when there is one.
    """

    file: str = ""
    alt: str = ""
    png: bytes = b""
    missing: str = ""


class Gallery:
    """Pictures of records; each data set is loaded once."""

    def __init__(self, folder: Path, data_dir: str | None = None):
        self._folder, self._data_dir = folder, data_dir
        self._images = cache(self._load)

    def of(self, record: Record) -> Picture:
        """The picture of a record, or why there is none."""
        job = record.job
        images = self._images(job.dataset.name, job.dataset.split, job.n)
        if images is None:
            return Picture(
                missing=f"The images of {job.dataset.name} were not at hand when this page was made."
            )
        try:
            chosen = examples(record, images)
        except RobenchError:
            # The message names files of this machine, which readers elsewhere have no use for.
            return Picture(missing="Its samples or certificates cannot be read, or are of other images.")
        if not chosen:
            return Picture(missing="No image was fooled by an attack.")
        shown = "; ".join(f"{e.label} taken for {e.prediction} after {e.attack}" for e in chosen)
        alt = f"{len(chosen)} fooled images, clean, adversarial and the difference: {shown}"
        told = [record.to_dict()[name] for name in ("key", "files", "health", "robust_accuracy")]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        file = f"{digest[:20]}.png"
        return Picture(file, alt, b"" if (self._folder / file).is_file() else draw(record, chosen))

    def _load(self, name: str, split: str, n: int) -> Images | None:
        # Loading files without a folder that the user names could start a download.
        if self._data_dir is None and needs_files(name):
            return None
        try:
            return load_dataset(name, split, n, self._data_dir)
        except RobenchError:
            return None
