"""Statistics of an attack's gradients and losses, from which warnings are derived."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import partial

import torch
from torch import Tensor

from robench.attacks._base import Answer

# A gradient whose largest entry is below this counts as zero, because it does not change a loss of order one.
VANISHED = 1e-12
# An attack has not converged if the last tenth of the steps adds more than this fraction of the loss's increase.
# "Incomplete optimization" of Pintor et al. 2022 (arXiv 2106.09947) uses the same 5 %, for the last ten steps.
UNDONE = 0.05


@dataclass
class LossStats:
    """Statistics over the rows of one attack. `flat` to `ended` count unsuccessful rows of an ascending attack.

    Attributes:
        vanished: number of rows whose first gradient is (nearly) zero.
        gradients: number of rows with a gradient.
        broken: number of gradients with NaN or infinite entries, over all steps.
        flat: number of rows whose loss never exceeded the first loss.
        fallen: number of rows whose last loss is below half of the best increase.
        undone: number of rows whose best loss still increased in the last tenth of the steps.
        ended: number of rows.
        disagreed: number of rows whose search and judge disagreed, see `robench.engine.exact_rows`.
    """

    vanished: int = 0
    gradients: int = 0
    flat: int = 0
    fallen: int = 0
    undone: int = 0
    ended: int = 0
    broken: int = 0
    disagreed: int = 0

    @classmethod
    def together(cls, parts: Iterable["LossStats"]) -> "LossStats":
        """Sum the statistics of the shares of a run."""
        return cls(*map(sum, zip(*(astuple(part) for part in parts), strict=True)))


class LossMonitor:
    """Monitors the losses of all lanes.

    Args:
        lanes: number of lanes.
        ascends: whether the attack maximises one loss per row from its first query to its last.
        steps: number of steps of a row; with fewer than ten, `undone` is not counted.
    """

    def __init__(self, lanes: int, ascends: bool, steps: int = 0):
        self.ascends = ascends
        self.early = steps - steps // 10 if steps >= 10 else -1
        self.stats = LossStats()
        # First, best and last loss of each lane's row, and the best loss before the last tenth of the steps.
        self.losses = tuple(torch.zeros(4, lanes, dtype=torch.float64))
        self.step = torch.zeros(lanes, dtype=torch.int64)

    def facts(self, answer: Answer, starting: bool) -> dict[str, Tensor | None]:
        """The values of each lane's answer that `note` needs, (lanes,), for `on_host`.

        Args:
            answer: as the attack receives it, with gradients in the coordinates of its search.
            starting: whether the answer may contain the first gradient of a lane.
        """
        if not answer.grad.numel():
            return {}
        return {
            "tiny": answer.grad.flatten(1).abs().amax(1) < VANISHED if starting else None,
            "broken": answer.broken,
            "loss": answer.loss if self.ascends and answer.loss.dim() == 1 else None,
        }

    def note(self, asking: Tensor, first: Tensor | None, facts: Mapping[str, Tensor]) -> None:
        """Add an answer to the statistics.

        Args:
            asking: lanes with a query in this answer, bool (lanes,) on the CPU.
            first: lanes without an earlier gradient, bool (lanes,); None if all have one.
            facts: values from `facts`, on the CPU.
        """
        if first is not None:
            first = asking & first
            if "tiny" in facts:
                self.stats.vanished += int((facts["tiny"] & first).sum())
                self.stats.gradients += int(first.sum())
        if "broken" in facts and bool(facts["broken"].any()):
            self.stats.broken += int((facts["broken"] & asking).sum())
        if "loss" in facts:
            loss = facts["loss"].double()
            initial, best, _, early_best = self.losses
            best, step = torch.maximum(best, loss), self.step + 1
            if first is not None:
                initial, best = torch.where(first, loss, initial), torch.where(first, loss, best)
                step = step.masked_fill(first, 0)
            early_best = torch.where(step <= self.early, best, early_best)
            losses = initial, best, loss, early_best
            if "waits" in facts:
                losses = tuple(map(partial(torch.where, asking), losses, self.losses))
                step = torch.where(asking, step, self.step)
            self.losses, self.step = losses, step

    def end(self, lane: int) -> None:
        """Count a row that ended without fooling the judge."""
        if not self.ascends:
            return
        initial, best, last, early_best = (float(values[lane]) for values in self.losses)
        self.stats.ended += 1
        self.stats.flat += best <= initial
        self.stats.fallen += best > initial and last - initial < 0.5 * (best - initial)
        self.stats.undone += self.early >= 0 and best - early_best > UNDONE * (best - initial)

    def take(self, lanes: Tensor) -> None:
        """Replace lane i by lane `lanes[i]`."""
        self.losses, self.step = tuple(values[lanes] for values in self.losses), self.step[lanes]

    def dump(self) -> dict[str, Tensor]:
        """The state for `load`."""
        return {
            "losses": torch.stack(self.losses, 1),
            "step": self.step,
            "watched": torch.tensor(astuple(self.stats)),
        }

    def load(self, saved: dict[str, Tensor]) -> None:
        self.losses, self.step = saved["losses"].unbind(1), saved["step"]
        self.stats = LossStats(*saved["watched"].tolist())
