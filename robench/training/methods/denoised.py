"""Training of De^3's classifier on images denoised by its purifier (You et al., arXiv 2302.01056)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.core.errors import UsageError
from robench.defenses import load_purifier
from robench.defenses.de3 import DE3
from robench.training.methods._base import Budget, Method, logits, methods, tensors
from robench.training.pretrained import HEAD, load_encoder
from robench.training.schedule import parameter_groups


class Pair(nn.Module):
    """A classifier, which is trained, and its purifier, whose weights are fixed."""

    def __init__(self, classifier: nn.Module, purifier: DE3):
        super().__init__()
        self.classifier = classifier
        self.purifier = purifier.requires_grad_(False)


@methods.register("denoised")
@dataclass(frozen=True)
class Denoised(Method):
    """The cross entropy on clean images to which the purifier adds noise and which it then denoises.

    It uses no adversarial examples. Our choice: a purifier that hides patches draws one sigma per batch, because all
    rows must have the same number of visible patches.

    Args:
        purifier: card of a trained purifier of type `de3`.
        sigma: maximum noise; each image's noise is uniform between 0 and this. See `DE3` for the unit.
        start: "encoder" to start from the weights of the purifier's encoder, with the head close to 0; "new" to start
            from random weights.
    """

    fewest_steps: ClassVar[int] = 0
    most_steps: ClassVar[float] = 0
    mixes_labels: ClassVar[bool] = True

    purifier: str
    sigma: float = 30.0
    start: Literal["encoder", "new"] = "encoder"

    @property
    def sets_weights(self) -> bool:
        return self.start == "encoder"

    def learners(self, model: nn.Module) -> nn.Module:
        purifier = load_purifier(self.purifier, device=next(model.parameters()).device)
        if not isinstance(purifier, DE3):
            raise ValueError(f"{self.purifier} is a {type(purifier).__name__}: denoised needs a de3 purifier")
        if purifier.noise == "mask" and self.sigma > 100:
            raise ValueError(f"sigma={self.sigma} hides every patch: expected at most 100 for a mask")
        if self.start == "encoder":
            _load_encoder(purifier, model)
        return Pair(model, purifier)

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        assert isinstance(learners, Pair)
        purifier = learners.purifier
        if x.shape[-1] != purifier.image_size:
            raise UsageError(
                f"{self.purifier} needs images of {purifier.image_size} px, but the dataset has {x.shape[-1]} px"
            )
        sigma = x.new_empty(len(x) if purifier.noise == "gaussian" else 1).uniform_(0, self.sigma)
        with torch.no_grad():
            x = purifier.denoise(x, sigma)
        return F.cross_entropy(logits(learners.classifier, x), y, label_smoothing=budget.label_smoothing)

    def groups(self, learners: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        assert isinstance(learners, Pair)
        return parameter_groups(learners.classifier, weight_decay, layer_decay)

    def followed(self, learners: nn.Module, part: float) -> list[Tensor]:
        assert isinstance(learners, Pair)
        return tensors(learners.classifier)


def _load_encoder(purifier: DE3, classifier: nn.Module) -> None:
    """Load the weights of the purifier's encoder into a ViT and reinitialize its head.

    The head's standard deviation is 2e-5, as in MAE's fine-tuning.
    """
    state = purifier.encoder_state()
    shapes = {key: value.shape for key, value in classifier.state_dict().items()}
    expected = {key: shape for key, shape in shapes.items() if not key.startswith(HEAD)}
    if expected != {key: value.shape for key, value in state.items()}:
        raise ValueError(
            "the classifier cannot start from the purifier's encoder, because the networks differ: "
            'use the same sizes, or write start="new"'
        )
    load_encoder(state, classifier, head_std=2e-5)
