"""Who judges a randomised defense, and on which draws of its noise.

An attack keeps the candidate that fools most of the draws it was shown. Counted on those same draws its success is
overstated, as training accuracy is. So a run judges three times, each on numbers of its own: the search sees
`search`; `clean` decides about the clean images, and `final` about the candidate that each image ends with. What is
reported comes from `clean` and `final` alone.

Each number is a function of seed, sample and draw (`robench.core.rng`), so batch size, workers and an interruption
change none, and `robench verify` draws them again.
"""

from dataclasses import dataclass

from robench.core.rng import Stream
from robench.engine.batched_model import DRAWS, Judge, Model, Network

# What the noise of each is drawn for: part of the key of its stream.
SEARCH, CLEAN, FINAL = "judge", "judge of clean images", "judge of candidates"


@dataclass(frozen=True)
class Judges:
    """The judges of a run; one and the same for a deterministic defense.

    Attributes:
        search: asked while an attack plays.
        clean: of the clean images.
        final: of the candidates that the attacks leave.
    """

    search: Judge
    clean: Judge
    final: Judge

    @classmethod
    def of(cls, model: Model, batch_size: int, seed: int, stochastic: bool, fresh: bool = True) -> "Judges":
        """The judges of a defense.

        Args:
            model: images (N, C, H, W) in [0, 1] to logits (N, K).
            batch_size: rows a call.
            stochastic: whether the defense is randomised.
            fresh: False for all on the draws of the search, as records were judged before fresh draws came in.
        """
        if not stochastic:
            only = Judge(Network(model, batch_size))
            return cls(only, only, only)

        def judge(purpose: str) -> Judge:
            return Judge(Network(model, batch_size, stream=Stream.of(seed, purpose)), DRAWS)

        search = judge(SEARCH)
        return cls(search, judge(CLEAN), judge(FINAL)) if fresh else cls(search, search, search)
