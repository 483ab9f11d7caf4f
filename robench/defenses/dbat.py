"""Splitting the difference on adversarial training (Levi & Kontorovich 2023, arXiv 2310.02480): its classifier."""

from typing import Any

import torch
from torch import Tensor, nn

from robench.core import registry, specs
from robench.defenses._base import Defense


class PairedClasses(nn.Module):
    """A network of 2K logits, of which class k's is the larger of the clean one, k, and the adversarial, k + K."""

    def __init__(self, network: nn.Module, num_classes: int):
        super().__init__()
        self.network = network
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        clean, adversarial = self.network(x).split(self.num_classes, 1)
        return torch.maximum(clean, adversarial)

    def forward_features(self, x: Tensor) -> Tensor:
        """The network's own features."""
        forward_features: Any = self.network.forward_features
        return forward_features(x)


@registry.defenses.register("dbat")
def dbat(base: str, drop_path: float = 0.0) -> Defense:
    """DBAT's classifier: the network of another builder with twice the classes, each pair read as one.

    Args:
        base: the other builder's spec, such as "vit(image_size=32, patch_size=4, num_classes=10)", with the
            number of classes K of the data.
        drop_path: handed on to `base`, for training alone.

    Raises:
        ValueError: when `base` has no argument num_classes.
    """
    spec = specs.parse(base)
    builder = registry.defenses.get(spec.name)
    known = specs.defaults(builder)
    if "num_classes" not in known:
        raise ValueError(f"{spec.name} takes no num_classes to double")
    classes = spec.arguments.get("num_classes", known["num_classes"])
    extra = {"num_classes": 2 * classes, **({"drop_path": drop_path} if drop_path else {})}
    defense = specs.build(specs.Spec(spec.name, {**spec.arguments, **extra}), builder)
    defense.classifier = PairedClasses(defense.classifier, classes)
    defense.num_classes = classes
    return defense
