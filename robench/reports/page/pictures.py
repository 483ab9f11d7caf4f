"""Adversarial examples for the pages, for records whose images are available."""

import hashlib
import io
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from robench.core.errors import RobenchError
from robench.data import load_dataset, needs_files
from robench.data._base import Images
from robench.records.record import Record
from robench.reports.plots.adversarial_examples import Example, amplification, examples

# Side of an image on the page in pixels; larger images are subsampled.
_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """A PNG, named by its content, with a description.

    Attributes:
        rows: headings of the rows, from top to bottom.
        examples: the label, prediction, attack and distance of each column.
        png: the image; empty if there is none.
        missing: why there is no picture; empty if there is one.
    """

    file: str = ""
    alt: str = ""
    rows: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    png: bytes = b""
    missing: str = ""


class Gallery:
    """Pictures of records; each dataset is loaded once."""

    def __init__(self, data_dir: str | None = None):
        self._data_dir = data_dir
        self._images = cache(self._load)

    def of(self, record: Record) -> Picture:
        """The picture of a record, or the reason why there is none."""
        job = record.job
        images = self._images(job.dataset.name, job.dataset.split, job.n)
        if images is None:
            return Picture(
                missing=f"The images of {job.dataset.name} were not available when this page was written."
            )
        try:
            chosen = examples(record, images)
        except RobenchError:
            # The message names local files, which do not help other readers.
            return Picture(
                missing="The samples or adversarial examples of this record cannot be read or are of other images."
            )
        if not chosen:
            return Picture(missing="The attacks found no adversarial example.")
        factor = amplification(chosen)
        descriptions = "; ".join(f"{e.label} classified as {e.prediction} after {e.attack}" for e in chosen)
        alt = f"{len(chosen)} images, clean, adversarial and their difference: {descriptions}"
        png = _png(chosen, factor)
        file = f"{hashlib.sha256(png).hexdigest()[:20]}.png"
        return Picture(file, alt, ("clean", "adversarial", f"difference × {factor}"), tuple(chosen), png)

    def _load(self, name: str, split: str, n: int) -> Images | None:
        # Without a folder from the user, loading files could start a download.
        if self._data_dir is None and needs_files(name):
            return None
        try:
            return load_dataset(name, split, n, self._data_dir)
        except RobenchError:
            return None


def _png(chosen: list[Example], factor: int) -> bytes:
    """One column per example: clean, adversarial, difference. The page has the text."""
    columns = [
        np.concatenate(
            [_tile(image) for image in (e.clean, e.adversarial, 0.5 + factor * (e.adversarial - e.clean))]
        )
        for e in chosen
    ]
    picture = Image.fromarray(np.concatenate(columns, 1))
    buffer = io.BytesIO()
    # Runs of equal pixels: a third of the default's time for 5 % more bytes.
    picture.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _tile(image) -> np.ndarray:
    """An image (C, H, W) as 8-bit RGB of about `_SIDE` pixels per side, with a white margin."""
    pixels = image if len(image) == 3 else image.mean(0).expand(3, -1, -1)
    pixels_8bit = (255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0).contiguous().numpy()
    scale = max(1, _SIDE // max(pixels_8bit.shape[:2]))
    stride = max(1, -(-max(pixels_8bit.shape[:2]) // (2 * _SIDE)))
    tile = pixels_8bit[::stride, ::stride].repeat(scale, 0).repeat(scale, 1)
    return np.pad(tile, ((3, 3), (3, 3), (0, 0)), constant_values=255)
