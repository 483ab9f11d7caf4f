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
    """The cost and the success of one attack of the suite.

    Attributes:
        spec: canonical spec.
        attacked: number of samples attacked.
        survivors: number of samples that are robust after the attack.
        forward, backward: number of passes, counted per image.
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
        """Combine the costs of one attack on the shares of a run; the time is their mean."""
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
    """The results of an attack or suite for each sample.

    A randomized defense is judged on `of_draws` noise draws that the search has not used (see `robench.engine.judges`).

    Attributes:
        x_adv: adversarial example of each fooled sample, else the clean image, (N, C, H, W) float32; `LazyImages` if
            the input was. For a randomized defense: the candidate that fools most draws of the search, even if it
            fools none of the new draws. Perturbations are rounded to steps of `Threat.grain` if the result still
            fools the defense.
        robust: whether the sample is classified correctly in every draw, clean and under every attack, bool (N,).
        fooled_by: one string per sample: "" if robust, "clean" if misclassified without an attack, else the canonical
            spec of the attack that fooled it. For a randomized defense: "noise" if a minority of the draws is wrong
            without an attack and no attack fools more; "" if an attack's candidate fools none of the new draws.
        passes: {"forward": n, "backward": n}, over all samples and attacks.
        rows: {"forward": n, "backward": n}, the rows that the attacks sent to the network: `passes`, plus padding,
            verdicts, and rows that another row made superfluous. Empty if not counted.
        health: warnings; empty if there are none.
        clean_prediction, prediction: predictions on the clean image and on `x_adv`, int64 (N,); the majority vote over
            the draws of a randomized defense.
        clean_margin: difference between the two highest logits of the clean image in the first draw of the search,
            float32 (N,), by which `robench verify` recognizes the network.
        clean_draws, draws: number of wrong draws on the clean image and on `x_adv`, int64 (N,).
        of_draws: number of draws; 1 for a deterministic defense.
        distance: distance of `x_adv` from the clean image in the threat's norm, float64 (N,); 0 for the clean image.
        steps: number of forward passes of the row (the restart or target) that fooled the sample, until it did so,
            int64 (N,); with EOT each query takes `eot` passes. All passes of the row for a minimum-norm attack and for
            one that is judged at its end; 0 if no attack fooled the sample, and for attacks of other libraries.
        forward, backward: number of passes spent on each sample, int64 (N,).
        attacks: costs of the attacks, in order.
        precision: precision of the surrogate, "fp32" or "bf16".
        batch_size: smallest number of rows per network call.
        search: what a record says of the search if it is not in fp32 on a CPU, see `Setup.search`.
        points: points of `x_adv` in the threat's coordinates, (N, ...) float32; None if these are the pixels.
        clean_answers, answers: predictions of every draw on the clean image and on `x_adv`, int64 (N, of_draws), -1 if
            a logit is NaN; None for a deterministic defense.
        order: for an estimate, the position of each sample in the random order that it was drawn in, int64 (N,); see
            `robench.records.estimate`.
        proven_by: for each sample the certifier that proves it, so that it is not attacked, or an empty text; None if
            there is no certifier.
        single_draw_accuracy: accuracy in [0, 1] in the first new draw, as AutoAttack reports it for randomized
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
        """Fraction of samples in [0, 1] that are classified correctly without an attack."""
        return sum(name != "clean" for name in self.fooled_by) / len(self.fooled_by)

    @property
    def robust_accuracy(self) -> float:
        """Fraction of samples in [0, 1] that are classified correctly under every attack, in every draw."""
        return float(self.robust.double().mean())


# Names of release 0.1.
__getattr__ = old_names(__name__)
