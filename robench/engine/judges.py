"""The judges of a randomized defense, which use separate noise draws.

An attack keeps the candidate that fools the largest number of the noise draws it has seen. Its success on them is
overestimated, like a training accuracy. A run therefore has three judges with separate noise: the search uses `search`,
`clean` judges the clean images, and `final` judges the final candidate of each image. Only `clean` and `final` are
reported.

An attacker who knows the noise (knowledge "known-noise") is judged on the draws of `final` in the search, too. Its
gradients come from these draws (`KnownNoise`): the randomness of the defense is fixed for it.

The noise is a function of seed, sample and draw (`robench.core.rng`), so it does not depend on batch size, workers or
interruptions, and `robench verify` can reproduce it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from robench.core.rng import Stream
from robench.engine.batched_model import DRAWS, Judge, Model, Network
from robench.engine.packing import Who

# Purposes of the noise draws, which are part of the keys of the random streams.
SEARCH, CLEAN, FINAL = "judge", "judge of clean images", "judge of candidates"


class KnownNoise(Network):
    """The surrogate of an attacker who knows the noise: its queries go through the draws of the verdict in turn.

    With EOT over ten draws, each step takes the gradient of the mean loss over the very draws that decide.
    """

    @contextmanager
    def _noise(self, who: Who, device: torch.device) -> Iterator[None]:
        if who is not None:
            sample, rank, step = who
            who = sample, torch.zeros_like(rank), step % DRAWS
        with super()._noise(who, device):
            yield


@dataclass(frozen=True)
class Judges:
    """The judges of a run; all three are the same for a deterministic defense.

    Attributes:
        search: judge during an attack.
        clean: judge of the clean images.
        final: judge of the final candidates.
    """

    search: Judge
    clean: Judge
    final: Judge

    @classmethod
    def of(
        cls,
        model: Model,
        batch_size: int,
        seed: int,
        stochastic: bool,
        fresh: bool = True,
        backs_off: bool = False,
        known: bool = False,
    ) -> "Judges":
        """Create the judges of a defense.

        Args:
            model: function of images (N, C, H, W) in [0, 1] to logits (N, K).
            batch_size: number of rows per call.
            seed: seed of the noise.
            stochastic: whether the defense is randomized.
            fresh: whether the judges use separate draws; False reproduces old records, which reuse those of the search.
            backs_off: see `Network`.
            known: whether the attacker knows the draws of the verdict, so that the search is judged on them as well.
        """
        if not stochastic:
            single = Judge(Network(model, batch_size, backs_off=backs_off))
            return cls(single, single, single)

        def judge(purpose: str) -> Judge:
            stream = Stream.of(seed, purpose)
            return Judge(Network(model, batch_size, stream=stream, backs_off=backs_off), DRAWS)

        if known:
            final = judge(FINAL)
            return cls(final, judge(CLEAN), final)
        search = judge(SEARCH)
        return cls(search, judge(CLEAN), judge(FINAL)) if fresh else cls(search, search, search)
