"""adversarials.safetensors: the perturbations that prove an upper bound on robust accuracy.

Anyone can check them with forward passes alone: the defense misclassifies clamp(x + delta, 0, 1) or, under a
transformation, the image that it makes from x with the parameters `delta`. Perturbations that are whole multiples of
`Threat.grain` are stored as compressed integers of one or two bytes, others as float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robench.core.errors import ResourceError
from robench.core.io import open_ordinary
from robench.core.row_file import RowFile, shared
from robench.data._base import Images
from robench.data._lazy_images import LazyImages
from robench.engine.outcome import Outcome
from robench.records import _tensors
from robench.records._compressed import CompressedRows, compress
from robench.records.certificate_file import FILE, check_header
from robench.records.estimate import NOT_ATTACKED
from robench.threats.threat import Threat

# Number of images in memory while the file is written.
_PART = 16


class Perturbations(LazyImages):
    """Perturbations (M, ...) float32, read from their file on access.

    Args:
        exact: (E, ...) float32.
        grains: (G, ...) integers, multiples of `step`; None if there are none.
        places: (M,) int64, the row of each perturbation in `exact` followed by `grains`.
        path: the path of the file, for messages.
    """

    def __init__(
        self,
        exact: RowFile,
        grains: RowFile | CompressedRows | None,
        step: float,
        places: Tensor,
        path: Path,
    ):
        super().__init__((len(places), *(exact if grains is None else grains).shape[1:]))
        self._exact, self._grains, self._step, self._places = exact, grains, step, places
        self._path = path

    def _read(self, rows: list[int]) -> Tensor:
        places = self._places[rows]
        in_grains = places >= len(self._exact)
        perturbations = torch.empty(len(rows), *self.shape[1:])
        with _readable(self._path):
            if self._grains is not None and in_grains.any():
                grains = self._grains.read((places[in_grains] - len(self._exact)).tolist())
                perturbations[in_grains] = torch.from_numpy(grains) * self._step
            if not in_grains.all():
                perturbations[~in_grains] = torch.from_numpy(self._exact.read(places[~in_grains].tolist()))
        return perturbations


@dataclass(frozen=True)
class Certificates:
    """The perturbations of the samples with a certificate (see `certified`).

    Attributes:
        ids: (M,) int64, in the dataset's canonical order.
        delta: (M, C, H, W) float32; parameters of the same number of dimensions under a transformation.
        grain: the step of those that are stored as integers; None if there are none.
    """

    ids: Tensor
    delta: LazyImages
    grain: float | None = None

    def __len__(self) -> int:
        return len(self.ids)


def apply(threat: Threat, x: Tensor, delta: Tensor, ids: Tensor) -> Tensor:
    """The adversarial images (M, C, H, W) of perturbations of clean images with these ids."""
    return threat.image(x, threat.moved(x, delta), ids)


class Applied(LazyImages):
    """The adversarial images of certificates, computed on access.

    Args:
        x, ids: (N, C, H, W) and (N,), the images of the dataset.
        delta: (M, ...), perturbations of the images `rows`.
    """

    def __init__(
        self, threat: Threat, x: Tensor | LazyImages, delta: Tensor | LazyImages, ids: Tensor, rows: list[int]
    ):
        super().__init__((len(rows), *x.shape[1:]))
        self._threat, self._x, self._delta, self._ids, self._rows = threat, x, delta, ids, rows

    def points(self, places: list[int]) -> Tensor:
        """The adversarial points of some of the images in the threat's coordinates, (K, ...)."""
        return self._threat.moved(self._x[[self._rows[i] for i in places]], self._delta[places])

    def _read(self, rows: list[int]) -> Tensor:
        chosen = [self._rows[i] for i in rows]
        return self._threat.image(self._x[chosen], self.points(rows), self._ids[chosen])


def is_attacked(fooled_by: str) -> bool:
    """Whether an attack fooled the defense on this sample, rather than the clean image or noise."""
    return fooled_by not in ("", "clean", "noise", NOT_ATTACKED)


def certified(fooled_by: Sequence[str], distance: Sequence[float], randomised: bool) -> list[int]:
    """The samples with a certificate, in order: those with an adversarial example and, for a randomised defense, those
    with a candidate, even if no fresh draw misclassifies it."""
    rows = zip(fooled_by, distance, strict=True)
    return [i for i, (name, length) in enumerate(rows) if is_attacked(name) or (randomised and length > 0)]


