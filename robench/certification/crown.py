"""Proofs that no image in the ball changes the prediction of a ReLU network, by CROWN and by interval arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.certification._base import Bounds, Case, Certifier
from robench.certification._graph import Step, steps_of
from robench.core import registry
from robench.core.errors import UsageError
from robench.engine.batched_model import answer

# Values of the largest intermediate result of one call, over all bounds that are computed together.
_VALUES = 1 << 23
_NORMS = ("Linf", "L2", "L1")


class _Deterministic(Certifier):
    """Base of the certifiers of this file: they prove one radius, that of the threat, or nothing."""

    norm: ClassVar[str] = ""

    def check(self, case: Case) -> None:
        """See `Certifier.check`."""
        if case.loaded.defense.stochastic:
            raise UsageError(
                f"no bound known for a randomized defense such as {case.loaded.name}: choose --method smoothing"
            )
        if case.threat is None or case.threat.norm not in _NORMS:
            raise UsageError(f"no bound known for {case.threat}: expected a threat in {', '.join(_NORMS)}")
        try:
            steps_of(case.loaded.defense, case.images.x[:1])
        except UsageError as error:
            raise UsageError(f"{case.loaded.name}: {error}") from error

    def bounds(self, case: Case, rows: Sequence[int]) -> Bounds:
        """See `Certifier.bounds`. An image that is misclassified is not proven."""
        assert case.threat is not None
        x, y, ids = case.batch(rows)
        prediction = answer(case.setup.network("certify").logits(x, ids)).cpu()
        radius = torch.zeros(len(rows), dtype=torch.float64)
        steps = steps_of(case.loaded.defense, x[:1])
        for place in (prediction == y.cpu()).nonzero().flatten().tolist():
            # The ball that attacks and `robench verify` accept, which is slightly larger than the radius.
            ball = Ball(x[place : place + 1].cpu().double(), case.threat.norm, case.threat.reach)
            if bool((self.margins(steps, ball, int(y[place])) > 0).all()):
                radius[place] = case.threat.reach
        return Bounds.of(prediction, radius)

    def margins(self, steps: list[Step], ball: "Ball", label: int) -> Tensor:
        """Lower bounds on the label's logit minus each other logit, over the ball, (K - 1,)."""
        raise NotImplementedError


@registry.certifiers.register("crown")
@dataclass(frozen=True)
class Crown(_Deterministic):
    """Proves the predictions of ReLU networks in Linf, L2 and L1, by linear bounds that are propagated backward.

    Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General Activation Functions", arXiv
    1811.00866: CROWN with adaptive lower slopes, also for the bounds of hidden layers. It supports networks of
    convolutions, linear layers, ReLU, average pooling, batch normalization and residual additions. For other networks,
    an error names the unsupported operation.

    The proof holds for the network in float32 arithmetic: the bounds include the rounding error of every operation, for
    any order of summation (but not for TF32 or Winograd convolutions).
    """

    def margins(self, steps: list[Step], ball: "Ball", label: int) -> Tensor:
        """See `_Deterministic.margins`."""
        return Relaxation(steps, ball, tight=True).margins(label)


@registry.certifiers.register("ibp")
@dataclass(frozen=True)
class IntervalBounds(_Deterministic):
    """Proves the predictions of ReLU networks by interval arithmetic: fast, and only tight for networks trained for it.

    Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models", arXiv
    1810.12715. See `crown` for the networks and for rounding.
    """

    def margins(self, steps: list[Step], ball: "Ball", label: int) -> Tensor:
        """See `_Deterministic.margins`."""
        relaxation = Relaxation(steps, ball, tight=False)
        low, high = relaxation.interval(steps[-1].name)
        others = torch.arange(low.shape[1]) != label
        return low[0, label] - high[0, others]


@dataclass(frozen=True)
class Ball:
    """The images in [0, 1] within a distance of an image x, (1, C, H, W) float64."""

    x: Tensor
    norm: str
    radius: float

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """The smallest box that contains the ball."""
        return (self.x - self.radius).clamp_min(0), (self.x + self.radius).clamp_max(1)

    def lowest(self, rows: Tensor) -> Tensor:
        """Lower bounds on linear functions (R, C, H, W) over the ball, (R,)."""
        low, high = self.box
        in_box = _total(rows.clamp_min(0) * low + rows.clamp_max(0) * high)
        if self.norm == "Linf":
            return in_box
        dual = 2 if self.norm == "L2" else torch.inf
        in_ball = _total(rows * self.x) - self.radius * rows.flatten(1).norm(dual, dim=1)
        return torch.maximum(in_box, in_ball)


