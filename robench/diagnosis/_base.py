"""What a diagnosis looks at, and what it says: one indicator a line, with its threshold and where that comes from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.catalog import Protocol
from robench.core.errors import UsageError
from robench.data import Images
from robench.defenses import Loaded
from robench.engine.batched_model import Judge, Network
from robench.engine.outcome import ResultWarning
from robench.engine.setup import Setup, find_attacker
from robench.threats.threat import Threat

# Draws of a randomised defense that every gradient is averaged over.
EOT = 5
# The attack whose path is looked at, by norm; PGD's fixed step leaves a straight line on sound networks too, where
# the steps are as many as it takes to cross the ball.
ATTACKS = {"Linf": "apgd", "L2": "apgd", "L1": "apgd-l1"}
STEPS = 50
PINTOR = "Pintor 2022"
OWN = "own choice"


@dataclass(frozen=True)
class Indicator:
    """One sign.

    Attributes:
        code: of its mark, short and fixed.
        name: for people.
        value: what was found; None where it has no meaning here, which `text` then says.
        threshold: doubtful beyond it: above, or below for one that `falls`.
        source: of the threshold.
        text: one sentence with the figures.
    """

    code: str
    name: str
    value: float | None
    threshold: float
    source: str
    text: str
    falls: bool = False

    @property
    def doubt(self) -> bool:
        if self.value is None:
            return False
        return self.value < self.threshold if self.falls else not self.value <= self.threshold

    @property
    def mark(self) -> ResultWarning:
        return ResultWarning(self.code, f"robench diagnose: {self.text}")


@dataclass(frozen=True)
class Case:
    """A defense with its images and attacker, ready to be asked.

    Attributes:
        network: what the attacker searches on; judge: the whole defense.
        surrogate_is_judge: whether the surrogate's logits are the judge's verdict.
        eot: draws a gradient, 1 for a deterministic defense.
        x, y, ids: of the images, (N, 3, H, W), (N,), (N,), on the device.
        right: bool (N,), classified rightly in every draw without an attack.
    """

    loaded: Loaded
    images: Images
    protocol: Protocol
    threat: Threat
    knowledge: str
    seed: int
    network: Network
    judge: Judge
    surrogate_is_judge: bool
    eot: int
    x: Tensor
    y: Tensor
    ids: Tensor
    right: Tensor

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        images: Images,
        protocol: Protocol,
        knowledge: str,
        seed: int,
        device: torch.device,
        batch_size: int,
    ) -> "Case":
        """Asks the defense twice, to learn whether it is randomised, and its judge once.

        Raises:
            UsageError: for a knowledge level that does not suit, or a norm without an attack here.
        """
        threat = protocol.threat
        if threat is None:
            raise UsageError(f"{protocol.name} has no threat: add --threat")
        assert protocol.dataset is not None
        if threat.norm not in ATTACKS or threat.name:
            raise UsageError(
                f"robench diagnose follows attacks in {', '.join(ATTACKS)}: {threat} is not among them"
            )
        chosen = find_attacker(knowledge, loaded.defense, protocol.dataset, device, images.class_subset)
        x, y, ids = (part.to(device) for part in (images.x, images.y, images.ids))
        setup = Setup(loaded.defense, seed, device, batch_size, chosen, loaded.defense.stochastic).checked(
            x, ids
        )
        parties = setup.parties()
        return cls(
            loaded=loaded,
            images=images,
            protocol=protocol,
            threat=threat,
            knowledge=knowledge,
            seed=seed,
            network=parties.surrogate,
            judge=parties.judge,
            surrogate_is_judge=parties.surrogate_is_judge,
            eot=EOT if setup.stochastic else 1,
            x=x,
            y=y,
            ids=ids,
            right=parties.judge.fooled(x, y, ids) == 0,
        )

    def spec(self, attack: str, **arguments: object) -> str:
        """The spec of an attack that averages over draws, where there are any."""
        if self.eot > 1:
            arguments["eot"] = self.eot
        return f"{attack}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    @property
    def followed(self) -> str:
        """The spec of the attack whose path is looked at."""
        return self.spec(ATTACKS[self.threat.norm], steps=STEPS)


def share(part: Tensor) -> float:
    """The fraction of a bool tensor that holds; 0 of none."""
    return float(part.double().mean()) if part.numel() else 0.0
