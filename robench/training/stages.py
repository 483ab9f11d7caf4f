"""Stages of a training.

The random numbers of an epoch depend only on the seed, the stage and the epoch, so a training resumed at the start
of an epoch gives bit-identical weights.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError
from robench.core.precision import computing
from robench.engine.backing_off import halved
from robench.training.augment import augment
from robench.training.distributed import SINGLE_PROCESS, ProcessGroup
from robench.training.mae import MaskedAutoencoder
from robench.training.methods import Budget, Method
from robench.training.methods._base import tensors
from robench.training.mimir import pretraining_loss
from robench.training.purifier_training import PurifierTraining
from robench.training.recipe import Finetuning, Pretraining, PurifierStage, Recipe, choose_method
from robench.training.schedule import cosine, parameter_groups, set_lr

# Layers that a classifier reinitialises when it starts from a pre-trained encoder.
HEAD = ("fc_norm.", "head.")
Loss = Callable[[Tensor, Tensor, float], Tensor]


def seed_for(*purpose: object) -> int:
    """Derive a 63-bit seed for torch's generators from the parts of a purpose."""
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass
class Stage:
    """A stage of a training with its model, optimiser and progress.

    Attributes:
        name: shown to the user, and part of every seed.
        loss: function of a batch (x, y) and the time in epochs; returns the mean loss over the rows.
        lr: learning rate as a function of the step and the number of steps per epoch.
        average: a model that holds the moving average of the weights, and the decay; None for no average.
        done: number of finished epochs.
        accumulate: number of micro-batches per batch, whose gradients are accumulated before the step; more while
            memory runs out.
        method: decides which weights the average follows, and what happens after each step.
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

    def __post_init__(self) -> None:
        # Number of micro-batches at present.
        self.parts = self.accumulate

    def state(self) -> dict:
        """The state that `restore` needs to resume the stage."""
        average = self.average[0].state_dict() if self.average else {}
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
        }

    def restore(self, state: dict) -> None:
        """Restore a state that `state` returned."""
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average[0].load_state_dict(state["average"])

    def run(
        self, x: Tensor, y: Tensor, recipe: Recipe, processes: ProcessGroup = SINGLE_PROCESS
    ) -> Iterator[float]:
        """Train the remaining epochs and yield the mean loss of each.

        Args:
            x: (N, 3, H, W) in [0, 1], y: (N,), both on the model's device.
            processes: the processes that split each batch; their weights stay identical.

        Raises:
            UsageError: if a batch has fewer images than there are processes.
        """
        size = min(self.batch_size, len(x))
        if size < processes.size:
            raise UsageError(f"cannot split a batch of {size} images over {processes.size} processes")
        steps = len(x) // size  # an incomplete last batch is dropped, so that all images have the same weight
        while self.done < self.epochs:
            torch.manual_seed(seed_for(recipe.seed, self.name, self.done))
            order = torch.randperm(len(x)).to(x.device)
            if processes.size > 1:  # the order is the same in all processes, other random numbers are not
                torch.manual_seed(seed_for(recipe.seed, self.name, self.done, processes.rank))
            total = x.new_zeros(())
            self.parts = self.accumulate
            for i in range(steps):
                step = self.done * steps + i
                rows = processes.shard(order[i * size : (i + 1) * size])
                set_lr(self.optimizer, self.lr(step, steps))
                total += self._gradients(augment(x[rows], recipe), y[rows], step / steps, size)
                processes.all_reduce(p.grad for p in self.model.parameters() if p.grad is not None)
                self.optimizer.step()
                self._update_average(step, steps)
            processes.all_reduce([total])
            self.done += 1
            yield float(total) / steps

    def _gradients(self, x: Tensor, y: Tensor, epoch: float, size: int) -> Tensor:
        """`_backward`, in more and smaller micro-batches while memory runs out."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        cuda = [x.device] if x.device.type == "cuda" else []
        states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in cuda]
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._backward(x, y, epoch, size)
            except RuntimeError as error:
                halved(-(-len(x) // self.parts), error, x.device)
            self.parts *= 2
            # The failed attempt leaves no trace in statistics of the batches or in random numbers.
            for buffer, value in buffers:
                buffer.data.copy_(value)
            torch.set_rng_state(states[0])
            for device, state in zip(cuda, states[1], strict=True):
                torch.cuda.set_rng_state(state, device)

    def _backward(self, x: Tensor, y: Tensor, epoch: float, size: int) -> Tensor:
        """Accumulate the gradient of these rows' share of the mean loss over `size` rows; return the share."""
        total = x.new_zeros(())
        parts = min(self.parts, len(x))
        for images, labels in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            loss = self.loss(images, labels, epoch) * (len(images) / size)
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def _update_average(self, step: int, steps: int) -> None:
        if not self.average:
            return
        average, highest_decay = self.average
        # A lower decay at first, so that the random initial weights are forgotten.
        decay = min(highest_decay, (1 + step) / (10 + step))
        total = self.epochs * steps
        followed = self.method.followed(self.model, (step + 1) / total)
        for mean, value in zip(tensors(average), followed, strict=True):
            mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
        self.method.after(self.model, average, step + 1, steps, total)


def pretraining_stage(
    classifier: nn.Module, config: Pretraining, device: torch.device, image_size: int | None = None
) -> Stage:
    """MIMIR's pre-training of a classifier's encoder, in place (arXiv 2312.04960).

    Plain MAE if eps and mi_weight are 0.

    Args:
        image_size: side of the images, for a classifier that accepts several sizes.

    Raises:
        UsageError: if masked pre-training does not support the classifier, or the recipe does not suit it.
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
    """One stage of a purifier's training.

    Args:
        number: position of the stage in the recipe, from 1.
        learner: from `method.learner`; parameters that require no gradient stay fixed.
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
    """Adversarial training by the recipe's method; the radius may grow over the first epochs.

    Args:
        average: another instance of the same network, for the moving average; its weights are overwritten.

    Raises:
        UsageError: if the method is unknown, or does not suit the network or the recipe.
    """
    method = choose_method(config)
    if config.probe:
        _freeze_encoder(model)
    try:
        learners = method.learners(model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    average.load_state_dict(model.state_dict())  # after `learners`, which may change the initial weights
    learners.train()

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        scale = min(1.0, epoch / config.ramp) if config.ramp else 1.0
        budget = Budget(
            config.eps * scale,
            config.step_size * scale,
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
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.startswith(HEAD))
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError(
            f"probe trains only the head, but {type(model).__name__} has no module {HEAD[-1][:-1]}"
        )
