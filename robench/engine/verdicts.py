"""The judge's verdicts on the points of an attack, and the point that each lane keeps."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robench.attacks._base import Rows
from robench.engine.attack_context import AttackContext
from robench.engine.batched_model import wrong
from robench.engine.exact_rows import disagreements
from robench.engine.host import on_host
from robench.engine.lanes import Lanes


class Verdicts:
    """Judges the points of all lanes and keeps the best ones.

    Attributes:
        kept: best point of each lane, which fools the most draws; of a minimum-norm attack, the nearest of these.
        disagree: lanes whose last point fools the search but not the judge, bool (S,); None if there is no such lane.
        outside: lanes whose last point fools the search outside the threat model, bool (S,); None if there is no such
            lane, and for minimum-norm attacks.
    """

    def __init__(self, context: AttackContext, lanes: Lanes):
        self.context, self.lanes = context, lanes
        attack = context.attack
        self.minimise = attack.minimise
        # Whether points are judged only at the end of their row.
        self.deferred = attack.judged_at_end or (
            context.no_verdict_feedback and (self.minimise or attack.transfers)
        )
        self.kept: dict[int, Tensor] = {}
        self.disagree: Tensor | None = None
        self.outside: Tensor | None = None

    def facts(self, logits: Tensor, points: Tensor, rows: Rows) -> dict[str, Tensor]:
        """The values of each lane that `judge` and `LossMonitor.note` need, (S,), for `on_host`."""
        if logits.device.type == "cpu" and math.isfinite(float(logits.sum())):
            return {"wrong": logits.argmax(1) != rows.y}
        facts = {"nonfinite": (~torch.isfinite(logits)).any(1), "wrong": wrong(logits, rows.y)}
        if points.device.type != "cpu" and self.context.attack.minimum_norm and not self.deferred:
            # Most points that fool are outside, so the host would wait again in most steps.
            facts |= self._places(rows.x, points)
        return facts

    def _places(self, x: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Which points are allowed, bool (N,), and the distances of points to be minimized, float64 (N,)."""
        threat = self.context.problem.threat
        if not self.minimise:
            return {"allowed": threat.contains(x, points, threat.slack)}
        distance = threat.distance(x, points)
        return {"allowed": threat.contains(x, points, threat.slack, distance), "distance": distance}

    def judge(
        self, x: Tensor, points: Tensor, facts: Mapping[str, Tensor], rows: Rows, active: Tensor
    ) -> Tensor | None:
        """The number of draws in which each lane's image fools the judge, int64 (S,) on the CPU; None if all are 0.

        It is 0 for points outside the threat model. For an attacker without feedback, the surrogate acts as a judge
        with one draw. For a minimum-norm attack, only points that are better than the kept point count.
        """
        context, lanes = self.context, self.lanes
        self.disagree = self.outside = None
        if self.deferred:
            return None
        (candidates,) = (facts["wrong"].numpy() & active.numpy()).nonzero()
        if not len(candidates):
            return None
        candidates = torch.from_numpy(candidates)
        if "allowed" in facts:
            places = {name: facts[name][candidates] for name in ("allowed", "distance") if name in facts}
        else:
            index = candidates.to(context.device)
            places = on_host(**self._places(rows.x.index_select(0, index), points.index_select(0, index)))
        allowed = nearer = places["allowed"]
        if not context.attack.minimum_norm and not bool(allowed.all()):
            self.outside = torch.zeros(len(active), dtype=torch.bool)
            self.outside[candidates[~allowed]] = True
        if self.minimise:
            nearer = places["distance"] < lanes.kept_distance[candidates]
            allowed = allowed & (nearer | (lanes.kept_draws[candidates] < context.judge.draws))
        candidates, nearer = candidates[allowed], nearer[allowed]
        if not len(candidates):
            return None
        if context.surrogate_is_judge or context.no_verdict_feedback:
            fooled = torch.ones_like(candidates)
        else:
            index = candidates.to(context.device)
            fooled = context.judge.fooled(x[index], rows.y[index], rows.sample[index]).cpu()
        self.disagree = disagreements(context, candidates, fooled, len(active))
        if self.minimise:
            kept = lanes.kept_draws[candidates]
            fooled = fooled * ((fooled > kept) | ((fooled == kept) & nearer))
        draws = torch.zeros(len(active), dtype=torch.int64)
        draws[candidates] = fooled
        return draws if bool(fooled.any()) else None

    def distance(self, x: Tensor, points: Tensor) -> Tensor:
        """The distances of points from their clean images, float64 (N,) on the CPU."""
        return self.context.problem.threat.distance(x, points).cpu()

    def keep(self, active: Tensor, draws: Tensor, points: Tensor, rows: Rows) -> None:
        """Keep the points that are better than the kept ones."""
        better = active & (draws > 0 if self.minimise else draws > self.lanes.kept_draws)
        lanes = better.nonzero()[:, 0]
        if not len(lanes):
            return
        self.kept.update((lane, points[lane].clone()) for lane in lanes.tolist())
        self.lanes.kept_draws[lanes] = draws[lanes]
        if self.minimise:
            index = lanes.to(points.device)
            nearest = self.distance(rows.x.index_select(0, index), points.index_select(0, index))
            self.lanes.kept_distance[lanes] = nearest

    def forget(self, lane: int) -> None:
        """Drop the kept point of a lane."""
        self.lanes.drop(lane)
        self.kept.pop(lane, None)

    def confirm(self, lanes: list[int], rows: Rows) -> dict[int, tuple[Tensor, int]]:
        """Judge the kept points as a record stores them: origin plus perturbation, rounded to steps of `Threat.grain`
        if the result still fools the judge.

        Returns:
            The point and the number of draws that its image fools, for each lane whose image fools any.
        """
        threat = self.context.problem.threat
        if self.minimise:
            # Not rounded, because rounding may increase the distance.
            return self._confirmed(lanes, rows, threat.as_recorded)
        rounded = self._confirmed(lanes, rows, threat.rounded)
        # Points that fool fewer draws after rounding are stored exactly.
        kept_draws = self.lanes.kept_draws
        exact = [lane for lane in lanes if rounded.get(lane, (None, 0))[1] < max(1, int(kept_draws[lane]))]
        return rounded | (self._confirmed(exact, rows, threat.as_recorded) if exact else {})

    def _confirmed(
        self, lanes: list[int], rows: Rows, stored: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[int, tuple[Tensor, int]]:
        """Judge the kept points of lanes after `stored`, a function of origins and points, is applied."""
        context, threat = self.context, self.context.problem.threat
        index = torch.tensor(lanes, device=context.device)
        x, y, sample = rows.x[index], rows.y[index], rows.sample[index]
        points = stored(x, torch.stack([self.kept[lane] for lane in lanes]))
        counts = context.judge.fooled(threat.image(x, points, sample), y, sample).cpu()
        counts = counts * threat.contains(x, points).cpu()
        return {lane: (points[i].cpu(), int(counts[i])) for i, lane in enumerate(lanes) if int(counts[i]) > 0}
