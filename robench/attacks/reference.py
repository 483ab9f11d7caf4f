"""The reference implementation of AutoAttack, if installed: `pyautoattack` or `autoattack`.

Croce & Hein 2020, arXiv 2003.01690. For comparison with this engine on the same images and checkpoint, with the same
kind of record.
"""

import importlib
from dataclasses import dataclass

from torch import Tensor, nn

from robench.attacks._external import ForeignAttack
from robench.core.errors import ResourceError
from robench.core.formatting import install
from robench.core.registry import attacks
from robench.threats.threat import Threat

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
_PACKAGES = ("pyautoattack", "autoattack")


@attacks.register("reference")
@dataclass(frozen=True)
class Reference(ForeignAttack):
    """One attack of the standard version of the reference implementation.

    Args:
        attack: "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t" or "square".
    """

    attack: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack not in ATTACKS:
            raise ValueError(f"attack={self.attack!r}: expected one of {', '.join(ATTACKS)}")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, batch_size: int
    ) -> Tensor:
        """See the base class.

        Raises:
            ResourceError: if no reference implementation is installed.
        """
        runner = adversary(model, threat, seed, str(x.device))
        runner.attacks_to_run = [self.attack]
        result = runner.run_standard_evaluation(x, y, **_batch(runner, batch_size))
        return result[0] if isinstance(result, tuple) else result


def adversary(model: nn.Module, threat: Threat, seed: int, device: str, version: str = "standard"):
    """The AutoAttack object of the installed reference implementation, such as its version "standard" or "rand".

    Raises:
        ResourceError: if none is installed.
    """
    for package in _PACKAGES:
        try:
            kind = importlib.import_module(package).AutoAttack
        except ImportError:
            continue
        runner = kind(model, norm=threat.norm, eps=threat.eps, seed=seed, version=version, device=device)
        runner.verbose = False
        return runner
    raise ResourceError(
        f"the reference implementation of AutoAttack is not installed: {install('reference')}"
    )


def _batch(runner, batch_size: int) -> dict[str, int]:
    """The batch size argument, whose name differs between the two packages."""
    names = runner.run_standard_evaluation.__kwdefaults__ or {}
    return {"batch_size" if "batch_size" in names else "bs": batch_size}