class Relaxation:
    """Intervals of all values of a network over a ball, and linear bounds through them.

    Args:
        steps: the network.
        ball: the images.
        tight: bound the inputs of ReLUs by linear bounds where their intervals contain 0; False for intervals alone.
    """

    def __init__(self, steps: list[Step], ball: Ball, tight: bool):
        self.steps, self.ball = steps, ball
        low, high = ball.box
        self.center, self.radius = {"": (low + high) / 2}, {"": (high - low) / 2}
        self.rounding: dict[str, Tensor] = {}
        # Up to the first ReLU, intervals are as tight as linear bounds in Linf.
        tightens = tight and ball.norm != "Linf"
        with torch.no_grad():
            for index, step in enumerate(steps):
                if step.apply is None:
                    if tightens:
                        self._tighten(index, step.inputs[0])
                    tightens = tight
                self._propagate(step)

    def interval(self, name: str) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of a value, each of its shape."""
        return self.center[name] - self.radius[name], self.center[name] + self.radius[name]

    def margins(self, label: int) -> Tensor:
        """Lower bounds on the label's logit minus each other logit, (K - 1,)."""
        classes = self.center[self.steps[-1].name].shape[1]
        rows = -torch.eye(classes, dtype=torch.float64)
        rows[:, label] += 1
        rows = rows[torch.arange(classes) != label]
        with torch.no_grad():
            return self.lower(len(self.steps), self.steps[-1].name, rows)

    def lower(self, count: int, name: str, rows: Tensor) -> Tensor:
        """Lower bounds on linear functions (R, ...) of a value that the first `count` steps compute, (R,)."""
        pending, total = {name: rows}, torch.zeros(len(rows), dtype=torch.float64)
        for step in reversed(self.steps[:count]):
            if step.name not in pending:
                continue
            rows = pending.pop(step.name)
            if step.apply is None:
                inputs, constant = self._through_relu(step.inputs[0], rows)
            else:
                inputs, constant = self._through_affine(step, rows)
            total += constant
            for source, coefficients in zip(step.inputs, inputs, strict=True):
                pending[source] = pending[source] + coefficients if source in pending else coefficients
        return total + self.ball.lowest(pending[""])

    def _propagate(self, step: Step) -> None:
        """Compute the interval of a step's output."""
        centers, radii = ([values[name] for name in step.inputs] for values in (self.center, self.radius))
        if step.apply is None:
            low, high = (bound.relu() for bound in self.interval(step.inputs[0]))
            self.center[step.name], self.radius[step.name] = (low + high) / 2, (high - low) / 2
            return
        largest = [center.abs() + radius for center, radius in zip(centers, radii, strict=True)]
        self.rounding[step.name] = step.rounding(*largest)
        self.center[step.name] = step.apply(*centers)
        self.radius[step.name] = step.spread(*radii) + self.rounding[step.name]

    def _tighten(self, count: int, name: str) -> None:
        """Replace the interval of a ReLU's input by linear bounds, for the neurons whose sign is open."""
        shape = self.center[name].shape
        low, high = (bound.flatten() for bound in self.interval(name))
        neurons = ((low < 0) & (high > 0)).nonzero()[:, 0]
        if not len(neurons):
            return
        largest = max(center.numel() for center in self.center.values())
        for part in neurons.split(max(_VALUES // largest, 1)):
            rows = torch.zeros(len(part), low.numel(), dtype=torch.float64)
            rows[torch.arange(len(part)), part] = 1
            rows = rows.view(-1, *shape[1:])
            low[part] = torch.maximum(low[part], self.lower(count, name, rows))
            high[part] = torch.minimum(high[part], -self.lower(count, name, -rows))
        self.center[name] = ((low + high) / 2).view(shape)
        self.radius[name] = ((high - low) / 2).view(shape)

    def _through_relu(self, source: str, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Linear bounds of a ReLU: coefficients of its input, and a constant (R,)."""
        low, high = self.interval(source)
        is_open = (low < 0) & (high > 0)
        active = (low >= 0).double()
        upper_slope = torch.where(is_open, high / (high - low), active)
        lower_slope = torch.where(is_open, (high > -low).double(), active)
        intercept = torch.where(is_open, -low * upper_slope, torch.zeros_like(low))
        positive, negative = rows.clamp_min(0), rows.clamp_max(0)
        constant = _total(negative * intercept)
        return [positive * lower_slope + negative * upper_slope], constant

    def _through_affine(self, step: Step, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """An affine step: coefficients of its inputs, and a constant (R,) that includes the rounding error."""
        assert step.apply is not None
        centers = [self.center[name] for name in step.inputs]
        output, pull_back, *_ = torch.func.vjp(step.apply, *centers)
        inputs = list(torch.func.vmap(pull_back)(rows[:, None]))
        inputs = [coefficients[:, 0] for coefficients in inputs]
        constant = _total(rows * output) - _total(rows.abs() * self.rounding[step.name])
        for coefficients, center in zip(inputs, centers, strict=True):
            constant -= _total(coefficients * center)
        return inputs, constant


def _total(rows: Tensor) -> Tensor:
    """The sum of each row (R, ...), (R,)."""
    return rows.sum(tuple(range(1, rows.dim()))) if rows.dim() > 1 else rows
