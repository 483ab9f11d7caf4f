"""Threat models: the set of images an attacker may choose from, written `Linf:8/255` or `fog:0.4`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from robench.core import registry, specs
from robench.core.errors import UsageError, unknown_name
from robench.threats.coordinates import PIXELS, Coordinates

NORMS = ("Linf", "L2", "L1", "L0", "patch")
# What is counted, not measured: their radii are whole numbers.
COUNTED = ("L0", "patch")
# What stands for the threat of a run that has no adversary.
NO_THREAT = "none"

_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Characters of a threat, and of a number in it; digits of an exponent, for exact arithmetic writes out all its zeros.
_LONGEST, _LONGEST_NUMBER, _EXPONENT = 1000, 64, 3


def rownorm(delta: Tensor, norm: str) -> Tensor:
    """The norm of each row of `delta`, shape (N, ...) -> (N,), in `delta`'s dtype.

    L0 counts the pixels (N, C, H, W) that differ in any channel; `patch` is the side of the smallest upright square
    that holds them all.
    """
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(1)
    if norm == "L2":
        return flat.square().sum(1).sqrt()
    if norm == "L1":
        return flat.abs().sum(1)
    if norm == "L0":
        return delta.ne(0).any(1).flatten(1).sum(1).to(delta.dtype)
    if norm == "patch":
        changed = delta.ne(0).any(1)
        return torch.maximum(_extent(changed.any(2)), _extent(changed.any(1))).to(delta.dtype)
    raise UsageError(f'unknown norm "{norm}": expected one of {", ".join(NORMS)}')


def _extent(hit: Tensor) -> Tensor:
    """From the first true entry of each row (N, L) to the last, counted; 0 where there is none."""
    place = torch.arange(1, hit.shape[1] + 1, device=hit.device)
    last = (hit * place).amax(1)
    first = torch.where(hit, place, hit.shape[1] + 1).amin(1)
    return (last - first + 1).clamp_min(0)


def whole(norm: str, channels: int, height: int, width: int) -> float:
    """How far the two images of that shape that differ most are: from black to white."""
    values = channels * height * width
    most = {
        "Linf": 1,
        "L2": math.sqrt(values),
        "L1": values,
        "L0": height * width,
        "patch": max(height, width),
    }
    return most[norm]


def radius_text(eps: float) -> str:
    """One text for each radius: a whole number, grey levels ("8/255"), a simple fraction, or a decimal number.

    `float` of the text (or of its fraction) is `eps` again, to the last bit.
    """
    if eps.is_integer() and eps < 1e15:
        return str(int(eps))
    simple = Fraction(eps).limit_denominator(1000)
    if simple and float(simple) == eps:
        decimal = simple.denominator
        for prime in (2, 5):
            while decimal % prime == 0:
                decimal //= prime
        if decimal % 17 == 0 and 255 % simple.denominator == 0:
            return f"{simple.numerator * 255 // simple.denominator}/255"
        if decimal > 1:
            return f"{simple.numerator}/{simple.denominator}"
    return re.sub(r"e([+-])0*", r"e\1", repr(eps))


@dataclass(frozen=True)
class Threat:
    """All images within `eps` of the clean one in `norm`, and inside [0, 1].

    Where `coordinates` are a transformation, all images that it makes of the clean one by parameters within `eps` of
    none in `norm`, and inside its box.

    Attributes:
        norm: "Linf", "L2", "L1", "L0" (changed pixels) or "patch" (side of a square that holds them).
        eps: the radius, in units of [0, 1] pixels, counted pixels, or the transformation's own.
        text: the radius as it is printed, "8/255" say: one text for one number, however it was written.
        name: the transformation's canonical spec; empty for none.
        coordinates: what a point of the set is.
    """

    norm: str
    eps: float
    text: str
    name: str = ""
    coordinates: Coordinates = PIXELS
    from_text: ClassVar[bool] = True

    @classmethod
    def parse(cls, spec: "str | Threat") -> "Threat":
        """Read `NORM:RADIUS` or `TRANSFORMATION:RADIUS`, the radius a number or a fraction.

        Raises:
            UsageError: for an unknown norm or transformation, or a radius that is not a finite number above 0; and
                for a text of more than 1000 characters, or a number of more than 64 or with a longer exponent than 999.
        """
        if isinstance(spec, Threat):
            return spec
        if not isinstance(spec, str):
            raise UsageError(f"threat={_shown(spec)}: expected NORM:RADIUS as text, such as {_written(spec)}")
        if len(spec) > _LONGEST:
            raise UsageError(f"a threat has {len(spec)} characters: expected at most {_LONGEST}")
        name, colon, radius = (part.strip() for part in spec.rpartition(":"))
        help_text = (
            "expected NORM:RADIUS such as Linf:8/255, L2:0.5 or L1:12, or a transformation such as fog:0.4"
        )
        if not colon:
            raise UsageError(f'malformed threat "{spec}": {help_text}')
        parts = [part.strip() for part in radius.split("/")]
        if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
            raise UsageError(f'malformed radius "{radius}" in threat "{spec}": {help_text}')
        if not all(_is_short(part) for part in parts):
            raise UsageError(
                f"a number in the radius of a threat has more than {_LONGEST_NUMBER} characters, or an exponent of "
                f"more than {_EXPONENT} digits: {help_text}"
            )
        denominator = Fraction(parts[1]) if len(parts) == 2 else Fraction(1)
        try:
            eps = float(Fraction(parts[0]) / denominator)
        except (OverflowError, ZeroDivisionError):
            eps = math.inf
        if not 0 < eps < math.inf:
            raise UsageError(f'radius of threat "{spec}" is {eps:g}: expected a finite number above 0')
        text = radius_text(eps)
        norms = {each.lower(): each for each in NORMS}
        if norm := norms.get(name.lower()):
            if norm in COUNTED and not eps.is_integer():
                raise UsageError(
                    f'radius of threat "{spec}" is {eps:g}: {norm} counts, expected a whole number'
                )
            return cls(norm, eps, text)
        built, canonical = _transformation(name, spec, help_text)
        return cls(built.norm, eps, text, canonical, built)

    @property
    def kind(self) -> str:
        """What it is without its radius: the norm, or the transformation."""
        return self.name or self.norm

    def __str__(self) -> str:
        return f"{self.kind}:{self.text}"

    def origin(self, x: Tensor) -> Tensor:
        """The point of each image (N, C, H, W) that an attack starts around: the image, or no parameters."""
        return self.coordinates.origin(x)

    def moved(self, x: Tensor, delta: Tensor) -> Tensor:
        """The point `delta` away from the origin, clipped to the box."""
        return (self.origin(x) + delta).clamp(self.coordinates.low, self.coordinates.high)

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        """The image of each point, (N, C, H, W); `sample` (N,) are the indices of the images in their data set."""
        return self.coordinates.image(x, point, sample)

    def distance(self, x: Tensor, point: Tensor) -> Tensor:
        """How far each point is from the origin in this norm, float64, shape (N,)."""
        return rownorm(point.double() - self.origin(x).double(), self.norm)

    @property
    def reach(self) -> float:
        """The largest distance that counts as inside: a millionth of the radius above it, in every norm.

        In Linf a unit in the last place of a pixel near 1 comes on top (2**-24): single precision has no number nearer
        to x + eps, and at 4/255 that alone is 4e-6 of the radius.
        """
        return self.eps * (1 + 1e-6) + (2**-24 if self.norm == "Linf" else 0.0)

    @property
    def slack(self) -> float:
        """How far beyond `reach` single precision may put a point of a search under a small radius; `rounded` and
        `as_recorded` bring such a point back."""
        return 1e-5 * self.eps if self.norm in ("L2", "L1") else 0.0

    def contains(self, x: Tensor, point: Tensor, slack: float = 0.0) -> Tensor:
        """Which points an attacker may use, bool, shape (N,): within `reach` and `slack` beyond, and in the box."""
        flat = point.flatten(1)
        # Most points that are outside are far outside: single precision sees that at half the price.
        near = rownorm(point - self.origin(x), self.norm) <= self.eps * (1 + 1e-3) + 1e-5
        inside = near & (flat.amin(1) >= self.coordinates.low) & (flat.amax(1) <= self.coordinates.high)
        rows = inside.nonzero()[:, 0]
        if len(rows):
            inside[rows] = self.distance(x[rows], point[rows]) <= self.reach + slack
        return inside

    @property
    def grain(self) -> tuple[float, torch.dtype]:
        """The step in which points are kept where that does no harm, and the integers that count it.

        In Linf 127 steps reach the radius, so that a pixel is a byte; a pixel of an L2 or L1 ball is mostly a small
        part of the radius, and takes two. Where pixels are counted, 127 steps reach from black to white.
        """
        if self.norm in COUNTED:
            return 1 / 127, torch.int8
        return (self.eps / 127, torch.int8) if self.norm == "Linf" else (self.eps / 32767, torch.int16)

    def rounded(self, x: Tensor, point: Tensor) -> Tensor:
        """The points of whole grains nearest to `point`, in the box; where the nearest one would leave the ball, the
        next one towards the origin.

        Only in L2 and L1 can it leave: in Linf the radius is a whole number of grains, and changed pixels are counted
        whatever their values.
        """
        nearest = self._grained(x, point, torch.round)
        if self.norm not in ("L2", "L1"):
            return nearest
        outside = (self.distance(x, nearest) > self.eps).view(-1, *[1] * (point.dim() - 1))
        return torch.where(outside, self._grained(x, point, torch.trunc), nearest)

    def _grained(self, x: Tensor, point: Tensor, to_whole: Callable[[Tensor], Tensor]) -> Tensor:
        step, kind = self.grain
        most = torch.iinfo(kind).max
        return self.moved(x, to_whole((point - self.origin(x)) / step).clamp(-most, most) * step)

    def as_recorded(self, x: Tensor, point: Tensor) -> Tensor:
        """The point that a record gives back: the origin, and what leads from it to `point`, clipped to the box.

        Done twice, for the first time may end on a tie of rounding: then it gives back itself, bit for bit.
        """
        origin, delta = self.origin(x), point - self.origin(x)
        if self.slack:
            distance = self.distance(x, point)
            strays = (distance > self.reach) & (distance <= self.reach + self.slack)
            delta = torch.where(strays.view(-1, *[1] * (point.dim() - 1)), delta * (1 - 2e-5), delta)
        once = self.moved(x, delta)
        return self.moved(x, once - origin)

    def clip(self, delta: Tensor) -> Tensor:
        """Scale or clamp each row of `delta` into the ball around 0 (the box is not applied).

        Linf clamps, L2 scales (both are Euclidean projections); L1 scales towards 0.

        Raises:
            UsageError: in L0 and for patches, which no scaling reaches.
        """
        if self.norm in COUNTED:
            raise UsageError(f"{self} cannot be clipped to: it counts pixels")
        if self.norm == "Linf":
            return delta.clamp(-self.eps, self.eps)
        size = rownorm(delta, self.norm).clamp_min(1e-12)
        factor = (self.eps / size).clamp_max(1.0)
        return delta * factor.view(-1, *[1] * (delta.dim() - 1))


def _is_short(number: str) -> bool:
    exponent = number.lower().partition("e")[2].lstrip("+-0")
    return len(number) <= _LONGEST_NUMBER and len(exponent) <= _EXPONENT


def _shown(value: Any) -> str:
    """A value that is no threat, in one short line."""
    return " ".join(repr(value).split())[:80]


def _written(value: Any) -> str:
    """How a threat is written that was given as a radius, or as a norm and a radius."""
    norm, radius = value if isinstance(value, tuple | list) and len(value) == 2 else ("Linf", value)
    number = isinstance(radius, int | float) and not isinstance(radius, bool) and 0 < radius < math.inf
    return f'"{norm}:{radius!r}"' if number and norm in NORMS else '"Linf:8/255"'


def _transformation(name: str, spec: str, help_text: str):
    """The transformation that a threat names, and its canonical spec."""
    # Imported late, for its names in the registry: norms need none of it.
    import robench.threats.transformations  # noqa: F401

    try:
        parsed = specs.parse(name)
    except UsageError as error:
        raise UsageError(f'malformed threat "{spec}": {help_text}') from error
    if parsed.name not in registry.transformations:
        raise UsageError(
            f"{unknown_name('norm or transformation', name, {*NORMS, *registry.transformations})}; {help_text}"
        )
    builder = registry.transformations.get(parsed.name)
    built = specs.build(parsed, builder)
    return built, str(specs.canonical(parsed, builder))


def check_images(x: Any, y: Tensor, num_classes: int | None = None) -> None:
    """Refuse images and labels that no attack could be run on.

    Args:
        x: (N, C, H, W) float32 in [0, 1]; or what is indexed as such a tensor, whose values are then bytes / 255 and
            are not looked at.
        y: (N,) integer labels in 0 .. num_classes - 1.

    Raises:
        UsageError: naming the first thing that is wrong and where.
    """
    if len(x.shape) != 4:
        advice = ": for a single image, give x[None]" if len(x.shape) == 3 else ""
        raise UsageError(f"images have shape {tuple(x.shape)}: expected (N, C, H, W){advice}")
    if x.dtype != torch.float32:
        raise UsageError(f"images are {x.dtype}: expected torch.float32 in [0, 1]")
    if len(x) == 0:
        raise UsageError("no images were given: expected at least one")
    if y.dim() != 1 or len(y) != len(x):
        raise UsageError(f"labels have shape {tuple(y.shape)}: expected ({len(x)},), one an image")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise UsageError(f"labels are {y.dtype}: expected integers")
    if isinstance(x, Tensor):
        _check_values(x)
    low_label, high_label = int(y.min()), int(y.max())
    if low_label < 0 or (num_classes is not None and high_label >= num_classes):
        expected = "0 and above" if num_classes is None else f"0..{num_classes - 1}"
        raise UsageError(f"labels lie in {low_label}..{high_label}: expected {expected}")


def _check_values(x: Tensor) -> None:
    bad = (~torch.isfinite(x.flatten(1))).any(1).nonzero()
    if len(bad):
        raise UsageError(f"image {int(bad[0])} has NaN or infinite pixels ({len(bad)} of {len(x)} images do)")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        advice = (
            "undo the normalisation: it belongs into the model" if low < 0 else "divide 8-bit images by 255"
        )
        raise UsageError(f"pixels lie in [{low:.9g}, {high:.9g}]: expected [0, 1] ({advice})")


def same_threat(one: str, other: str) -> bool:
    """Whether two texts mean one threat; "none", where no adversary is at work, means itself alone."""
    try:
        return one == other or Threat.parse(one) == Threat.parse(other)
    except UsageError:
        return False
