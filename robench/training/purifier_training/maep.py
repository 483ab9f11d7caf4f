"""MAEP: "Adversarial Masked Autoencoder Purifier" (arXiv 2501.16904), its purification and masked training.

What the paper's recipe is beyond the two losses, the mask ratio .5, and a second stage with nothing hidden and LoRA
on the decoder, is not known here. The weights of the losses, how the adversarial images are made, LoRA's rank, and
which patches each loss sees are our choice. The nearest recipe that is known is DISCO's (CIFAR-10, Linf 8/255): pairs
made once by PGD with 100 steps of 2/255 on the cross entropy of a ResNet-18, L1 loss, Adam at 1e-4, batches of 128.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from robench.core.errors import ResourceError, UsageError
from robench.defenses import Defense, find_card, load
from robench.defenses._base import Purifier
from robench.defenses._patches import patchify, pick
from robench.defenses.maep import MAEP
from robench.threats.threat import Threat
from robench.training.adversarial import pgd
from robench.training.purifier_training._base import PurifierTraining, purifier_trainings

INSTALL = "pip install peft"
# Every linear map of the decoder.
_DECODER = r"decoder_embed|decoder_pred|decoder_blocks\..*\.(qkv|proj|fc1|fc2)"


@purifier_trainings.register("maep")
@dataclass(frozen=True)
class TrainMAEP(PurifierTraining):
    """Clean images from adversarial ones of which some patches are hidden.

    loss = mean |P(x_a) - x| over the patches seen + reconstruction * mean (P(x_a) - x)^2 over the hidden ones,
    before P is clipped, so that no pixel stops to learn.

    Attributes:
        source: the defense that the adversarial images x_a fool, for images of the purifier's size.
        eps, step_size, steps: of PGD on its cross entropy in Linf, from a uniform start; radii may be strings
            such as "8/255". The defaults are DISCO's.
        offline: whether the pairs are made once, before the first epoch; otherwise for every batch, after crops
            and mirror images, which costs `steps` passes of the source each time.
        mask_ratio: the part of the patches that is hidden; 0 hides none, as at test.
        reconstruction: weight of the loss on the hidden patches.
        rank: of LoRA (arXiv 2106.09685) on every linear map of the decoder, which alone then learns, and merged
            into it at the end; 0 trains the whole network. Needs `peft`.
        alpha: LoRA's scale is alpha / rank.
    """

    source: str = ""
    eps: float | str = 8 / 255
    step_size: float | str = 2 / 255
    steps: int = 100
    offline: bool = True
    mask_ratio: float = 0.5
    reconstruction: float = 1.0
    rank: int = 0
    alpha: int = 16

    def __post_init__(self) -> None:
        for name in ("eps", "step_size"):
            if isinstance(radius := getattr(self, name), str):
                object.__setattr__(self, name, Threat.parse(f"Linf:{radius}").eps)
        super().__post_init__()
        if self.mask_ratio >= 1:
            raise ValueError(
                f"mask_ratio={self.mask_ratio!r}: expected below 1, for some patches must be seen"
            )
        if self.rank and not self.alpha:
            raise ValueError(f"alpha={self.alpha!r}: expected above 0")
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(
                f'source={self.source!r}: name the defense to fool, such as source="standard-digits"'
            )
        find_card(self.source)

    def check(self) -> None:
        """See `PurifierTraining.check`: `peft` for LoRA, and the source's weights."""
        if self.rank and importlib.util.find_spec("peft") is None:
            raise ResourceError(f"maep(rank={self.rank}) trains by LoRA, which needs peft: {INSTALL}")
        _ = self._source

    @cached_property
    def _source(self) -> Defense:
        return load(self.source).defense

    def learner(self, purifier: Purifier) -> nn.Module:
        """The purifier itself, or wrapped by `peft` with only the decoder's LoRA factors to be trained."""
        if not isinstance(purifier, MAEP):
            raise ValueError(f"it trains a maep, not a {type(purifier).__name__}")
        purifier.requires_grad_(True)
        if not self.rank:
            return purifier
        from peft import LoraConfig, LoraModel

        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=_DECODER)
        return LoraModel(purifier, config, "default")

    def images(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """`x`, or with `offline` the pairs, (N, 6, S, S): the clean image, then the adversarial one.

        Raises:
            UsageError: when the purifier does not fit the images, the source is for images of another size, or for
                fewer classes.
        """
        side, taken = x.shape[-1], self._source.image_size
        try:
            _network(learner).check(side)
        except ValueError as error:
            raise UsageError(f"maep: {error}") from error
        if taken != side:
            raise UsageError(
                f"maep: its source {self.source} is for images of {taken} px: the data set's are of {side} px"
            )
        if y.max() >= self._source.num_classes:
            raise UsageError(
                f"maep: its source {self.source} knows {self._source.num_classes} classes: the data set has more"
            )
        if not self.offline:
            return x
        parts = zip(x.split(256), y.split(256), strict=True)
        return torch.cat([x, torch.cat([self.attacked(clean, labels) for clean, labels in parts])], 1)

    def attacked(self, x: Tensor, y: Tensor) -> Tensor:
        """x_a: images within `eps` of `x` that the source is to get wrong, (N, 3, S, S) in [0, 1]."""
        source = self._source.to(x.device)
        return pgd(source, x, y, float(self.eps), float(self.step_size), self.steps)

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """See the class; x: (N, 6, S, S) with `offline`, else (N, 3, S, S)."""
        clean, x_a = x.split(3, 1) if self.offline else (x, self.attacked(x, y))
        network = _network(learner)
        clean, x_a = network.cut(clean), network.cut(x_a)
        wanted = patchify(clean, network.patch_size)
        n, patches, _ = wanted.shape
        if not self.mask_ratio:
            return (network.pixels(x_a) - wanted).abs().mean()
        order = torch.rand(n, patches, device=x.device).argsort(1)
        visible = max(1, int(patches * (1 - self.mask_ratio)))
        error = network.pixels(x_a, order[:, :visible]) - wanted
        seen, hidden = (pick(error, rows) for rows in (order[:, :visible], order[:, visible:]))
        if not hidden.numel():
            return seen.abs().mean()
        return seen.abs().mean() + self.reconstruction * hidden.square().mean()

    def finish(self, learner: nn.Module, purifier: Purifier) -> None:
        """Merge LoRA's factors into the decoder's weights; the purifier has its own keys again."""
        if self.rank:
            adapted: Any = learner
            adapted.merge_and_unload()
            purifier.requires_grad_(True)


def _network(learner: nn.Module) -> MAEP:
    network = learner if isinstance(learner, MAEP) else learner.get_submodule("model")
    assert isinstance(network, MAEP)
    return network
