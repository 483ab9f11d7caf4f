"""One stage of a training: epochs over the data, each with random numbers of its own.

The numbers of an epoch depend on (seed, stage, epoch) alone, so that a training resumed at an epoch's start
goes on bit for bit as if it had never stopped.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import UsageError
from robench.training.adversarial import pgd
from robench.training.augment import augment
from robench.training.mae import MaskedAutoencoder
from robench.training.mimir import pretraining_loss
from robench.training.recipe import Finetuning, Pretraining, Recipe
from robench.training.schedule import cosine, parameter_groups, set_lr

Loss = Callable[[Tensor, Tensor, float], Tensor]


def seed_for(*purpose: object) -> int:
    """A 63-bit seed for torch's generator from the parts of a purpose."""
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass
class Stage:
    """What is trained, how, and how far it is.

    Attributes:
        name: shown, and part of every seed.
        model: what is trained.
        loss: of a batch (x, y) at a time in epochs.
        lr: the learning rate at a time given as (step, steps an epoch).
        average: a copy of the model whose weights trail behind it, and the decay; None for none.
        done: epochs behind it.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    lr: Callable[[int, int], float]
    epochs: int
    batch_size: int
    average: tuple[nn.Module, float] | None = None
    done: int = 0

    def state(self) -> dict:
        """Everything that the rest of the stage depends on, for `restore`."""
        average = self.average[0].state_dict() if self.average else {}
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
        }

    def restore(self, state: dict) -> None:
        """Go back to where `state` was taken."""
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average[0].load_state_dict(state["average"])

    def run(self, x: Tensor, y: Tensor, recipe: Recipe) -> Iterator[float]:
        """Train epoch by epoch, giving the mean loss of each; `done` counts the one just given.

        Args:
            x: (N, 3, H, W) in [0, 1], y: (N,), both on the model's device.
        """
        size = min(self.batch_size, len(x))
        steps = len(x) // size  # the rest of a shuffled epoch is left out, so that all batches weigh the same
        while self.done < self.epochs:
            torch.manual_seed(seed_for(recipe.seed, self.name, self.done))
            order = torch.randperm(len(x)).to(x.device)
            total = x.new_zeros(())
            for i in range(steps):
                step = self.done * steps + i
                rows = order[i * size : (i + 1) * size]
                set_lr(self.optimizer, self.lr(step, steps))
                loss = self.loss(augment(x[rows], recipe), y[rows], step / steps)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                self._follow(step)
                total += loss.detach()
            self.done += 1
            yield float(total) / steps

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        if not self.average:
            return
        # At first the average forgets faster, or it would remember the random start.
        decay = min(self.average[1], (1 + step) / (10 + step))
        for slow, fast in zip(self.average[0].parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def pretraining_stage(
    classifier: nn.Module, how: Pretraining, device: torch.device, image_size: int | None = None
) -> Stage:
    """MIMIR's pre-training of a classifier's encoder, in place (arXiv 2312.04960).

    Plain MAE for eps and mi_weight 0.

    Args:
        image_size: side of the images, for a classifier that does not know it.

    Raises:
        UsageError: when the classifier is of a kind that cannot be masked, or does not suit the recipe.
    """
    try:
        model = MaskedAutoencoder(
            classifier, how.decoder_width, how.decoder_depth, how.decoder_heads, how.mask_ratio, image_size
        ).to(device)
    except (ValueError, AssertionError) as error:
        raise UsageError(f"the masked autoencoder cannot be built: {error}") from error
    model.train()

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        return pretraining_loss(model, x, how.eps, how.step_size, how.mi_weight)

    def lr(step: int, steps: int) -> float:
        return cosine(step, how.epochs * steps, round(how.warmup * steps), how.lr)

    groups = parameter_groups(model, how.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=how.lr, betas=(0.9, 0.95))
    return Stage("pre-training", model, optimizer, loss, lr, how.epochs, how.batch_size)


def finetuning_stage(model: nn.Module, average: nn.Module, how: Finetuning) -> Stage:
    """PGD adversarial training (arXiv 1706.06083) with a radius that may grow; clean training for 0 steps.

    Args:
        average: a second model of the same network, overwritten.
    """
    model.train()
    average.load_state_dict(model.state_dict())

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        if how.steps:
            part = min(1.0, epoch / how.ramp) if how.ramp else 1.0
            x = pgd(model, x, y, how.eps * part, how.step_size * part, how.steps)
        return F.cross_entropy(model(x), y, label_smoothing=how.label_smoothing)

    def lr(step: int, steps: int) -> float:
        return cosine(step, how.epochs * steps, round(how.warmup * steps), how.lr, how.min_lr)

    groups = parameter_groups(model, how.weight_decay, how.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=how.lr)
    return Stage(
        "fine-tuning",
        model,
        optimizer,
        loss,
        lr,
        how.epochs,
        how.batch_size,
        average=(average, how.average) if how.average else None,
    )
