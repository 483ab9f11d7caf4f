"""Randomized smoothing: the majority vote of a defense that first adds Gaussian noise is constant within an L2 ball."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robench.certification._base import ABSTAINED, Bounds, Case, Certifier
from robench.certification.votes import count_votes
from robench.core import registry
from robench.core.errors import UsageError
from robench.engine.batched_model import Network
from robench.statistics.smoothing import certified_radius, vote_is_decided

# Purposes of the noise draws, which are part of the keys of the random streams.
SELECTION, ESTIMATION, VERDICT = "certify: selection", "certify: estimation", "certify: verdict"


@registry.certifiers.register("smoothing")
@dataclass(frozen=True)
class Smoothing(Certifier):
    """Certifies the majority vote of a defense that adds Gaussian noise to the image before anything else, in L2.

    Cohen et al. 2019, arXiv 1902.02918, procedure CERTIFY: `selection` draws choose a class, `draws` further draws
    bound its probability from below, and the radius is sigma times the normal quantile of that bound. For a denoiser
    behind the noise see Salman et al. 2020, arXiv 2003.01908, and for a diffusion model Carlini et al. 2022, arXiv
    2206.10550. The radius is at most sigma times the quantile of alpha ** (1 / draws), however robust the vote is: 2.46
    sigma for 1,000 draws, 3.20 sigma for 10,000 and 3.81 sigma for 100,000 (the paper's number), at alpha = 0.001.

    The certificate also holds if the defense uses other randomness after the noise that does not depend on the image.

    Args:
        draws: number of draws that bound the probability of the chosen class.
        alpha: probability that the bound of one image is wrong.
        selection: number of draws that choose the class.
    """

    norm: ClassVar[str] = "L2"
    of_vote: ClassVar[bool] = True

    draws: int = 1000
    alpha: float = 0.001
    selection: int = 100

    def __post_init__(self) -> None:
        for name in ("draws", "selection"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"smoothing: {name}={value!r}: expected a whole number of at least 1")
        if not isinstance(self.alpha, float | int) or not 0 < self.alpha < 0.5:
            raise UsageError(f"smoothing: alpha={self.alpha!r}: expected a number above 0 and below 0.5")
        if not certified_radius(self.draws, self.draws, 1.0, self.alpha):
            raise UsageError(
                f"smoothing: draws={self.draws} cannot certify anything at alpha={self.alpha:g}, even if all agree: "
                "use more draws"
            )

    def check(self, case: Case) -> None:
        """See `Certifier.check`."""
        sigma_of(case)

    def facts(self, case: Case) -> Mapping[str, Any]:
        """The standard deviation of the noise, in units of the images' range [0, 1]."""
        return {"sigma": sigma_of(case)}

    def bounds(self, case: Case, rows: Sequence[int]) -> Bounds:
        """See `Certifier.bounds`."""
        x, _, ids = case.batch(rows)
        chosen = count_votes(_network(case, SELECTION), x, ids, self.selection).argmax(1)
        all_votes = count_votes(_network(case, ESTIMATION), x, ids, self.draws)
        votes = all_votes.gather(1, chosen[:, None])[:, 0]
        radius = self.radii(case, votes.tolist())
        prediction = torch.where(radius > 0, chosen, ABSTAINED)
        return Bounds(prediction, radius, votes, torch.full_like(votes, self.selection + self.draws))

    def radii(self, case: Case, votes: Sequence[int]) -> Tensor:
        """See `Certifier.radii`."""
        sigma = sigma_of(case)

        def radius(count: int) -> float:
            possible = 0 <= count <= self.draws
            return certified_radius(count, self.draws, sigma, self.alpha) if possible else math.nan

        return torch.tensor([radius(count) for count in votes], dtype=torch.float64)

    def verdict(self, case: Case, x: Tensor, rows: Sequence[int]) -> Tensor:
        """The class that wins the majority vote, see `Certifier.verdict`; ABSTAINED where the vote does not prove it.

        Arxiv 1902.02918, procedure PREDICT, with `draws` further draws.
        """
        _, _, ids = case.batch(rows)
        best = count_votes(_network(case, VERDICT), x.to(case.setup.device), ids, self.draws).topk(2, 1)
        decided = [vote_is_decided(first, second, self.alpha) for first, second in best.values.tolist()]
        return torch.where(torch.tensor(decided), best.indices[:, 0], ABSTAINED)


def sigma_of(case: Case) -> float:
    """Standard deviation of the Gaussian noise that the defense adds first, in units of the images' range [0, 1].

    Raises:
        UsageError: if it adds none, or something of the image passes the noise by.
    """
    purifier, name = case.loaded.defense.purifier, case.loaded.name
    if purifier is None:
        raise UsageError(
            f"{name} adds no noise, so smoothing proves nothing about it: certify smoothed(sigma=0.25)+{name}, the "
            "majority vote of this classifier under noise"
        )
    noise = getattr(purifier, "input_noise", None)
    size = getattr(purifier, "image_size", None)
    try:
        if noise is None:
            raise ValueError("it does not say what noise it adds (input_noise)")
        if size not in (None, case.loaded.defense.image_size):
            raise ValueError(f"images are resized or cut to {size} px before the noise is added")
        return float(noise())
    except ValueError as error:
        raise UsageError(f"smoothing proves nothing about {name}: {error}") from error


def _network(case: Case, purpose: str) -> Network:
    return case.setup.network(purpose)
