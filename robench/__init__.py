"""robench: evaluate the adversarial robustness of defended image classifiers.

>>> import robench
>>> defense = robench.load_defense("mimir", dataset="digits")
>>> result = robench.attack("autoattack", defense, x, y, threat="Linf:0.1")
>>> record = robench.run(defense="mimir", attack="autoattack", dataset="digits", samples=100)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robench import _moved

if TYPE_CHECKING:
    from robench.defenses import Defense, load_defense
    from robench.evaluation.attack import attack
    from robench.evaluation.run import run

__all__ = ["Defense", "attack", "load_defense", "run"]

_HOMES = {
    "Defense": "robench.defenses",
    "attack": "robench.evaluation.attack",
    "load_defense": "robench.defenses",
    "run": "robench.evaluation.run",
}

_moved.install()


def __getattr__(name: str) -> Any:
    # Imported on first use: `robench --help` and the processes that corrupt images must not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