def encode(outcome: Outcome, images: Images, threat: Threat) -> Iterator[bytes]:
    """The bytes of the file for an outcome, piece by piece. The same images give the same bytes.

    Raises:
        ValueError: when adding a perturbation does not give its adversarial point, bit for bit. The engine guarantees
            it, because the verdict is on the point and the record holds only the perturbation.
    """
    rows = certified(outcome.fooled_by, outcome.distance.tolist(), outcome.of_draws > 1)
    points = outcome.x_adv if outcome.points is None else outcome.points

    def pairs(chosen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(chosen), _PART):
            part = chosen[start : start + _PART]
            yield images.x[part].cpu(), points[part].cpu()

    grain, _ = threat.grain
    in_grains, unreachable, sizes = [], [], []
    for x, point in pairs(rows):
        count = _grains(x, point, threat)
        fits = _same(threat.moved(x, count * grain), point)
        in_grains += fits.tolist()
        sizes += [len(compress(row)) for row in count[fits].numpy()]
        unreachable += (~fits & ~_same(threat.moved(x, point - threat.origin(x)), point)).tolist()
    if any(unreachable):
        first = int(images.ids[rows[unreachable.index(True)]])
        raise ValueError(
            f"{sum(unreachable)} adversarial points (sample {first} first) are not clamp(x + delta, 0, 1): "
            "the engine must judge the image that the perturbation gives"
        )
    exact, grained = (
        [i for i, g in zip(rows, in_grains, strict=True) if g == kept] for kept in (False, True)
    )
    shape = tuple(points.shape[1:])

    def whole(tensor: Tensor) -> _tensors.Entry:
        return _tensors.Entry(_name(tensor.dtype), tuple(tensor.shape), lambda: iter([tensor]))

    def deltas() -> Iterator[Tensor]:
        return (point - threat.origin(x) for x, point in pairs(exact))

    def grains() -> Iterator[Tensor]:
        # Compressed twice, first for the sizes: they stand before the content, which may exceed memory.
        for x, point in pairs(grained):
            packed = b"".join(map(compress, _grains(x, point, threat).numpy()))
            yield torch.frombuffer(bytearray(packed), dtype=torch.uint8)

    entries = {
        "delta": _tensors.Entry("float32", (len(exact), *shape), deltas),
        "id": whole(images.ids[exact].cpu()),
    }
    if grained:
        entries["grain"] = whole(torch.tensor(grain, dtype=torch.float64))
        entries["grains"] = _tensors.Entry("uint8", (sum(sizes),), grains)
        entries["grains_end"] = whole(torch.tensor(sizes).cumsum(0))
        entries["grains_id"] = whole(images.ids[grained].cpu())
    yield from _tensors.encode(entries)


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _grains(x: Tensor, points: Tensor, threat: Threat) -> Tensor:
    """The integer number of grains (M, ...) from origins to points. On the edge of the box it is rounded outwards, and
    clipping gives the edge."""
    step, kind = threat.grain
    low, high = threat.coordinates.low, threat.coordinates.high
    count = (points - threat.origin(x)) / step
    inner = torch.where(points >= high, count.ceil(), count.round())
    count = torch.where(points <= low, count.floor(), inner)
    most = torch.iinfo(kind).max
    return count.clamp(-most, most).to(kind)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).flatten(1).all(1) if len(a) else torch.zeros(0, dtype=torch.bool)


def read_certificates(folder: Path) -> Certificates:
    """The certificates of a record's folder. Perturbations are read on access, from a file that is kept open.

    Raises:
        ResourceError: when the file is missing, damaged or holds other tensors, now or when perturbations are read.
    """
    path = Path(folder) / FILE
    with _readable(path):
        file = shared(open_ordinary(path))
        headers = check_header(file)
        rows = {name: header.rows(file) for name, header in headers.items()}
        ids, grains, grain = _whole(rows["id"]), rows.get("grains"), None
        places = torch.arange(len(ids))
        if "grains_end" in rows:
            ends = _whole(rows["grains_end"]).numpy()
            grains = CompressedRows(rows["grains"], ends, (len(ends), *headers["delta"].shape[1:]))
        if grains is not None:
            grain = float(RowFile(file, (1,), np.float64, headers["grain"].start).read([0])[0])
            ids, places = torch.cat([ids, _whole(rows["grains_id"])]).sort()
    return Certificates(ids, Perturbations(rows["delta"], grains, grain or 0.0, places, path), grain)


def certificates_of(folder: Path, images: Images, threat: Threat) -> Certificates:
    """The certificates of a record's folder, if they belong to these images.

    Raises:
        ResourceError: also when an image is unknown or has two certificates, or when a perturbation has another shape.
    """
    held = read_certificates(folder)
    ids = held.ids.tolist()
    fits = not ids or held.delta.shape[1:] == threat.origin(images.x[:1]).shape[1:]
    if not fits or len(set(ids)) < len(ids) or not set(ids) <= set(images.ids.tolist()):
        raise ResourceError(
            f"{Path(folder) / FILE}: its adversarial examples are not of the record's {len(images)} images: "
            "restore the file, or repeat the run with --fresh"
        )
    return held


def _whole(rows: RowFile) -> Tensor:
    return torch.from_numpy(rows.read(range(len(rows))))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors while a file of certificates is read into a ResourceError of one line."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reason = reason or "damaged or truncated"
        raise ResourceError(f"{path}: {reason}: repeat the run with --fresh, or restore the file") from error
