"""Threat models: the set of images an attacker may choose from, written as `Linf:8/255` or `fog:0.4`.

Protocols and suites are listed without torch, so torch is imported where it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from robench.core import registry, specs
from robench.core.errors import UsageError, unknown_name
from robench.threats.coordinates import PIXELS, Coordinates

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NORMS = ("Linf", "L2", "L1", "L0", "patch")
# Norms that count pixels; their radii are whole numbers.
COUNTED = ("L0", "patch")
# The threat of a run without an adversary.
NO_THREAT = "none"

_EXPECTED = "expected NORM:RADIUS such as Linf:8/255, L2:0.5 or L1:12, or a transformation such as fog:0.4"
_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Maximum length of a threat, of a number in it and of an exponent. Exact arithmetic writes out all zeros of a number.
_MAX_LENGTH, _MAX_NUMBER, _MAX_EXPONENT = 1000, 64, 3


def rownorm(delta: Tensor, norm: str) -> Tensor:
    """The norm of each row of `delta`, shape (N, ...) -> (N,), in `delta`'s dtype.

    L0 counts the pixels of (N, C, H, W) that differ in any channel; `patch` is the side of the smallest axis-aligned
    square that contains them.

    Raises:
        UsageError: if the norm is unknown.
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
        import torch

        changed = delta.ne(0).any(1)
        return torch.maximum(_extent(changed.any(2)), _extent(changed.any(1))).to(delta.dtype)
    raise UsageError(f'unknown norm "{norm}": expected one of {", ".join(NORMS)}')


def _extent(mask: Tensor) -> Tensor:
    """The number of entries of each row (N, L) from the first true entry to the last; 0 if there is none."""
    import torch

    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * positions).amax(1)
    first = torch.where(mask, positions, mask.shape[1] + 1).amin(1)
    return (last - first + 1).clamp_min(0)


def largest_distance(norm: str, channels: int, height: int, width: int) -> float:
    """The largest possible distance between two images of this shape: from black to white."""
    values = channels * height * width
    sides = {"L0": height * width, "patch": max(height, width)}
    return {"Linf": 1, "L2": math.sqrt(values), "L1": values, **sides}[norm]


