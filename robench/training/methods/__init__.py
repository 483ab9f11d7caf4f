"""Methods of adversarial training by name, one paper a file, all on one trainer.

DBAT, which MIMIR (arXiv 2312.04960) names beside Generalist without our having seen its reference, is taken to
be Double Boundary Adversarial Training (arXiv 2310.02480): the acronym, the subject and the time fit, and no
other method of that name was found.
"""

from robench.core import specs
from robench.training.methods import (  # noqa: F401 - they register themselves
    apgd_at,
    dbat,
    denoised,
    fast_at,
    generalist,
    mart,
    pgd_at,
    trades,
)
from robench.training.methods._base import Budget, Method, methods

__all__ = ["Budget", "Method", "find_method", "methods"]


def find_method(text: str) -> Method:
    """The method of a spec such as `trades` or `trades(beta=3.0)`.

    Raises:
        UsageError: for an unknown name, or a setting that is unknown, of another type or out of range.
    """
    spec = specs.parse(text)
    return specs.build(spec, methods.get(spec.name))
