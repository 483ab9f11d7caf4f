"""What a run of a suite leaves in memory: one entry for each sample and each attack, and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from robench._moved import old_names
from robench.data._lazy_images import LazyImages


@dataclass(frozen=True)
class AttackCost:
    """What one attack of the suite did.

    Attributes:
        spec: canonical.
        attacked: samples it was run on.
        survivors: samples still robust after it.
        forward, backward: passes spent on them, counted per image.
        seconds: wall time.
    """

    spec: str
    attacked: int
    survivors: int
    forward: int
    backward: int
    seconds: float

    @classmethod
    def together(cls, parts: Sequence["AttackCost"]) -> "AttackCost":
        """The cost of an attack whose samples are shared by processes running in parallel."""
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
    """A reason why an evaluation may have failed, stored in the record and shown wherever its figures are.

    Attributes:
        code: short and fixed, such as "zero-gradients".
        text: one sentence with the figures.
    """

    code: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What an attack or suite found, sample by sample.

    Attributes:
        x_adv: (N, C, H, W) float32: the image that fools the defense, or the clean one; a `LazyImages` where the
            images were one. Of a randomised defense: the candidate that fooled most draws of the search, even where
            it fails none of the fresh ones. Perturbations are rounded to whole grains (`Threat.grain`) where that
            fools as well.
        robust: bool (N,): classified rightly, clean and under every attack, in every draw.
        fooled_by: one string a sample: "" when robust, "clean" when wrong without an attack, else the
            canonical spec of the attack that fooled it. Of a randomised defense: "noise" where some draws are
            wrong without an attack, though most are right, and no attack made it worse; "" where the candidate
            that an attack left fails none of the fresh draws.
        passes: {"forward": n, "backward": n}, over all samples and attacks.
        health: warnings; empty when there are none.
        clean_prediction, prediction: int64 (N,), on the clean image and on `x_adv`; the majority's vote of a
            randomised defense's draws.
        clean_margin: float32 (N,), how far the best logit of the clean image lies above the second, in the first
            draw of the search: what tells another network from the same one.
        clean_draws, draws: int64 (N,), how many of the `of_draws` fresh draws are wrong there; of_draws is 1
            for a deterministic defense. See robench.engine.judges.
        distance: float64 (N,), of `x_adv` from the clean image in the threat's norm; 0 where it is the clean image.
        steps: int64 (N,), queries of the attack that fooled it until it did, or to its end where it
            minimises; 0 where none did.
        forward, backward: int64 (N,), passes spent on each sample.
        attacks: one entry an attack, in order.
        precision: "fp32" or "bf16", the surrogate's.
        batch_size: rows a network call.
        points: (N, ...) float32, what each `x_adv` is the image of in the threat's coordinates; None where they are
            the pixels themselves.
        clean_answers, answers: int64 (N, of_draws), the class that each fresh draw gives to the clean image and to
            `x_adv`, -1 where a logit is NaN; None for a deterministic defense.
        single_draw_accuracy: fraction in [0, 1] classified rightly in the first fresh draw, one an image, as
            AutoAttack reports it for randomised defenses; None for a deterministic one.
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
    single_draw_accuracy: float | None = None

    @property
    def passes(self) -> dict[str, int]:
        return {"forward": int(self.forward.sum()), "backward": int(self.backward.sum())}

    @property
    def clean_accuracy(self) -> float:
        """Fraction in [0, 1] classified rightly without an attack."""
        return sum(name != "clean" for name in self.fooled_by) / len(self.fooled_by)

    @property
    def robust_accuracy(self) -> float:
        """Fraction in [0, 1] classified rightly under every attack, in every draw."""
        return float(self.robust.double().mean())


# Names of release 0.1.
__getattr__ = old_names(__name__)
