"""Ways to train a purifier by name, one paper a file, all on the trainer of the classifiers."""

from robench.core import specs
from robench.training.purifying import ddpm, maep, nim  # noqa: F401 - they register themselves
from robench.training.purifying._base import Purifying, purifying

__all__ = ["Purifying", "find_purifying", "purifying"]


def find_purifying(text: str) -> Purifying:
    """The way of a spec such as `maep(mask_ratio=0.5)`.

    Raises:
        UsageError: for an unknown name, or a setting that is unknown, of another type or out of range.
    """
    spec = specs.parse(text)
    return specs.build(spec, purifying.get(spec.name))
