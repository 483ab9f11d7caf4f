"""How a defense is set up to be attacked: who is randomised, on which random numbers, and who the surrogate is."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.core.rng import Stream
from robench.core.specs import Spec
from robench.data._lazy_images import LazyImages
from robench.data.class_subset import Subset
from robench.defenses import Defense, load_defense
from robench.engine.batched_model import Judge, Model, Network
from robench.engine.judges import Judges
from robench.engine.knowledge import Attacker, attacker
from robench.engine.result_warnings import looks_random


class Settings(Protocol):
    """What a job says of how it is run (robench.records.record.Job)."""

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def precision(self) -> str: ...


@dataclass(frozen=True)
class Setup:
    """A defense, its attacker, and how they are called.

    Attributes:
        model: the whole defense.
        seed: decides every random number.
        batch_size: images a network call.
        stochastic: whether the defense is randomised, as far as is known.
        precision: the surrogate's, "fp32" or "bf16".
        fresh_draws: False to judge a randomised defense on the draws of the search, as records once were.
    """

    model: Model
    seed: int
    device: torch.device
    batch_size: int
    attacker: Attacker = field(default_factory=Attacker)
    stochastic: bool = False
    precision: str = "fp32"
    fresh_draws: bool = True

    @classmethod
    def of(cls, defense: Defense, searching: Attacker, settings: Settings, device: torch.device) -> "Setup":
        """That of a job."""
        return cls(
            defense,
            settings.seed,
            device,
            settings.batch_size,
            searching,
            defense.stochastic,
            settings.precision,
        )

    def network(self, purpose: str) -> Network:
        """The defense, drawing the noise of one purpose where it is randomised."""
        stream = Stream.of(self.seed, purpose) if self.stochastic else None
        return Network(self.model, self.batch_size, stream=stream)

    @property
    def judges(self) -> Judges:
        """The defense as judge."""
        return Judges.of(self.model, self.batch_size, self.seed, self.stochastic, self.fresh_draws)

    @property
    def searched(self) -> Model:
        """The model that attacks search on: the surrogate, or the defense itself."""
        return self.model if self.attacker.surrogate is None else self.attacker.surrogate

    def checked(self, x: Tensor | LazyImages, ids: Tensor) -> "Setup":
        """The same, randomised where two calls on the first images (N, C, H, W) differ."""
        if self.stochastic:
            return self
        first = x[: self.batch_size].to(self.device), ids[: self.batch_size].to(self.device)
        return replace(self, stochastic=looks_random(Network(self.model, self.batch_size), *first))

    def parties(self) -> "Parties":
        """Judges and surrogate, once it is known whether the defense is randomised."""
        judges = self.judges
        itself = self.attacker.surrogate is None
        if itself and self.precision == "fp32" and not self.stochastic:
            return Parties(judges, judges.search.network, True, self.seed)
        # Any surrogate may draw noise; seeding one that does not costs next to nothing.
        stream = Stream.of(self.seed, "surrogate") if self.stochastic or not itself else None
        surrogate = Network(self.searched, self.batch_size, self.precision, stream)
        return Parties(judges, surrogate, False, self.seed)


@dataclass(frozen=True)
class Parties:
    """Who is asked in a run.

    Attributes:
        judges: decide who is fooled.
        surrogate: what attacks search on.
        surrogate_is_judge: whether its logits are the judge's verdict.
    """

    judges: Judges
    surrogate: Network
    surrogate_is_judge: bool
    seed: int

    @property
    def judge(self) -> Judge:
        """The judge that is asked during the search."""
        return self.judges.search

    def for_attack(self, spec: str, group: int) -> "Parties":
        """The surrogate with the random numbers of one attack, on a batch of whole groups, one at the least."""
        network = self.surrogate
        batch_size = max(network.batch_size // group, 1) * group
        stream = None if network.stream is None else Stream.of(self.seed, "surrogate", spec)
        if batch_size == network.batch_size and stream is None:
            return self
        # Other batch shapes round otherwise: their logits are no verdict.
        same = self.surrogate_is_judge and batch_size == network.batch_size
        return replace(
            self,
            surrogate=Network(network.model, batch_size, network.precision, stream),
            surrogate_is_judge=same,
        )


def find_attacker(
    knowledge: str,
    defense: Defense,
    dataset: str | Spec,
    device: torch.device,
    class_subset: Subset | None = None,
) -> Attacker:
    """The attacker of that knowledge level, whose surrogate is found by name among the cards of a data set.

    Args:
        defense: the one attacked.
        class_subset: which classes of a network that knows more are counted.

    Raises:
        UsageError: for an unknown level or name, and for a surrogate that takes other images.
    """

    def load(name: str) -> Defense:
        source = load_defense(
            name, dataset, device=device, class_subset=class_subset, image_size=defense.image_size
        )
        for theirs, ours in (
            (f"{source.channels} channels", f"{defense.channels}"),
            (f"{source.image_size} px", f"{defense.image_size} px"),
        ):
            if theirs.split()[0] != ours.split()[0]:
                raise UsageError(
                    f"{name} takes images of {theirs} and the defense attacked {ours}: nothing transfers from it"
                )
        return source

    return attacker(knowledge, defense, load)
