"""Training methods of purifiers, one paper per file."""

from robench.core import specs
from robench.training.purifier_training import ddpm, maep, nim  # noqa: F401 - they register themselves
from robench.training.purifier_training._base import PurifierTraining, purifier_trainings

__all__ = ["PurifierTraining", "find_purifier_training", "purifier_trainings"]


def find_purifier_training(text: str) -> PurifierTraining:
    """Build the training method of a spec such as `maep(mask_ratio=0.5)`.

    Raises:
        UsageError: if the name is unknown, or an argument is unknown, of the wrong type or out of range.
    """
    spec = specs.parse(text)
    return specs.build(spec, purifier_trainings.get(spec.name))
