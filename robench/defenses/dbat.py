"""Splitting the difference on adversarial training (Levi & Kontorovich 2023, arXiv 2310.02480): its classifier."""

from typing import Any

import torch
from torch import Tensor, nn

from robench.core import registry, specs
from robench.defenses._base import Defense


class PairedClasses(nn.Module):
    """Reads 2K logits as K classes: the logit of class k is the larger of k (clean) and k + K (adversarial)."""

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
    """DBAT's classifier: another builder's network with twice the classes, each pair read as one class.

    Args:
        base: spec of the other builder with the K classes of the data, such as
            "vit(image_size=32, patch_size=4, num_classes=10)".
        drop_path: rate of stochastic depth of `base`, for training only; 0 for the rate in `base`.

    Raises:
        ValueError: if `base` has no argument num_classes.
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
