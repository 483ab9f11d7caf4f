"""Adversarial training methods, one paper per file.

MIMIR (arXiv 2312.04960) compares with a method DBAT. We assume that it is Double Boundary Adversarial Training
(arXiv 2310.02480), because acronym, subject and date fit and no other method of this name is known to us.
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
    """Build the method of a spec such as `trades` or `trades(beta=3.0)`.

    Raises:
        UsageError: if the name is unknown, or an argument is unknown, of the wrong type or out of range.
    """
    spec = specs.parse(text)
    return specs.build(spec, methods.get(spec.name))