def radius_text(eps: float) -> str:
    """The canonical text of a radius: a whole number, gray levels ("8/255"), a simple fraction, or a decimal number.

    Evaluating the text in float64 gives exactly `eps`.
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
    """All images in [0, 1] within distance `eps` of the clean image in `norm`.

    If `coordinates` is a transformation: all images that it produces from the clean image with parameters inside its
    box and of norm at most `eps`.

    Attributes:
        norm: "Linf", "L2", "L1", "L0" (number of changed pixels) or "patch" (side of a square that contains them).
        eps: the radius, in [0, 1] pixel values, numbers of pixels, or the unit of the transformation.
        text: the radius in canonical form, such as "8/255".
        name: canonical spec of the transformation; empty for none.
        given: the transformation, if it is already built.
    """

    norm: str
    eps: float
    text: str
    name: str = ""
    given: Coordinates | None = field(default=None, compare=False)
    from_text: ClassVar[bool] = True

    @classmethod
    def parse(cls, spec: str | Threat, late: bool = False) -> Threat:
        """Parse `NORM:RADIUS` or `TRANSFORMATION:RADIUS`, where the radius is a number or a fraction.

        Args:
            late: build the transformation on first use, when the values of its arguments are validated.

        Raises:
            UsageError: if the norm or transformation is unknown, the radius is not a finite number above 0, the text
                has more than 1000 characters, a number more than 64, or an exponent more than three digits.
        """
        if isinstance(spec, Threat):
            return spec
        if not isinstance(spec, str):
            shown = " ".join(repr(spec).split())[:80]
            raise UsageError(f"threat={shown}: expected NORM:RADIUS as text, such as {_suggestion(spec)}")
        if len(spec) > _MAX_LENGTH:
            raise UsageError(f"a threat has {len(spec)} characters: expected at most {_MAX_LENGTH}")
        name, colon, radius = (part.strip() for part in spec.rpartition(":"))
        if not colon:
            raise UsageError(f'malformed threat "{spec}": {_EXPECTED}')
        parts = [part.strip() for part in radius.split("/")]
        if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
            raise UsageError(f'malformed radius "{radius}" in threat "{spec}": {_EXPECTED}')
        if not all(_is_short(part) for part in parts):
            raise UsageError(
                f"a number in the radius of a threat has more than {_MAX_NUMBER} characters, or an exponent of "
                f"more than {_MAX_EXPONENT} digits: {_EXPECTED}"
            )
        denominator = Fraction(parts[1]) if len(parts) == 2 else Fraction(1)
        try:
            eps = float(Fraction(parts[0]) / denominator)
        except (OverflowError, ZeroDivisionError):
            eps = math.inf
        if not 0 < eps < math.inf:
            raise UsageError(f'radius of threat "{spec}" is {eps:g}: expected a finite number above 0')
        text = radius_text(eps)
        norms = {norm.lower(): norm for norm in NORMS}
        if norm := norms.get(name.lower()):
            if norm in COUNTED and not eps.is_integer():
                raise UsageError(
                    f'radius of threat "{spec}" is {eps:g}: {norm} counts, expected a whole number'
                )
            return cls(norm, eps, text)
        transformation = _spec(name, spec)
        if late and (described := _from_description(transformation)):
            return cls(described[0], eps, text, str(described[1]))
        builder = registry.transformations.get(transformation.name)
        built = specs.build(transformation, builder)
        return cls(built.norm, eps, text, str(specs.canonical(transformation, builder)), built)

    @cached_property
    def coordinates(self) -> Coordinates:
        """The space that contains the threat's ball."""
        if self.given is not None or not self.name:
            return self.given or PIXELS
        transformation = specs.parse(self.name)
        return specs.build(transformation, registry.transformations.get(transformation.name))

    @property
    def kind(self) -> str:
        """The threat without its radius: the norm, or the transformation."""
        return self.name or self.norm

    def __str__(self) -> str:
        return f"{self.kind}:{self.text}"

    def origin(self, x: Tensor) -> Tensor:
        """The center of the ball for each image (N, C, H, W): the image, or parameters of no change."""
        return self.coordinates.origin(x)

    def moved(self, x: Tensor, delta: Tensor) -> Tensor:
        """The origin plus `delta`, clipped to the box."""
        return (self.origin(x) + delta).clamp(self.coordinates.low, self.coordinates.high)

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        """The image of each point, (N, C, H, W); `sample` (N,) holds the index of each image in its dataset."""
        return self.coordinates.image(x, point, sample)

    def distance(self, x: Tensor, point: Tensor) -> Tensor:
        """The distance of each point from the origin in this norm, float64, shape (N,)."""
        return rownorm(point.double() - self.origin(x).double(), self.norm)

    @property
    def reach(self) -> float:
        """The largest distance that counts as inside: one millionth above the radius, in every norm.

        Linf allows a further 2**-24, half a unit in the last place of a float32 pixel near 1: x + eps has no closer
        float32 value, and at 4/255 this alone is 4e-6 of the radius.
        """
        return self.eps * (1 + 1e-6) + (2**-24 if self.norm == "Linf" else 0.0)

    @property
    def slack(self) -> float:
        """How far float32 rounding may move a point of a search with a small radius beyond `reach`; `rounded` and
        `as_recorded` bring such points back."""
        return 1e-5 * self.eps if self.norm in ("L2", "L1") else 0.0

    def contains(
        self, x: Tensor, point: Tensor, slack: float = 0.0, distance: Tensor | None = None
    ) -> Tensor:
        """Which points are inside the box and within `reach + slack` of the origin, bool, shape (N,).

        Args:
            distance: the distance of each point, if known.
        """
        if distance is None and x.device.type != "cpu":
            # The host would wait for the number of points.
            distance = self.distance(x, point)
        if distance is not None:
            return self._in_box(point) & (distance <= self.reach + slack)
        # Most points outside are far outside, which float32 detects at a fraction of the cost.
        inside = rownorm(point - self.origin(x), self.norm) <= self.eps * (1 + 1e-3) + 1e-5
        near = inside.nonzero()[:, 0]
        if len(near):
            inside[near] = self._in_box(point[near])
            rows = inside.nonzero()[:, 0]
            inside[rows] = self.distance(x[rows], point[rows]) <= self.reach + slack
        return inside

    def _in_box(self, point: Tensor) -> Tensor:
        flat = point.flatten(1)
        return (flat.amin(1) >= self.coordinates.low) & (flat.amax(1) <= self.coordinates.high)

    @property
    def grain(self) -> tuple[float, torch.dtype]:
        """The step to which stored perturbations are quantized, and the integer type that counts the steps.

        In Linf, 127 steps are the radius, so that a pixel takes one byte. In L2 and L1, a pixel is usually a small part
        of the radius and takes two bytes. In L0 and for patches, 127 steps reach from black to white.
        """
        import torch

        if self.norm in COUNTED:
            return 1 / 127, torch.int8
        return (self.eps / 127, torch.int8) if self.norm == "Linf" else (self.eps / 32767, torch.int16)

    def rounded(self, x: Tensor, point: Tensor) -> Tensor:
        """Round `point` to whole steps of `grain`, inside the box; if the nearest such point is outside the ball, round
        it towards the origin.

        Only L2 and L1 need this: in Linf the radius is a whole number of steps, and norms that count pixels do not
        depend on their values.
        """
        import torch

        nearest = self._quantised(x, point, torch.round)
        if self.norm not in ("L2", "L1"):
            return nearest
        outside = (self.distance(x, nearest) > self.eps).view(-1, *[1] * (point.dim() - 1))
        return torch.where(outside, self._quantised(x, point, torch.trunc), nearest)

    def _quantised(self, x: Tensor, point: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        import torch

        step, dtype = self.grain
        limit = torch.iinfo(dtype).max
        return self.moved(x, rounding((point - self.origin(x)) / step).clamp(-limit, limit) * step)

    def as_recorded(self, x: Tensor, point: Tensor) -> Tensor:
        """The point restored from a record: the origin plus the perturbation to `point`, clipped to the box.

        Applied twice because the first pass may end on a rounding tie; the result then restores itself bit for bit.
        """
        origin, delta = self.origin(x), point - self.origin(x)
        if self.slack and self._may_be_outside(delta):
            distance = self.distance(x, point)
            outside = (distance > self.reach) & (distance <= self.reach + self.slack)
            delta = (delta * (1 - 2e-5)).where(outside.view(-1, *[1] * (point.dim() - 1)), delta)
        once = self.moved(x, delta)
        return self.moved(x, once - origin)

    def _may_be_outside(self, delta: Tensor) -> bool:
        """Whether any point may lie between `reach` and `reach + slack`; on devices other than a CPU always."""
        size = rownorm(delta, self.norm)
        close = (size >= self.reach * (1 - 1e-4)) & (size <= (self.reach + self.slack) * (1 + 1e-4))
        return delta.device.type != "cpu" or bool(close.any())

    def clip(self, delta: Tensor) -> Tensor:
        """Scale or clamp each row of `delta` into the ball around 0 (the box is not applied).

        Linf clamps and L2 scales, which are Euclidean projections; L1 scales towards 0.

        Raises:
            UsageError: for L0 and patches, because scaling does not reduce a number of pixels.
        """
        if self.norm in COUNTED:
            raise UsageError(f"a perturbation cannot be clipped to {self}, which counts pixels")
        if self.norm == "Linf":
            return delta.clamp(-self.eps, self.eps)
        size = rownorm(delta, self.norm).clamp_min(1e-12)
        factor = (self.eps / size).clamp_max(1.0)
        return delta * factor.view(-1, *[1] * (delta.dim() - 1))


def _is_short(number: str) -> bool:
    exponent = number.lower().partition("e")[2].lstrip("+-0")
    return len(number) <= _MAX_NUMBER and len(exponent) <= _MAX_EXPONENT


def _suggestion(value: Any) -> str:
    """The threat as text if the value is a radius, or a norm and a radius; else an example."""
    norm, radius = value if isinstance(value, tuple | list) and len(value) == 2 else ("Linf", value)
    valid = isinstance(radius, int | float) and not isinstance(radius, bool) and 0 < radius < math.inf
    return f'"{norm}:{radius!r}"' if valid and norm in NORMS else '"Linf:8/255"'


def _spec(name: str, threat: str) -> specs.Spec:
    """Parse the spec of a threat's transformation."""
    try:
        spec = specs.parse(name)
    except UsageError as error:
        raise UsageError(f'malformed threat "{threat}": {_EXPECTED}') from error
    if spec.name not in registry.transformations:
        unknown = unknown_name("norm or transformation", name, {*NORMS, *registry.transformations})
        raise UsageError(f"{unknown}; {_EXPECTED}")
    return spec


def _from_description(spec: specs.Spec) -> tuple[str, specs.Spec] | None:
    """The norm and the canonical spec of a transformation, from the description in the registry.

    None if the description has no norm, or the spec has an unknown argument.
    """
    description = registry.transformations.describe(spec.name)
    norm, defaults = description.facts.get("norm"), description.defaults
    if not norm or not spec.arguments.keys() <= defaults.keys():
        return None
    return norm, specs.without(spec, **defaults)


def check_images(x: Any, y: Tensor, num_classes: int | None = None) -> None:
    """Check that images and labels can be attacked.

    Args:
        x: (N, C, H, W) float32 in [0, 1]; or `LazyImages`, whose values are bytes / 255 and are not checked.
        y: (N,) integer labels in 0 .. num_classes - 1.

    Raises:
        UsageError: if they cannot; the message describes the first problem.
    """
    import torch

    if len(x.shape) != 4:
        advice = ": for a single image, give x[None]" if len(x.shape) == 3 else ""
        raise UsageError(f"images have shape {tuple(x.shape)}: expected (N, C, H, W){advice}")
    if x.dtype != torch.float32:
        raise UsageError(f"images are {x.dtype}: expected torch.float32 in [0, 1]")
    if len(x) == 0:
        raise UsageError("no images were given: expected at least one")
    if y.dim() != 1 or len(y) != len(x):
        raise UsageError(f"labels have shape {tuple(y.shape)}: expected ({len(x)},), one per image")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise UsageError(f"labels are {y.dtype}: expected integers")
    if isinstance(x, torch.Tensor):
        _check_values(x)
    low_label, high_label = int(y.min()), int(y.max())
    if low_label < 0 or (num_classes is not None and high_label >= num_classes):
        expected = "0 and above" if num_classes is None else f"0..{num_classes - 1}"
        raise UsageError(f"labels lie in {low_label}..{high_label}: expected {expected}")


def _check_values(x: Tensor) -> None:
    nonfinite = (~x.flatten(1).isfinite()).any(1).nonzero()
    if len(nonfinite):
        count = f"{len(nonfinite)} of {len(x)} images do"
        raise UsageError(f"image {int(nonfinite[0])} has NaN or infinite pixels ({count})")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        normalised = "undo the normalization, which belongs in the model"
        advice = normalised if low < 0 else "divide 8-bit images by 255"
        raise UsageError(f"pixels lie in [{low:.9g}, {high:.9g}]: expected [0, 1] ({advice})")


def same_threat(first: str, second: str) -> bool:
    """Whether two texts denote the same threat; "none", for no adversary, equals only itself."""
    try:
        return first == second or Threat.parse(first, late=True) == Threat.parse(second, late=True)
    except UsageError:
        return False
