"""adversarials.safetensors: the perturbations that prove "robust accuracy is at most this".

Anyone can check them by forward passes alone: the verdict holds at clamp(x + delta, 0, 1), or, under a transformation,
at the image that its parameters `delta` make of x. Perturbations of whole grains (`Threat.grain`) are kept as one or
two bytes a number, others as float32.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.core.io import read_ordinary
from robench.data._base import Images
from robench.data._lazy_images import LazyImages
from robench.engine.outcome import Outcome
from robench.records import _tensors
from robench.threats.threat import Threat

FILE = "adversarials.safetensors"
# Images in memory at a time while the file is written.
_PART = 16
_TYPES = {name: kind for kind, name in _tensors.TYPES.items()}
_EXACT = {"delta": (torch.float32, 4), "id": (torch.int64, 1)}
_ROUND = {"grain": (torch.float64, 0), "grains": (None, 4), "grains_id": (torch.int64, 1)}


@dataclass(frozen=True)
class Header:
    """What is said of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Header":
        """Of an entry of the file's own header; KeyError and the like where it is none, or of an unknown type."""
        return cls(_TYPES[entry["dtype"]], tuple(map(int, entry["shape"])))


class Perturbations(LazyImages):
    """Perturbations (M, ...) float32, converted when they are asked for: in memory they are as small as in the file.

    Args:
        exact: (E, ...) float32.
        grains: (G, ...), whole numbers of `step`.
        places: (M,) int64, the row of each in `exact`, or behind it in `grains`.
    """

    def __init__(self, exact: Tensor, grains: Tensor, step: float, places: Tensor):
        super().__init__((len(places), *grains.shape[1:]))
        self._exact, self._grains, self._step, self._places = exact, grains, step, places

    def _read(self, rows: list[int]) -> Tensor:
        places = self._places[rows]
        whole = places >= len(self._exact)
        read = torch.empty(len(rows), *self.shape[1:])
        read[whole] = self._grains[places[whole] - len(self._exact)] * self._step
        if not whole.all():
            read[~whole] = self._exact[places[~whole]]
        return read


@dataclass(frozen=True)
class Certificates:
    """One perturbation for each sample that an attack fooled, or that has a candidate (see `certified`).

    Attributes:
        ids: (M,) int64, in the data set's canonical order.
        delta: (M, C, H, W) float32, or (M, ...) of three more dimensions under a transformation; `LazyImages` where
            some are kept as whole numbers.
        grain: the step of those that are kept as whole numbers; None where none are.
    """

    ids: Tensor
    delta: Tensor | LazyImages
    grain: float | None = None

    def __len__(self) -> int:
        return len(self.ids)


def apply(threat: Threat, x: Tensor, delta: Tensor, ids: Tensor) -> Tensor:
    """The adversarial images of perturbations, (M, C, H, W), for clean images and their ids."""
    return threat.image(x, threat.moved(x, delta), ids)


class Applied(LazyImages):
    """The adversarial images of certificates, made when they are asked for.

    Args:
        x, ids: (N, C, H, W) and (N,), of the whole data set.
        delta: (M, ...), perturbations of its `rows`.
    """

    def __init__(
        self, threat: Threat, x: Tensor | LazyImages, delta: Tensor | LazyImages, ids: Tensor, rows: list[int]
    ):
        super().__init__((len(rows), *x.shape[1:]))
        self._threat, self._x, self._delta, self._ids, self._rows = threat, x, delta, ids, rows

    def points(self, places: list[int]) -> Tensor:
        """What some of the images stand for in the threat's coordinates, (K, ...)."""
        return self._threat.moved(self._x[[self._rows[i] for i in places]], self._delta[places])

    def _read(self, rows: list[int]) -> Tensor:
        chosen = [self._rows[i] for i in rows]
        return self._threat.image(self._x[chosen], self.points(rows), self._ids[chosen])


def is_attacked(fooled_by: str) -> bool:
    """Whether an attack, and not the clean image or its noise, fooled this sample."""
    return fooled_by not in ("", "clean", "noise")


def certified(fooled_by: Sequence[str], distance: Sequence[float], randomised: bool) -> list[int]:
    """The samples that have a certificate, in order: those that an attack fooled, and of a randomised defense those
    whose candidate is judged, even where it fails none of the fresh draws."""
    rows = zip(fooled_by, distance, strict=True)
    return [i for i, (name, far) in enumerate(rows) if is_attacked(name) or (randomised and far > 0)]


