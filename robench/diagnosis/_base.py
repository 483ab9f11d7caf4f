"""The input of a diagnosis, and its indicators: each has a value, a threshold and the source of the threshold."""

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

# Number of noise draws of a randomized defense that each gradient is averaged over.
EOT = 5
# The attack to follow, by norm. Not PGD: its fixed step gives a straight loss curve on sound networks too, if the steps
# just suffice to cross the ball.
ATTACKS = {"Linf": "apgd", "L2": "apgd", "L1": "apgd-l1"}
STEPS = 50
PINTOR = "Pintor 2022"
OWN = "own choice"


@dataclass(frozen=True)
class Indicator:
    """One indicator of a failed attack.

    Attributes:
        code: the code of its warning, short and fixed.
        name: the name that is displayed.
        value: the measured value; None where it is undefined, as explained in `text`.
        threshold: a value above it gives a warning; a value below it if `falls`.
        source: the source of the threshold.
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
    def warns(self) -> bool:
        if self.value is None:
            return False
        return self.value < self.threshold if self.falls else not self.value <= self.threshold

    @property
    def warning(self) -> ResultWarning:
        return ResultWarning(self.code, f"robench diagnose: {self.text}")


@dataclass(frozen=True)
class Case:
    """A defense with its images and attacker, ready for a diagnosis.

    Attributes:
        network: the network that the attacker searches on; judge: the whole defense.
        surrogate_is_judge: whether the surrogate's logits decide the verdict.
        eot: noise draws per gradient, 1 for a deterministic defense.
        x, y, ids: images (N, 3, H, W), labels (N,) and ids (N,), on the device.
        right: bool (N,), classified correctly in every draw without an attack.
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
        """Call the defense twice, to learn whether it is randomized, and its judge once.

        Raises:
            UsageError: for an unsuitable attacker knowledge, or a norm that no attack here supports.
        """
        threat = protocol.threat
        if threat is None:
            raise UsageError(f"{protocol.name} has no threat: add --threat")
        assert protocol.dataset is not None
        if threat.norm not in ATTACKS or threat.name:
            raise UsageError(
                f"robench diagnose supports the norms {', '.join(ATTACKS)}: {threat} is not one of them"
            )
        attacker = find_attacker(knowledge, loaded.defense, protocol.dataset, device, images.class_subset)
        x, y, ids = (part.to(device) for part in (images.x, images.y, images.ids))
        setup = Setup(loaded.defense, seed, device, batch_size, attacker, loaded.defense.stochastic)
        setup = setup.checked(x, ids)
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
        """The spec of an attack, with EOT for a randomized defense."""
        if self.eot > 1:
            arguments["eot"] = self.eot
        return f"{attack}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    @property
    def followed(self) -> str:
        """The spec of the attack to follow."""
        return self.spec(ATTACKS[self.threat.norm], steps=STEPS)


def share(part: Tensor) -> float:
    """The share of True in a bool tensor; 0 for an empty tensor."""
    return float(part.double().mean()) if part.numel() else 0.0
