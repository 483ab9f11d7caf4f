"""The judge's verdicts on the points of an attack, and the point that each lane keeps."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robench.attacks._base import Rows
from robench.engine.attack_context import AttackContext
from robench.engine.batched_model import wrong
from robench.engine.lanes import Lanes


class Verdicts:
    """Who is fooled, lane by lane.

    Attributes:
        kept: the point of each lane that fooled most draws so far; of an attack that minimises, the nearest one.
        nonfinite: answers with NaN or infinite logits.
    """

    def __init__(self, context: AttackContext, lanes: Lanes):
        self.context, self.lanes = context, lanes
        attack = context.attack
        self.minimise = attack.minimise
        # Whether no point is judged before its row ends.
        self.deferred = attack.judged_at_end or (
            context.no_verdict_feedback and (self.minimise or attack.transfers)
        )
        self.kept: dict[int, Tensor] = {}
        self.nonfinite = 0

    def facts(self, logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        """What `judge` needs to know of each lane's logits, bool (S,), for `on_host`."""
        return {"nonfinite": (~torch.isfinite(logits)).any(1), "wrong": wrong(logits, rows.y)}

    def judge(
        self, x: Tensor, points: Tensor, facts: Mapping[str, Tensor], rows: Rows, active: Tensor
    ) -> Tensor:
        """In how many draws each lane's image fools the judge, int64 (S,) on the CPU; 0 where its point is not allowed.

        Attackers without feedback see their surrogate instead, as if it were a judge of one draw. Of an attack that
        minimises, only points that are better than the kept one count.
        """
        context, lanes = self.context, self.lanes
        self.nonfinite += int((facts["nonfinite"] & active).sum())
        suspect = (facts["wrong"] & active).nonzero()[:, 0]
        draws = torch.zeros(len(active), dtype=torch.int64)
        if self.deferred or not len(suspect):
            return draws
        index = suspect.to(context.device)
        origins, points = rows.x.index_select(0, index), points.index_select(0, index)
        threat = context.problem.threat
        allowed = threat.contains(origins, points, threat.slack).cpu()
        nearer = allowed
        if self.minimise:
            nearer = self.distance(origins, points) < lanes.kept_distance[suspect]
            allowed &= nearer | (lanes.kept_draws[suspect] < context.judge.draws)
        suspect, index, nearer = suspect[allowed], index[allowed.to(context.device)], nearer[allowed]
        if not len(suspect):
            return draws
        if context.surrogate_is_judge or context.no_verdict_feedback:
            fooled = torch.ones_like(suspect)
        else:
            fooled = context.judge.fooled(x[index], rows.y[index], rows.sample[index]).cpu()
        kept = lanes.kept_draws[suspect]
        better = (fooled > kept) | ((fooled == kept) & nearer) if self.minimise else fooled > 0
        draws[suspect] = fooled * better
        return draws

    def distance(self, x: Tensor, points: Tensor) -> Tensor:
        """How far points are from their images, float64 (N,) on the CPU."""
        return self.context.problem.threat.distance(x, points).cpu()

    def keep(self, active: Tensor, draws: Tensor, points: Tensor, rows: Rows) -> None:
        """Keep the points that are better than those kept before."""
        better = active & (draws > 0 if self.minimise else draws > self.lanes.kept_draws)
        for lane in better.nonzero()[:, 0].tolist():
            self.kept[lane] = points[lane].clone()
            self.lanes.kept_draws[lane] = draws[lane]
            if self.minimise:
                here = slice(lane, lane + 1)
                self.lanes.kept_distance[lane] = self.distance(rows.x[here], points[here])

    def forget(self, lane: int) -> None:
        """Drop the kept point of a lane."""
        self.lanes.drop(lane)
        self.kept.pop(lane, None)

    def confirm(self, lanes: list[int], rows: Rows) -> dict[int, tuple[Tensor, int]]:
        """Ask the judge once more at the points as a record holds them: origin plus perturbation, in whole
        grains where that fools as well.

        Returns:
            The point and the number of draws its image fools, for the lanes where it does.
        """
        threat = self.context.problem.threat
        if self.minimise:
            # A grain more would be further away.
            return self._confirmed(lanes, rows, threat.as_recorded)
        rounded = self._confirmed(lanes, rows, threat.rounded)
        # What rounding would cost a draw is kept to the last bit.
        kept_draws = self.lanes.kept_draws
        exact = [lane for lane in lanes if rounded.get(lane, (None, 0))[1] < max(1, int(kept_draws[lane]))]
        return rounded | (self._confirmed(exact, rows, threat.as_recorded) if exact else {})

    def _confirmed(
        self, lanes: list[int], rows: Rows, kept_as: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[int, tuple[Tensor, int]]:
        """What the judge says of the lanes' kept points, as `kept_as` writes them down."""
        context, threat = self.context, self.context.problem.threat
        index = torch.tensor(lanes, device=context.device)
        x, y, sample = rows.x[index], rows.y[index], rows.sample[index]
        points = kept_as(x, torch.stack([self.kept[lane] for lane in lanes]))
        counts = context.judge.fooled(threat.image(x, points, sample), y, sample).cpu()
        counts = counts * threat.contains(x, points).cpu()
        return {lane: (points[i].cpu(), int(counts[i])) for i, lane in enumerate(lanes) if int(counts[i]) > 0}
