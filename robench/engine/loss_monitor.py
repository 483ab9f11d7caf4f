"""Statistics of an attack's gradients and losses, from which warnings are derived."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

import numpy as np
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

    They are those of rows that run sequentially: rows after one that fools all draws are not counted.

    Attributes:
        vanished: number of rows whose first gradient is (nearly) zero.
        gradients: number of rows with a gradient.
        broken: number of gradients with NaN or infinite entries, over all steps.
        flat: number of rows whose loss never exceeded the first loss.
        fallen: number of rows whose last loss is below half of the best increase.
        undone: number of rows whose best loss still increased in the last tenth of the steps.
        ended: number of rows.
        disagreed: number of rows whose search and judge disagreed, see `robench.engine.exact_rows`.
        nonfinite: number of answers with NaN or infinite logits.
        outside: number of rows of which a point fools the defense outside the threat model, where it does not count;
            not counted for minimum-norm attacks, which come from there.
    """

    vanished: int = 0
    gradients: int = 0
    flat: int = 0
    fallen: int = 0
    undone: int = 0
    ended: int = 0
    broken: int = 0
    disagreed: int = 0
    nonfinite: int = 0
    outside: int = 0

    @classmethod
    def together(cls, parts: Iterable["LossStats"]) -> "LossStats":
        """Sum the statistics of the shares of a run."""
        return cls(*map(sum, zip(*(astuple(part) for part in parts), strict=True)))


# The columns of tensors of counts.
# New ones come last, because an earlier version saved fewer.
COLUMNS = {field.name: index for index, field in enumerate(fields(LossStats))}


class LossMonitor:
    """Monitors the losses of all lanes, and counts what `LossStats` counts for the row of each lane.

    Args:
        lanes: number of lanes.
        ascends: whether the attack maximizes one loss per row from its first query to its last.
        steps: number of steps of a row; with fewer than ten, `undone` is not counted.

    Its arrays are of NumPy, which takes less time than torch for a few numbers.

    Attributes:
        counts: counts of each lane's row, (lanes, len(COLUMNS)) int64.
    """

    def __init__(self, lanes: int, ascends: bool, steps: int = 0):
        self.ascends = ascends
        self.early = steps - steps // 10 if steps >= 10 else -1
        self.counts = np.zeros((lanes, len(COLUMNS)), np.int64)
        # First, best and last loss of each lane's row, and the best loss before the last tenth of the steps.
        self.losses = tuple(np.zeros((4, lanes)))
        self.step = np.zeros(lanes, np.int64)

    def start(self, lanes: Tensor) -> None:
        """Reset the counts of lanes for new rows."""
        self.counts[lanes.numpy()] = 0

    def count(self, name: str, events: Tensor) -> None:
        """Add the number of events of each lane, (lanes,), to the counts of one name."""
        self.counts[:, COLUMNS[name]] += events.numpy()

    def mark(self, name: str, lanes: Tensor) -> None:
        """Count rows, at most once each, to which something has happened; lanes as a mask, (lanes,)."""
        self.counts[lanes.numpy(), COLUMNS[name]] = 1

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
        """Add an answer to the counts and losses.

        Args:
            asking: lanes with a query in this answer, bool (lanes,) on the CPU.
            first: lanes without an earlier gradient, bool (lanes,); None if all have one.
            facts: values from `facts` and `Verdicts.facts`, on the CPU.
        """
        if first is not None:
            first = asking & first
            if "tiny" in facts:
                self.count("vanished", facts["tiny"] & first)
                self.count("gradients", first)
        for name in ("broken", "nonfinite"):
            if name in facts and facts[name].numpy().any():
                self.count(name, facts[name] & asking)
        if "loss" in facts:
            loss = facts["loss"].numpy().astype(np.float64)
            initial, best, _, early_best = self.losses
            best, step = np.maximum(best, loss), self.step + 1
            if first is not None:
                starts = first.numpy()
                initial, best = np.where(starts, loss, initial), np.where(starts, loss, best)
                step[starts] = 0
            early_best = np.where(step <= self.early, best, early_best)
            losses = initial, best, loss, early_best
            if "waits" in facts:
                asks = asking.numpy()
                losses = tuple(np.where(asks, new, old) for new, old in zip(losses, self.losses, strict=True))
                step = np.where(asks, step, self.step)
            self.losses, self.step = losses, step

    def end(self, lane: int, failed: bool) -> np.ndarray:
        """The counts of a row that has ended, (len(COLUMNS),).

        Args:
            failed: whether the row has not fooled the judge.
        """
        counts = self.counts[lane].copy()
        if failed and self.ascends:
            initial, best, last, early_best = (float(values[lane]) for values in self.losses)
            counts[COLUMNS["ended"]] = 1
            counts[COLUMNS["flat"]] = best <= initial
            counts[COLUMNS["fallen"]] = best > initial and last - initial < 0.5 * (best - initial)
            counts[COLUMNS["undone"]] = self.early >= 0 and best - early_best > UNDONE * (best - initial)
        return counts

    def take(self, lanes: Tensor) -> None:
        """Replace lane i by lane `lanes[i]`."""
        index = lanes.numpy()
        self.losses, self.step = tuple(values[index] for values in self.losses), self.step[index]
        self.counts = self.counts[index]

    def dump(self) -> dict[str, Tensor]:
        """The state for `load`."""
        arrays = {"losses": np.stack(self.losses, 1), "step": self.step, "counts": self.counts}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load(self, saved: dict[str, Tensor]) -> None:
        self.losses, self.step = tuple(saved["losses"].numpy().T), saved["step"].numpy()
        # Without counts, it is from an earlier version, see `robench.engine.saved_loop`.
        self.counts = np.zeros((len(self.step), len(COLUMNS)), np.int64)
        if "counts" in saved:
            self.counts[:, : saved["counts"].shape[1]] = saved["counts"].numpy()
