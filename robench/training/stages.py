"""One stage of a training: epochs over the data, each with random numbers of its own.

The numbers of an epoch depend on (seed, stage, epoch) alone, so that a training resumed at an epoch's start
goes on bit for bit as if it had never stopped.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError
from robench.core.precision import computing
from robench.training.augment import augment
from robench.training.distributed import ALONE, ProcessGroup
from robench.training.mae import MaskedAutoencoder
from robench.training.methods import Budget, Method
from robench.training.methods._base import tensors
from robench.training.mimir import pretraining_loss
from robench.training.purifier_training import PurifierTraining
from robench.training.recipe import Finetuning, Pretraining, PurifierStage, Recipe, choose_method
from robench.training.schedule import cosine, parameter_groups, set_lr

# What a classifier draws again when it starts from an encoder.
HEAD = ("fc_norm.", "head.")
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
        loss: of a batch (x, y) at a time in epochs, a mean over its rows.
        lr: the learning rate at a time given as (step, steps an epoch).
        average: a copy of the model whose weights trail behind it, and the decay; None for none.
        done: epochs behind it.
        accumulate: parts that a batch is cut into; their gradients are added up before the step.
        method: decides what the average follows, and what happens after a step.
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
    accumulate: int = 1
    method: Method = field(default_factory=Method)

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

    def run(self, x: Tensor, y: Tensor, recipe: Recipe, team: ProcessGroup = ALONE) -> Iterator[float]:
        """Train epoch by epoch, giving the mean loss of each; `done` counts the one just given.

        Args:
            x: (N, 3, H, W) in [0, 1], y: (N,), both on the model's device.
            team: the processes that share each batch; their weights stay the same.

        Raises:
            UsageError: when a batch has fewer images than there are processes.
        """
        size = min(self.batch_size, len(x))
        if size < team.size:
            raise UsageError(f"{team.size} processes cannot share a batch of {size} images")
        steps = len(x) // size  # the rest of a shuffled epoch is left out, so that all batches weigh the same
        while self.done < self.epochs:
            torch.manual_seed(seed_for(recipe.seed, self.name, self.done))
            order = torch.randperm(len(x)).to(x.device)
            if team.size > 1:  # the order is common, all other random numbers are each process's own
                torch.manual_seed(seed_for(recipe.seed, self.name, self.done, team.rank))
            total = x.new_zeros(())
            for i in range(steps):
                step = self.done * steps + i
                rows = team.share(order[i * size : (i + 1) * size])
                set_lr(self.optimizer, self.lr(step, steps))
                self.optimizer.zero_grad(set_to_none=True)
                total += self._backward(augment(x[rows], recipe), y[rows], step / steps, size)
                team.add_up(p.grad for p in self.model.parameters() if p.grad is not None)
                self.optimizer.step()
                self._follow(step, steps)
            team.add_up([total])
            self.done += 1
            yield float(total) / steps

    def _backward(self, x: Tensor, y: Tensor, epoch: float, size: int) -> Tensor:
        """Add the gradient of these rows' part in the mean loss of `size` rows; that part, detached."""
        total = x.new_zeros(())
        parts = min(self.accumulate, len(x))
        for part, wanted in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            loss = self.loss(part, wanted, epoch) * (len(part) / size)
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def _follow(self, step: int, steps: int) -> None:
        if not self.average:
            return
        average, longest = self.average
        # At first the average forgets faster, or it would remember the random start.
        decay = min(longest, (1 + step) / (10 + step))
        total = self.epochs * steps
        followed = self.method.followed(self.model, (step + 1) / total)
        for slow, fast in zip(tensors(average), followed, strict=True):
            slow.lerp_(fast, 1 - decay) if slow.is_floating_point() else slow.copy_(fast)
        self.method.after(self.model, average, step + 1, steps, total)


def pretraining_stage(
    classifier: nn.Module, config: Pretraining, device: torch.device, image_size: int | None = None
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
            classifier,
            config.decoder_width,
            config.decoder_depth,
            config.decoder_heads,
            config.mask_ratio,
            image_size,
        ).to(device)
    except (ValueError, AssertionError) as error:
        raise UsageError(f"the masked autoencoder cannot be built: {error}") from error
    model.train()

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        with computing(config.precision, x.device):
            return pretraining_loss(model, x, config.eps, config.step_size, config.mi_weight)

    def lr(step: int, steps: int) -> float:
        return cosine(step, config.epochs * steps, round(config.warmup * steps), config.lr)

    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
    return Stage("pre-training", model, optimizer, loss, lr, config.epochs, config.batch_size)


def purifier_stage(number: int, learner: nn.Module, method: PurifierTraining, config: PurifierStage) -> Stage:
    """A stage of a purifier's training.

    Args:
        number: counts a recipe's stages, from 1.
        learner: from `method`; only its parameters with gradient are trained.
    """
    learner.train()
    average = copy.deepcopy(learner) if config.average else None

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        with computing(config.precision, x.device):
            return method.loss(learner, x, y)

    def lr(step: int, steps: int) -> float:
        return cosine(step, config.epochs * steps, round(config.warmup * steps), config.lr, config.min_lr)

    groups = parameter_groups(learner, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2))
    return Stage(
        f"purifier stage {number}",
        learner,
        optimizer,
        loss,
        lr,
        config.epochs,
        config.batch_size,
        average=(average, config.average) if average is not None else None,
        accumulate=config.accumulate,
    )


def finetuning_stage(model: nn.Module, average: nn.Module, config: Finetuning) -> Stage:
    """Adversarial training by the recipe's method, with a radius that may grow.

    Args:
        average: a second model of the same network, overwritten.

    Raises:
        UsageError: when there is no such method, or it does not suit the network or the recipe.
    """
    method = choose_method(config)
    if config.probe:
        _freeze_encoder(model)
    try:
        learners = method.learners(model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    average.load_state_dict(model.state_dict())  # as the method lets it start
    learners.train()

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        part = min(1.0, epoch / config.ramp) if config.ramp else 1.0
        budget = Budget(
            config.eps * part,
            config.step_size * part,
            config.steps,
            config.label_smoothing,
            epoch / config.epochs,
        )
        with computing(config.precision, x.device):
            return method.loss(learners, x, y, budget)

    def lr(step: int, steps: int) -> float:
        return cosine(step, config.epochs * steps, round(config.warmup * steps), config.lr, config.min_lr)

    groups = method.groups(learners, config.weight_decay, config.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    return Stage(
        "fine-tuning",
        learners,
        optimizer,
        loss,
        lr,
        config.epochs,
        config.batch_size,
        average=(average, config.average) if config.average else None,
        accumulate=config.accumulate,
        method=method,
    )


def _freeze_encoder(model: nn.Module) -> None:
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(name.startswith(HEAD))
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UsageError(
            f"probe trains the head alone: a {type(model).__name__} has none by the name {HEAD[-1]}"
        )
