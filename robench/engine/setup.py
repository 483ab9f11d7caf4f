"""The setup of an attack on a defense: judges, surrogate and their random numbers."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.core.rng import Stream
from robench.core.specs import Spec
from robench.data._lazy_images import LazyImages
from robench.data.class_subset import Subset
from robench.defenses import Defense, load_defense
from robench.engine.batch_shapes import BatchShapes
from robench.engine.batched_model import Judge, Model, Network
from robench.engine.fast_model import FastModel, has_convolutions
from robench.engine.judges import Judges, KnownNoise
from robench.engine.knowledge import Attacker, attacker
from robench.engine.result_warnings import looks_random

# The batch size of the search, divided by that of rows that go on in fp32.
_EXACT = 8


class Settings(Protocol):
    """The settings of a job that a setup needs (`robench.records.record.Job`)."""

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def precision(self) -> str: ...


@dataclass(frozen=True)
class Setup:
    """A defense, its attacker and the settings of network calls.

    Attributes:
        model: the whole defense.
        seed: seed of all random numbers.
        device: device of network calls.
        batch_size: number of images per network call.
        attacker: surrogate and feedback of the attacker.
        stochastic: whether the defense is known to be randomized.
        precision: precision of the surrogate, "fp32" or "bf16".
        fresh_draws: whether a randomized defense is judged on new draws; False reproduces old records.
        backs_off: whether the judges use smaller batches while memory runs out, see `Network`.
        compiles: whether the search uses `torch.compile`.
        deterministic: whether a GPU must give the same bits at every run.
    """

    model: Model
    seed: int
    device: torch.device
    batch_size: int
    attacker: Attacker = field(default_factory=Attacker)
    stochastic: bool = False
    precision: str = "fp32"
    fresh_draws: bool = True
    backs_off: bool = False
    compiles: bool = False
    deterministic: bool = False

    @classmethod
    def of(cls, defense: Defense, attacker: Attacker, settings: Settings, device: torch.device) -> "Setup":
        """The setup of a job."""
        return cls(
            defense,
            settings.seed,
            device,
            settings.batch_size,
            attacker,
            defense.stochastic,
            settings.precision,
        )

    def network(self, purpose: str) -> Network:
        """The defense; if it is randomized, with the noise draws of a purpose."""
        stream = Stream.of(self.seed, purpose) if self.stochastic else None
        return Network(self.model, self.batch_size, stream=stream, backs_off=True)

    @property
    def judges(self) -> Judges:
        """The judges of the defense."""
        return Judges.of(
            self.model,
            self.batch_size,
            self.seed,
            self.stochastic,
            self.fresh_draws,
            self.backs_off,
            self.attacker.knows_noise,
        )

    @property
    def searched(self) -> Model:
        """The model that attacks search: the surrogate, or the defense itself."""
        return self.model if self.attacker.surrogate is None else self.attacker.surrogate

    def checked(self, x: Tensor | LazyImages, ids: Tensor) -> "Setup":
        """The same setup, with `stochastic` set if two calls on the first images (N, C, H, W) differ."""
        if self.stochastic:
            return self
        first = x[: self.batch_size].to(self.device), ids[: self.batch_size].to(self.device)
        return replace(self, stochastic=looks_random(Network(self.model, self.batch_size), *first))

    def parties(self) -> "Parties":
        """The judges and the surrogate; `stochastic` must be final."""
        judges = self.judges
        is_defense = self.attacker.surrogate is None
        is_exact = self.precision == "fp32" and not self.compiles
        if is_defense and is_exact and not self.stochastic:
            return Parties(judges, judges.search.network, True, self.seed)
        # Another surrogate may draw noise; seeding a deterministic one costs almost nothing.
        stream = Stream.of(self.seed, "surrogate") if self.stochastic or not is_defense else None
        # A compiled network is compiled again for every batch size.
        shapes = BatchShapes(self.batch_size, is_fixed=self.compiles)
        if is_defense and is_exact:
            shapes = judges.search.network.shapes
        kind: type[Network] = Network
        if self.attacker.knows_noise:
            kind, stream = KnownNoise, judges.search.network.stream
        surrogate = kind(self._fast, self.batch_size, self.precision, stream, shapes=shapes)
        exact = None
        if is_defense and not is_exact and not self.stochastic:
            exact = Network(self.model, max(self.batch_size // _EXACT, 1))
        return Parties(judges, surrogate, False, self.seed, exact)

    def search(self, disagreements: int) -> dict[str, Any]:
        """What a record says of the search and of what another run repeats; empty for fp32 on a CPU.

        Args:
            disagreements: number of rows whose search and judge disagreed.
        """
        on_cpu = self.device.type == "cpu"
        if on_cpu and self.precision == "fp32" and not self.compiles:
            return {}
        repeats = "bits" if on_cpu or self.deterministic else "verdicts"
        return {"compiled": self.compiles, "disagreements": disagreements, "repeats": repeats}

    @property
    def _fast(self) -> Model:
        """The searched model, made faster where this is chosen."""
        channels_last = (
            self.device.type == "cuda" and self.precision == "bf16" and has_convolutions(self.searched)
        )
        if not self.compiles and not channels_last:
            return self.searched
        return FastModel(self.searched, self.compiles, channels_last)


@dataclass(frozen=True)
class Parties:
    """The judges and the surrogate of a run.

    Attributes:
        judges: the judges.
        surrogate: the network that attacks search.
        surrogate_is_judge: whether the surrogate's logits are the judge's verdict.
        seed: seed of all random numbers.
        exact: the surrogate in fp32 as it is judged, for rows whose search and judge disagree; None if the surrogate is
            not the defense, or is as exact as the judge.
    """

    judges: Judges
    surrogate: Network
    surrogate_is_judge: bool
    seed: int
    exact: Network | None = None

    @property
    def failure(self) -> str:
        """Why the surrogate is not compiled although it should be; empty if nothing failed."""
        model = self.surrogate.model
        return model.failure if isinstance(model, FastModel) and model.compiles else ""

    @property
    def judge(self) -> Judge:
        """The judge of the search."""
        return self.judges.search

    def for_attack(self, spec: str, group: int) -> "Parties":
        """The parties for one attack, with its random numbers and a batch size that is a multiple of `group`."""
        network = self.surrogate
        batch_size = max(network.batch_size // group, 1) * group
        stream = network.stream
        if stream is not None and not isinstance(network, KnownNoise):
            stream = Stream.of(self.seed, "surrogate", spec)
        if batch_size == network.batch_size and stream is None:
            return self
        # With another batch shape logits are rounded differently, so they are not the judge's verdict.
        shapes = network.shapes if batch_size == network.batch_size else None
        return replace(
            self,
            surrogate=type(network)(network.model, batch_size, network.precision, stream, shapes=shapes),
            surrogate_is_judge=self.surrogate_is_judge and batch_size == network.batch_size,
        )


def find_attacker(
    knowledge: str,
    defense: Defense,
    dataset: str | Spec,
    device: torch.device,
    class_subset: Subset | None = None,
) -> Attacker:
    """The attacker with this knowledge; a surrogate's name refers to the cards of the dataset.

    Args:
        defense: the attacked defense.
        class_subset: the classes of the dataset, for a surrogate with more classes.

    Raises:
        UsageError: if the level or the name is unknown, or the surrogate does not support the images.
    """

    def load(name: str) -> Defense:
        source = load_defense(
            name, dataset, device=device, class_subset=class_subset, image_size=defense.image_size
        )
        for needed, attacked, unit in (
            (source.channels, defense.channels, "channels"),
            (source.image_size, defense.image_size, "px"),
        ):
            if needed != attacked:
                raise UsageError(
                    f"{name} takes images of {needed} {unit}, but the attacked defense takes {attacked} {unit}: its "
                    "adversarial examples cannot be transferred"
                )
        return source

    return attacker(knowledge, defense, load)
