"""Threat models: the set of images an attacker may choose from, written `Linf:8/255`."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robench.errors import UsageError

NORMS = ("Linf", "L2", "L1")
_NUMBER = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?")


def rownorm(delta: Tensor, norm: str) -> Tensor:
    """The norm of each row of `delta`, shape (N, ...) -> (N,), in `delta`'s dtype."""
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(1)
    if norm == "L2":
        return flat.square().sum(1).sqrt()
    if norm == "L1":
        return flat.abs().sum(1)
    raise UsageError(f'unknown norm "{norm}": expected one of {", ".join(NORMS)}')


@dataclass(frozen=True)
class Threat:
    """All images within `eps` of the clean one in `norm`, and inside [0, 1].

    Attributes:
        norm: "Linf", "L2" or "L1".
        eps: the radius, in units of [0, 1] pixels.
        text: the radius as it was written, "8/255" say; it is what is printed.
    """

    norm: str
    eps: float
    text: str

    @classmethod
    def parse(cls, spec: "str | Threat") -> "Threat":
        """Read `NORM:RADIUS`, the radius a number or a fraction.

        Raises:
            UsageError: for an unknown norm, or a radius that is not a finite number above 0.
        """
        if isinstance(spec, Threat):
            return spec
        norm, colon, radius = spec.strip().partition(":")
        help_text = "expected NORM:RADIUS such as Linf:8/255, L2:0.5 or L1:12"
        if not colon:
            raise UsageError(f'malformed threat "{spec}": {help_text}')
        names = {name.lower(): name for name in NORMS}
        if norm.strip().lower() not in names:
            raise UsageError(f'unknown norm "{norm.strip()}" in threat "{spec}": {help_text}')
        parts = [part.strip() for part in radius.split("/")]
        if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
            raise UsageError(f'malformed radius "{radius.strip()}" in threat "{spec}": {help_text}')
        denominator = Fraction(parts[1]) if len(parts) == 2 else Fraction(1)
        try:
            eps = float(Fraction(parts[0]) / denominator)
        except (OverflowError, ZeroDivisionError):
            eps = math.inf
        if not 0 < eps < math.inf:
            raise UsageError(f'radius of threat "{spec}" is {eps:g}: expected a finite number above 0')
        return cls(names[norm.strip().lower()], eps, "/".join(parts))

    def __str__(self) -> str:
        return f"{self.norm}:{self.text}"

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """How far each row of `x_adv` is from `x` in this norm, float64, shape (N,)."""
        return rownorm(x_adv.double() - x.double(), self.norm)

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Which rows of `x_adv` an attacker may use, bool, shape (N,).

        The tolerance is 1e-6 of a pixel's range in Linf and 1e-5 of the radius in L2 and L1: what
        single-precision arithmetic needs, and far below what an 8-bit image can show.
        """
        slack = 1e-6 if self.norm == "Linf" else 1e-5 * self.eps
        flat = x_adv.flatten(1)
        # Most points that are outside are far outside: single precision sees that at half the price.
        near = rownorm(x_adv - x, self.norm) <= self.eps * (1 + 1e-3) + 1e-5
        inside = near & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
        rows = inside.nonzero()[:, 0]
        if len(rows):
            inside[rows] = self.distance(x[rows], x_adv[rows]) <= self.eps + slack
        return inside

    @property
    def grain(self) -> tuple[float, torch.dtype]:
        """The step in which perturbations are kept where that does no harm, and the integers that count it.

        In Linf 127 steps reach the radius, so that a pixel is a byte; a pixel of an L2 or L1 ball is mostly a small
        part of the radius, and takes two.
        """
        return (self.eps / 127, torch.int8) if self.norm == "Linf" else (self.eps / 32767, torch.int16)

    def rounded(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The images of whole grains nearest to `x_adv`, in [0, 1]; the ball of L2 and L1 may be left by a grain."""
        step, kind = self.grain
        most = torch.iinfo(kind).max
        return (x + ((x_adv - x) / step).round().clamp(-most, most) * step).clamp(0, 1)

    def clip(self, delta: Tensor) -> Tensor:
        """Scale or clamp each row of `delta` into the ball around 0 (the box [0, 1] is not applied).

        Linf clamps, L2 scales (both are Euclidean projections); L1 scales towards 0.
        """
        if self.norm == "Linf":
            return delta.clamp(-self.eps, self.eps)
        size = rownorm(delta, self.norm).clamp_min(1e-12)
        factor = (self.eps / size).clamp_max(1.0)
        return delta * factor.view(-1, *[1] * (delta.dim() - 1))


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
        raise UsageError(f"images have shape {tuple(x.shape)}: expected (N, C, H, W)")
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
        raise UsageError(
            f"labels lie in {low_label}..{high_label}: expected 0..{(num_classes or high_label + 1) - 1}"
        )


def _check_values(x: Tensor) -> None:
    bad = (~torch.isfinite(x.flatten(1))).any(1).nonzero()
    if len(bad):
        raise UsageError(f"image {int(bad[0])} has NaN or infinite pixels ({len(bad)} of {len(x)} images do)")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise UsageError(f"pixels lie in [{low:g}, {high:g}]: expected [0, 1] (divide 8-bit images by 255)")