def encode(outcome: Outcome, images: Images, threat: Threat) -> Iterator[bytes]:
    """The file for an outcome, piece by piece: the same bytes for the same images.

    Raises:
        ValueError: when an adversarial point is not reached by adding its perturbation, bit for bit; the
            engine owes that, since the verdict was given there and the record keeps the perturbation.
    """
    rows = certified(outcome.fooled_by, outcome.distance.tolist(), outcome.of_draws > 1)
    points = outcome.x_adv if outcome.points is None else outcome.points

    def pairs(chosen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(chosen), _PART):
            part = chosen[start : start + _PART]
            yield images.x[part].cpu(), points[part].cpu()

    step, kind = threat.grain
    whole, missed = [], []
    for x, point in pairs(rows):
        fits = _same(threat.moved(x, _grains(x, point, threat) * step), point)
        whole += fits.tolist()
        missed += (~fits & ~_same(threat.moved(x, point - threat.origin(x)), point)).tolist()
    if any(missed):
        first = int(images.ids[rows[missed.index(True)]])
        raise ValueError(
            f"{sum(missed)} adversarial points (sample {first} first) are not clamp(x + delta, 0, 1): "
            "the engine must judge the image that the perturbation gives"
        )
    exact, round_ = ([i for i, fits in zip(rows, whole, strict=True) if fits == how] for how in (False, True))
    shape = tuple(points.shape[1:])

    def ids(chosen: list[int]) -> _tensors.Entry:
        return _tensors.Entry(torch.int64, (len(chosen),), lambda: iter([images.ids[chosen].cpu()]))

    entries = {
        "delta": _tensors.Entry(
            torch.float32,
            (len(exact), *shape),
            lambda: (point - threat.origin(x) for x, point in pairs(exact)),
        ),
        "id": ids(exact),
    }
    if round_:
        entries["grain"] = _tensors.Entry(
            torch.float64, (), lambda: iter([torch.tensor(step, dtype=torch.float64)])
        )
        entries["grains"] = _tensors.Entry(
            kind, (len(round_), *shape), lambda: (_grains(x, point, threat) for x, point in pairs(round_))
        )
        entries["grains_id"] = ids(round_)
    yield from _tensors.encode(entries)


def _grains(x: Tensor, points: Tensor, threat: Threat) -> Tensor:
    """How many grains lie between origins and points, integers (M, ...); where a number is clipped enough to reach
    the box's edge."""
    step, kind = threat.grain
    low, high = threat.coordinates.low, threat.coordinates.high
    count = (points - threat.origin(x)) / step
    count = torch.where(
        points <= low, count.floor(), torch.where(points >= high, count.ceil(), count.round())
    )
    most = torch.iinfo(kind).max
    return count.clamp(-most, most).to(kind)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).flatten(1).all(1) if len(a) else torch.zeros(0, dtype=torch.bool)


def read_certificates(folder: Path) -> Certificates:
    """The certificates of a record's folder.

    Raises:
        ResourceError: when the file is missing, damaged or holds other tensors.
    """
    path = Path(folder) / FILE
    mend = "repeat the run with --fresh, or restore the file"
    try:
        tensors = load(read_ordinary(path))
    except OSError as error:
        raise ResourceError(f"{path}: {error.strerror or error}: {mend}") from error
    except SafetensorError as error:
        raise ResourceError(f"{path}: damaged or truncated: {mend}") from error
    try:
        _check({name: Header(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    except ValueError as error:
        raise ResourceError(f"{path}: {error}: {mend}") from None
    ids, delta, grain = tensors["id"], tensors["delta"], None
    if "grains" in tensors:
        grain = float(tensors["grain"])
        ids, places = torch.cat([ids, tensors["grains_id"]]).sort()
        delta = Perturbations(delta, tensors["grains"], grain, places)
    return Certificates(ids, delta, grain)


def tensor_names(folder: Path) -> tuple[str, ...]:
    """The names of the tensors in a record's folder; none where the file cannot be read."""
    try:
        with safe_open(Path(folder) / FILE, "pt") as file:
            return tuple(sorted(file.keys()))
    except (OSError, SafetensorError):
        return ()


def check_header(file: BinaryIO) -> None:
    """Hold the tensors that a file names against those of certificates; what is in them is not read.

    Raises:
        ValueError: in one line, when it is truncated, damaged or holds other tensors.
        OSError: when it cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, strict_json.LONGEST):
        raise ValueError("damaged or truncated")
    header = strict_json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("damaged or truncated")
    header.pop("__metadata__", None)
    try:
        found = {name: Header.of(entry) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("damaged or of other types of tensors") from None
    _check(found)
    if 8 + length + end != size:
        raise ValueError("damaged or truncated")


def _check(tensors: Mapping[str, Header]) -> None:
    """Refuse tensors that are not those of certificates, or of which one counts more samples than another."""
    expected = _EXACT | (_ROUND if "grains" in tensors else {})
    fits = set(tensors) == set(expected) and all(
        len(tensors[name].shape) == dim and tensors[name].dtype == (kind or tensors[name].dtype)
        for name, (kind, dim) in expected.items()
    )
    if not fits or not _counts_fit(tensors):
        shown = {name: (each.shape, str(each.dtype)) for name, each in sorted(tensors.items())[:8]}
        raise ValueError(
            "expected delta (M, C, H, W) float32 and id (M,) int64, perhaps grains of one or two bytes, "
            f"found {str(shown)[:400]}"
        )


def _counts_fit(tensors: Mapping[str, Header]) -> bool:
    if len(tensors["delta"]) != len(tensors["id"]):
        return False
    if "grains" not in tensors:
        return True
    grains = tensors["grains"]
    alike = not len(tensors["delta"]) or tensors["delta"].shape[1:] == grains.shape[1:]
    return alike and grains.dtype in (torch.int8, torch.int16) and len(grains) == len(tensors["grains_id"])
