"""The outcome of a run in memory: results of each sample and each attack, and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robench._moved import old_names

# Records are read without torch.
if TYPE_CHECKING:
    from torch import Tensor

    from robench.data._lazy_images import LazyImages


@dataclass(frozen=True)
class AttackCost:
    """Cost and success of one attack of a suite.

    Attributes:
        spec: canonical spec of the attack.
        attacked: number of samples attacked.
        survivors: number of samples that are robust after the attack.
        forward, backward: number of passes; one pass is one image through the network.
        seconds: wall time.
    """

    spec: str
    attacked: int
    survivors: int
    forward: int
    backward: int
    seconds: float

    @classmethod
    def together(cls, parts: Sequence[AttackCost]) -> AttackCost:
        """Combine the costs of one attack over the shares of a run: sums, and the mean of the times."""
        return cls(
            parts[0].spec,
            attacked=sum(part.attacked for part in parts),
            survivors=sum(part.survivors for part in parts),
            forward=sum(part.forward for part in parts),
            backward=sum(part.backward for part in parts),
            seconds=sum(part.seconds for part in parts) / len(parts),
        )


@dataclass(frozen=True)
class ResultWarning:
    """A reason why an evaluation may have failed, stored in the record and shown next to its figures.

    Attributes:
        code: short fixed name, such as "zero-gradients".
        text: one sentence with the figures.
    """

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True)
class Outcome:
    """The result of an attack or suite for each sample.

    A randomized defense is judged on `of_draws` new noise draws. The search has not used them, unless the attacker
    knows them (`known-noise`). See `robench.engine.judges`.

    Attributes:
        x_adv: adversarial example of each fooled sample, else the clean image, (N, C, H, W) float32; `LazyImages` if
            the input was. For a randomized defense, the candidate that fools most draws of the search, even if it
            fools none of the new draws.
        robust: whether every draw classifies `x_adv` correctly, bool (N,).
        fooled_by: one string per sample: "" if robust, "clean" if misclassified without an attack, else the canonical
            spec of the attack that fooled it. For a randomized defense, "noise" if a minority of the draws is wrong
            without an attack and no attack fools more draws.
        passes: {"forward": n, "backward": n}, over all samples and attacks; one pass is one image.
        rows: {"forward": n, "backward": n}, the rows that the attacks sent to the network: `passes`, padding,
            verdicts, and rows that another row made superfluous. Empty if not counted.
        health: the warnings; empty if there are none.
        clean_prediction, prediction: predicted class of the clean image and of `x_adv`, int64 (N,); for a randomized
            defense, the majority vote over the draws.
        clean_margin: difference between the two highest logits of the clean image, in the first draw of the search,
            float32 (N,). `robench verify` recognizes the network by it.
        clean_draws, draws: number of draws that misclassify the clean image and `x_adv`, int64 (N,).
        of_draws: number of draws; 1 for a deterministic defense.
        distance: distance of `x_adv` from the clean image in the norm of the threat model, float64 (N,).
        steps: number of forward passes until the sample was fooled, in the row (one restart and target) that fooled
            it, int64 (N,); a query with EOT takes `eot` passes. For minimum-norm attacks, and those judged at their
            end, all passes of the row; 0 if no attack fooled the sample, and for attacks of other libraries.
        forward, backward: number of passes spent on each sample, int64 (N,).
        attacks: cost of each attack, in order.
        precision: precision of the search, "fp32" or "bf16".
        batch_size: batch size; if memory ran out, the smallest one used.
        search: facts about a search that is compiled, in bf16 or on a GPU, for the record; see `Setup.search`.
        points: `x_adv` as parameters of the transformation, (N, ...) float32; None for a norm threat.
        clean_answers, answers: predicted class of the clean image and of `x_adv` in every draw, int64 (N, of_draws),
            -1 if a logit is NaN; None for a deterministic defense.
        order: for an estimate, the position of each sample in the random order, int64 (N,); otherwise None. See
            `robench.records.estimate`.
        proven_by: for each sample, the certifier that proves it robust, so that it is not attacked, or ""; None if no
            certifier was used.
        single_draw_accuracy: robust accuracy in [0, 1] in the first new draw, as AutoAttack reports it for randomized
            defenses; None for a deterministic defense.
    """

    x_adv: Tensor | LazyImages
    robust: Tensor
    fooled_by: list[str]
    clean_prediction: Tensor
    prediction: Tensor
    clean_margin: Tensor
    clean_draws: Tensor
    draws: Tensor
    distance: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    attacks: list[AttackCost]
    health: list[ResultWarning] = field(default_factory=list)
    precision: str = "fp32"
    batch_size: int = 0
    of_draws: int = 1
    points: Tensor | LazyImages | None = None
    clean_answers: Tensor | None = None
    answers: Tensor | None = None
    order: Tensor | None = None
    single_draw_accuracy: float | None = None
    search: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    proven_by: list[str] | None = None

    @property
    def passes(self) -> dict[str, int]:
        return {"forward": int(self.forward.sum()), "backward": int(self.backward.sum())}

    @property
    def clean_accuracy(self) -> float:
        """Clean accuracy in [0, 1]; for a randomized defense, of the majority vote."""
        return sum(name != "clean" for name in self.fooled_by) / len(self.fooled_by)

    @property
    def robust_accuracy(self) -> float:
        """Robust accuracy in [0, 1], the mean of `robust`."""
        return float(self.robust.double().mean())


# Names of release 0.1.
__getattr__ = old_names(__name__)
