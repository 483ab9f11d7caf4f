"""The interface of certifiers: they prove, image by image, a radius within which the prediction does not change."""

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

# The prediction of an image for which the certifier abstains.
ABSTAINED = -1


@dataclass(frozen=True)
class Case:
    """A defense and the images to certify.

    Attributes:
        loaded: the defense, frozen and in evaluation mode.
        images: the images, (N, C, H, W) in [0, 1], with labels and ids.
        setup: seed, device and batch size of all calls of the defense (`setup.network(purpose)`).
        threat: the threat model of the protocol; a certifier of one radius proves this one. None for no threat model.
    """

    loaded: Loaded
    images: Images
    setup: Setup
    threat: Threat | None = None

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (M, C, H, W), labels (M,) and ids (M,) of some rows, on the device."""
        chosen, device = list(rows), self.setup.device
        index = torch.tensor(chosen, dtype=torch.int64)
        return (
            self.images.x[chosen].to(device),
            self.images.y[index].to(device),
            self.images.ids[index].to(device),
        )


@dataclass(frozen=True)
class Bounds:
    """What is proven of M images; tensors on the CPU.

    Attributes:
        prediction: the certified class, int64 (M,); ABSTAINED for none.
        radius: the prediction is constant within this distance in the certifier's norm, float64 (M,), at least 0.
        votes: number of draws for the prediction, int64 (M,); zeros for a certifier that does not vote.
        forward: passes spent on each image, int64 (M,).
    """

    prediction: Tensor
    radius: Tensor
    votes: Tensor
    forward: Tensor

    @classmethod
    def of(cls, prediction: Tensor, radius: Tensor) -> "Bounds":
        """Bounds of a certifier that does not vote and takes one pass an image."""
        zeros = torch.zeros(len(prediction), dtype=torch.int64)
        return cls(prediction.long().cpu(), radius.double().clamp_min(0).cpu(), zeros, zeros + 1)


class Certifier:
    """Base class of certifiers; subclasses are frozen data classes, whose fields are the arguments of their spec.

    The bound of an image must not depend on the other images.

    Attributes:
        norm: norm of the radii: "Linf", "L2" or "L1"; empty for a certifier that proves the threat's ball or nothing.
        alpha: probability that the bound of one image is wrong; 0 for a deterministic proof.
        of_vote: whether the bounds are about the majority vote of a randomized defense.
    """

    norm: ClassVar[str]
    alpha: float = 0.0
    of_vote: ClassVar[bool] = False

    def check(self, case: Case) -> None:
        """Check that the method proves anything about this defense.

        Raises:
            UsageError: with the reason.
        """

    def facts(self, case: Case) -> Mapping[str, Any]:
        """Numbers of the proof that a reader needs, such as the noise's standard deviation, for the record."""
        return {}

    def bounds(self, case: Case, rows: Sequence[int]) -> Bounds:
        """Certify some images of the case."""
        raise NotImplementedError

    def verdict(self, case: Case, x: Tensor, rows: Sequence[int]) -> Tensor:
        """The class of images by the classifier that the bounds are about, int64 (M,) on the CPU; ABSTAINED for none.

        Args:
            x: adversarial examples of the images `rows`, (M, C, H, W).
        """
        _, _, ids = case.batch(rows)
        return answer(case.setup.network("certify").logits(x.to(case.setup.device), ids)).cpu()


def find_certifier(method: str) -> Certifier:
    """The certifier of a spec such as "smoothing(draws=10000)".

    Raises:
        UsageError: if it is unknown, or an argument is wrong.
    """
    spec = specs.parse(method)
    return specs.build(spec, registry.certifiers.get(spec.name))
