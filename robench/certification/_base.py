"""The interface of certifiers, which prove for each image a radius within which the prediction does not change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robench.core import registry, specs
from robench.data import Images
from robench.defenses import Loaded
from robench.engine.batched_model import answer
from robench.engine.setup import Setup
from robench.threats.threat import Threat

# The prediction for an image on which the certifier abstains.
ABSTAINED = -1


@dataclass(frozen=True)
class Case:
    """A defense and the images to certify.

    Attributes:
        loaded: the defense, in evaluation mode with frozen weights.
        images: images (N, C, H, W) in [0, 1], with labels and ids.
        setup: seed, device and batch size; `setup.network(purpose)` calls the defense with them.
        threat: the threat model; certifiers that prove a single radius prove this one. None for no threat model.
    """

    loaded: Loaded
    images: Images
    setup: Setup
    threat: Threat | None = None

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (M, C, H, W), labels (M,) and ids (M,) at the given indices, on the device."""
        chosen, device = list(rows), self.setup.device
        index = torch.tensor(chosen, dtype=torch.int64)
        return (
            self.images.x[chosen].to(device),
            self.images.y[index].to(device),
            self.images.ids[index].to(device),
        )


@dataclass(frozen=True)
class Bounds:
    """The certified predictions and radii of M images; all tensors are on the CPU.

    Attributes:
        prediction: the certified class, int64 (M,); ABSTAINED (-1) if there is none.
        radius: distance within which the prediction is constant, in the certifier's norm, float64 (M,), at least 0.
        votes: number of noise draws that vote for the prediction, int64 (M,); 0 for a certifier without a vote.
        forward: number of forward passes spent on each image, int64 (M,).
    """

    prediction: Tensor
    radius: Tensor
    votes: Tensor
    forward: Tensor

    @classmethod
    def of(cls, prediction: Tensor, radius: Tensor) -> "Bounds":
        """Bounds of a certifier without a vote that takes one pass per image; negative radii become 0."""
        zeros = torch.zeros(len(prediction), dtype=torch.int64)
        return cls(prediction.long().cpu(), radius.double().clamp_min(0).cpu(), zeros, zeros + 1)


class Certifier:
    """Base class of certifiers; a subclass is a frozen dataclass whose fields are the arguments of its spec.

    The bound of an image must not depend on other images.

    Attributes:
        norm: norm of the radii, "Linf", "L2" or "L1"; empty if only the radius of the threat model is proven, or none.
        alpha: probability that the bound of an image is wrong; 0 for a deterministic proof.
        of_vote: whether the bounds hold for the majority vote of a randomized defense.
    """

    norm: ClassVar[str]
    alpha: float = 0.0
    of_vote: ClassVar[bool] = False

    def check(self, case: Case) -> None:
        """Check that the certifier supports this defense and threat model.

        Raises:
            UsageError: if not; the message gives the reason.
        """

    def facts(self, case: Case) -> Mapping[str, Any]:
        """Further parameters of the proof for the record, such as the standard deviation of the noise."""
        return {}

    def bounds(self, case: Case, rows: Sequence[int]) -> Bounds:
        """Certify the images of the case at the indices `rows`."""
        raise NotImplementedError

    def radii(self, case: Case, votes: Sequence[int]) -> Tensor | None:
        """The radii that follow from numbers of votes, float64 (M,), NaN for an impossible number; None for a certifier
        without a vote."""
        return None

    def verdict(self, case: Case, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Predictions of the classifier that the bounds hold for, int64 (M,) on the CPU; ABSTAINED if there is none.

        Args:
            x: adversarial examples of the images at the indices `rows`, (M, C, H, W).
        """
        _, _, ids = case.batch(rows)
        return answer(case.setup.network("certify").logits(x.to(case.setup.device), ids)).cpu()


def find_certifier(method: str) -> Certifier:
    """The certifier of a spec such as "smoothing(draws=10000)".

    Raises:
        UsageError: if the certifier is unknown or an argument is invalid.
    """
    spec = specs.parse(method)
    return specs.build(spec, registry.certifiers.get(spec.name))
