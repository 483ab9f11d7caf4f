"""MAEP, "Adversarial Masked Autoencoder Purifier" (arXiv 2501.16904): training with masked adversarial images.

Known of the paper's recipe are the two losses, the mask ratio 0.5, and a second stage without masking and with LoRA on
the decoder. The weights of the losses, the patches to which each loss applies, the attack, and LoRA's rank are our
choice. The closest published recipe is DISCO's (CIFAR-10, Linf 8/255): pairs made once by PGD with 100 steps of 2/255
on the cross entropy of a ResNet-18, L1 loss, Adam with learning rate 1e-4, batch size 128.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from robench.core.errors import ResourceError, UsageError
from robench.core.fields import BELOW_ONE
from robench.data._lazy_images import LazyImages
from robench.defenses import Defense, find_card, load
from robench.defenses._base import Purifier
from robench.defenses._patches import patchify, pick
from robench.defenses.maep import MAEP
from robench.threats.threat import Threat
from robench.training.adversarial import pgd
from robench.training.purifier_training._base import PurifierTraining, purifier_trainings

INSTALL = "pip install peft"
# All linear layers of the decoder.
_DECODER = r"decoder_embed|decoder_pred|decoder_blocks\..*\.(qkv|proj|fc1|fc2)"


@purifier_trainings.register("maep")
@dataclass(frozen=True)
class TrainMAEP(PurifierTraining):
    """Reconstruction of clean images from adversarial ones with hidden patches.

    loss = mean |P(x_a) - x| over visible patches + reconstruction * mean (P(x_a) - x)^2 over hidden patches, computed
    before P's output is clipped, so that every pixel has a gradient.

    Attributes:
        source: the defense that the adversarial images x_a attack; its images must have the purifier's size.
        eps, step_size, steps: of PGD in Linf on the source's cross entropy, from a uniform start; radii may be strings
            such as "8/255". The defaults are DISCO's.
        offline: whether to generate the pairs once, before the first epoch. Otherwise they are generated for every
            batch after augmentation, which costs `steps` passes of the source.
        mask_ratio: fraction of patches hidden; 0 for no mask, as in evaluation.
        reconstruction: weight of the loss on hidden patches.
        rank: rank of LoRA (arXiv 2106.09685) on all linear layers of the decoder. Only the LoRA factors are trained,
            and they are merged at the end. 0 trains the whole network. Needs `peft`.
        alpha: LoRA's scale is alpha / rank.
    """

    source: str = ""
    eps: float | str = 8 / 255
    step_size: float | str = 2 / 255
    steps: int = 100
    offline: bool = True
    mask_ratio: Annotated[float, BELOW_ONE] = 0.5
    reconstruction: float = 1.0
    rank: int = 0
    alpha: int = 16

    def __post_init__(self) -> None:
        for name in ("eps", "step_size"):
            if isinstance(radius := getattr(self, name), str):
                object.__setattr__(self, name, Threat.parse(f"Linf:{radius}").eps)
        super().__post_init__()
        if self.rank and not self.alpha:
            raise ValueError(f"alpha={self.alpha!r}: expected above 0")
        if not self.source:
            raise ValueError(
                f'source={self.source!r}: name the defense to attack, such as source="standard-digits"'
            )
        find_card(self.source)

    def check(self) -> None:
        """See `PurifierTraining.check`: checks `peft` for LoRA, and the source's weights."""
        if self.rank and importlib.util.find_spec("peft") is None:
            raise ResourceError(f"maep(rank={self.rank}) trains with LoRA, which needs peft: {INSTALL}")
        _ = self._source

    @cached_property
    def _source(self) -> Defense:
        return load(self.source).defense

    def learner(self, purifier: Purifier) -> nn.Module:
        """The purifier itself, or wrapped by `peft` so that only the decoder's LoRA factors are trained."""
        if not isinstance(purifier, MAEP):
            raise ValueError(f"expected a maep purifier, got {type(purifier).__name__}")
        purifier.requires_grad_(True)
        if not self.rank:
            return purifier
        from peft import LoraConfig, LoraModel

        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=_DECODER)
        return LoraModel(purifier, config, "default")

    def images(self, learner: nn.Module, x: Tensor | LazyImages, y: Tensor) -> Tensor | LazyImages:
        """`x`, or if `offline` pairs of clean and adversarial images, (N, 6, S, S).

        Raises:
            UsageError: if the purifier or the source does not support the size of the images, or the source has fewer
                classes than the dataset.
        """
        side, source_side = x.shape[-1], self._source.image_size
        try:
            _network(learner).check(side)
        except ValueError as error:
            raise UsageError(f"maep: {error}") from error
        if source_side != side:
            raise UsageError(
                f"maep: source {self.source} needs images of {source_side} px, but the dataset has {side} px"
            )
        if y.max() >= self._source.num_classes:
            raise UsageError(
                f"maep: source {self.source} has {self._source.num_classes} classes, but the dataset has more"
            )
        if not self.offline:
            return x
        if isinstance(x, LazyImages):
            raise UsageError("maep: the pairs of so large a dataset do not fit in memory: set offline=False")
        batches = zip(x.split(256), y.split(256), strict=True)
        return torch.cat([x, torch.cat([self.attacked(clean, labels) for clean, labels in batches])], 1)

    def attacked(self, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial images x_a of the source, within `eps` of `x`, (N, 3, S, S) in [0, 1]."""
        source = self._source.to(x.device)
        return pgd(source, x, y, float(self.eps), float(self.step_size), self.steps)

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """See the class; x: (N, 6, S, S) if `offline`, else (N, 3, S, S)."""
        clean, x_a = x.split(3, 1) if self.offline else (x, self.attacked(x, y))
        network = _network(learner)
        clean, x_a = network.cut(clean), network.cut(x_a)
        target = patchify(clean, network.patch_size)
        n, patches, _ = target.shape
        if not self.mask_ratio:
            return (network.pixels(x_a) - target).abs().mean()
        order = torch.rand(n, patches, device=x.device).argsort(1)
        count = max(1, int(patches * (1 - self.mask_ratio)))
        error = network.pixels(x_a, order[:, :count]) - target
        visible, hidden = pick(error, order[:, :count]), pick(error, order[:, count:])
        if not hidden.numel():
            return visible.abs().mean()
        return visible.abs().mean() + self.reconstruction * hidden.square().mean()

    def finish(self, learner: nn.Module, purifier: Purifier) -> None:
        """Merge the LoRA factors into the decoder's weights, which restores the keys of the purifier's state."""
        if self.rank:
            adapted: Any = learner
            adapted.merge_and_unload()
            purifier.requires_grad_(True)


def _network(learner: nn.Module) -> MAEP:
    network = learner if isinstance(learner, MAEP) else learner.get_submodule("model")
    assert isinstance(network, MAEP)
    return network
