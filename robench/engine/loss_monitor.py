"""Statistics of an attack's gradients and losses, from which warnings are derived."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from robench.attacks._base import Answer

# Below this the largest entry of a gradient is as good as zero: losses of order one change by nothing.
VANISHED = 1e-12
# A loss that wins more than this share of its rise in the last tenth of the steps is not done: "incomplete
# optimization" of Pintor et al. 2022 (arXiv 2106.09947) has the same 5 %, of the last ten steps.
UNDONE = 0.05


@dataclass
class LossStats:
    """Of one attack, over its rows.

    Attributes:
        vanished, gradients: rows whose first gradient is (nearly) zero, and all with a gradient.
        broken: gradients with NaN or infinite entries, of all steps.
        flat, fallen, undone, ended: of rows that an ascending attack played to the end without fooling: those whose
            loss never rose above the first, those whose last loss has lost half of what the best had won, those whose
            best still rose in the last tenth of the steps, and all.
    """

    vanished: int = 0
    gradients: int = 0
    flat: int = 0
    fallen: int = 0
    undone: int = 0
    ended: int = 0
    broken: int = 0

    @classmethod
    def together(cls, parts: Iterable["LossStats"]) -> "LossStats":
        """Of processes that share the rows."""
        return cls(*map(sum, zip(*(astuple(part) for part in parts), strict=True)))


class LossMonitor:
    """The losses of every lane so far.

    Args:
        lanes: rows played side by side.
        ascends: whether the attack climbs one loss a row from its first question to its last.
        steps: how many steps a row has; of fewer than ten none is a tenth, and `undone` stays 0.
    """

    def __init__(self, lanes: int, ascends: bool, steps: int = 0):
        self.ascends = ascends
        self.early = steps - steps // 10 if steps >= 10 else -1
        self.stats = LossStats()
        # First, best and last loss of each lane's row, and its best before the last tenth of the steps.
        self.losses = torch.zeros(lanes, 4, dtype=torch.float64)
        self.step = torch.zeros(lanes, dtype=torch.int64)

    def facts(self, answer: Answer, starting: bool) -> dict[str, Tensor | None]:
        """What `note` needs to know of each lane's answer, (lanes,), for `on_host`.

        Args:
            answer: as the attack receives it, with gradients in what it searches.
            starting: whether some lane's first gradient may be among them.
        """
        if not answer.grad.numel():
            return {}
        return {
            "tiny": answer.grad.flatten(1).abs().amax(1) < VANISHED if starting else None,
            "broken": answer.broken,
            "loss": answer.loss if self.ascends and answer.loss.dim() == 1 else None,
        }

    def note(self, asking: Tensor, first: Tensor, facts: Mapping[str, Tensor]) -> None:
        """Take an answer into account.

        Args:
            asking: bool (lanes,) on the CPU, lanes that the answer is for; first: those whose first gradient it is.
            facts: of the answer, on the CPU.
        """
        first = asking & first
        if "tiny" in facts and bool(first.any()):
            self.stats.vanished += int((facts["tiny"] & first).sum())
            self.stats.gradients += int(first.sum())
        if "broken" in facts:
            self.stats.broken += int((facts["broken"] & asking).sum())
        if "loss" in facts:
            loss = facts["loss"].double()
            begun, best, _, before = self.losses.unbind(1)
            begun = torch.where(first, loss, begun)
            best = torch.where(first, loss, torch.maximum(best, loss))
            self.step = torch.where(asking, torch.where(first, 0, self.step + 1), self.step)
            before = torch.where(self.step <= self.early, best, before)
            self.losses = torch.where(
                asking[:, None], torch.stack([begun, best, loss, before], 1), self.losses
            )

    def end(self, lane: int) -> None:
        """A row has ended without fooling the judge."""
        if not self.ascends:
            return
        begun, best, last, before = self.losses[lane].tolist()
        self.stats.ended += 1
        self.stats.flat += best <= begun
        self.stats.fallen += best > begun and last - begun < 0.5 * (best - begun)
        self.stats.undone += self.early >= 0 and best - before > UNDONE * (best - begun)

    def dump(self) -> dict[str, Tensor]:
        """For `load`."""
        return {"losses": self.losses, "step": self.step, "watched": torch.tensor(astuple(self.stats))}

    def load(self, saved: dict[str, Tensor]) -> None:
        self.losses, self.step = saved["losses"], saved["step"]
        self.stats = LossStats(*saved["watched"].tolist())
