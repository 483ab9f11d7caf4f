"""robench: evaluate the adversarial robustness of defended image classifiers.

>>> import robench
>>> defense = robench.load_defense("mimir", dataset="digits")
>>> result = robench.attack("autoattack", defense, x, y, threat="Linf:0.1")
>>> result.save("results/mine")
>>> record = robench.run(defense="mimir", attack="autoattack", dataset="digits", samples=100)
>>> robench.records("results")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robench import _moved

if TYPE_CHECKING:
    from robench.defenses import Defense, load_defense
    from robench.evaluation.attack import attack
    from robench.evaluation.certify import certify
    from robench.evaluation.result import Result
    from robench.evaluation.run import run
    from robench.evaluation.trackers import log
    from robench.records.frame import frame as records

__all__ = ["Defense", "Result", "attack", "certify", "load_defense", "log", "records", "run"]

_HOMES = {
    "Defense": "robench.defenses",
    "Result": "robench.evaluation.result",
    "attack": "robench.evaluation.attack",
    "certify": "robench.evaluation.certify",
    "load_defense": "robench.defenses",
    "log": "robench.evaluation.trackers",
    "run": "robench.evaluation.run",
}

_moved.install()


def __getattr__(name: str) -> Any:
    if name == "records":  # A package, which can be called.
        return import_module("robench.records")
    if name == "__version__":
        return import_module("robench.records.provenance").robench_version()
    # Imported on first use: `robench --help` and the processes that corrupt images must not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
