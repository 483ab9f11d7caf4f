"""De^3's classifier: training on images that its purifier has denoised (You et al., arXiv 2302.01056)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.core.errors import UsageError
from robench.defenses import load_purifier
from robench.defenses.de3 import DE3
from robench.training.methods._base import Budget, Method, logits, methods, tensors
from robench.training.schedule import parameter_groups

# How the classifier starts: from the purifier's own encoder, or from nothing.
STARTS = ("encoder", "new")


class Pair(nn.Module):
    """The classifier, which learns, behind the purifier, which does not."""

    def __init__(self, classifier: nn.Module, purifier: DE3):
        super().__init__()
        self.classifier = classifier
        self.purifier = purifier.requires_grad_(False)


@methods.register("denoised")
@dataclass(frozen=True)
class Denoised(Method):
    """The cross entropy on clean images that have been noised and denoised; no adversarial images.

    A purifier that hides patches draws one sigma a batch, since all rows must show equally many: our choice.

    Args:
        purifier: the card of a trained purifier of De^3's kind.
        sigma: the noise of each image is drawn between 0 and this; in the purifier's units, see `DE3`.
        start: "encoder" starts the classifier from the purifier's encoder, its head near 0; "new" from nothing.
    """

    fewest_steps: ClassVar[int] = 0
    most_steps: ClassVar[float] = 0

    purifier: str
    sigma: float = 30.0
    start: str = "encoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r}: expected one of {', '.join(STARTS)}")

    def learners(self, model: nn.Module) -> nn.Module:
        purifier = load_purifier(self.purifier, device=next(model.parameters()).device)
        if not isinstance(purifier, DE3):
            raise ValueError(
                f"{self.purifier} is a {type(purifier).__name__}: denoised needs one of kind de3"
            )
        if purifier.noise == "mask" and self.sigma > 100:
            raise ValueError(f"sigma={self.sigma} hides every patch: a mask needs at most 100")
        if self.start == "encoder":
            _hand_over(purifier, model)
        return Pair(model, purifier)

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        assert isinstance(learners, Pair)
        purifier = learners.purifier
        if x.shape[-1] != purifier.image_size:
            raise UsageError(
                f"{self.purifier} takes images of {purifier.image_size} px, and these have {x.shape[-1]} px"
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


def _hand_over(purifier: DE3, classifier: nn.Module) -> None:
    """Start a ViT from the purifier's encoder; the head is drawn again, with deviation 2e-5 as MAE's fine-tuning."""
    state, wanted = purifier.encoder_state(), classifier.state_dict()
    new = {key for key in wanted if key.startswith(("fc_norm.", "head."))}
    if {key: value.shape for key, value in wanted.items() if key not in new} != {
        key: value.shape for key, value in state.items()
    }:
        raise ValueError(
            "the classifier cannot start from the purifier's encoder, whose network is another one: "
            'give it the same sizes, or write start="new"'
        )
    classifier.load_state_dict(state, strict=False)
    head = classifier.get_submodule("head")
    assert isinstance(head, nn.Linear)
    nn.init.trunc_normal_(head.weight, std=2e-5)
    nn.init.zeros_(head.bias)
