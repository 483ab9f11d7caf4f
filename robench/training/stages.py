"""Stages of a training.

The random numbers of an epoch depend only on the seed, the stage and the epoch, and an interrupted epoch continues
from the saved state of the generators, so a resumed training gives bit-identical weights.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError
from robench.core.precision import computing
from robench.engine.backing_off import KINDS, halved
from robench.training.batches import Batches
from robench.training.distributed import SINGLE_PROCESS, ProcessGroup
from robench.training.draws import Part, cut, generators, same_draws, seed_for, set_generators
from robench.training.mae import MaskedAutoencoder
from robench.training.methods import Budget, Method
from robench.training.methods._base import tensors
from robench.training.mimir import Autoencoder, pretraining_loss
from robench.training.picture_augment import Augmentation
from robench.training.pretrained import HEAD
from robench.training.purifier_training import PurifierTraining
from robench.training.recipe import Finetuning, Pretraining, PurifierStage, Recipe, choose_method
from robench.training.schedule import cosine, parameter_groups, set_lr
from robench.training.spark import UNetAutoencoder

Loss = Callable[[Tensor, Tensor, float], Tensor]


@dataclass
class Stage:
    """A stage of a training with its model, optimizer and progress.

    Attributes:
        name: shown to the user, and part of every seed.
        loss: function of a batch (x, y) and the time in epochs; returns the mean loss over the rows.
        lr: learning rate as a function of the step and the number of steps per epoch.
        average: a model that holds the moving average of the weights, and the decay; None for no average.
        done: number of finished epochs.
        steps_done: number of finished steps of the epoch that was interrupted, see `state`.
        accumulate: number of micro-batches per batch, whose gradients are accumulated before the step; more while
            memory runs out.
        method: decides which weights the average follows, and what happens after each step.
        unit: number of consecutive rows of a batch that the loss couples, and that are computed together.
        augmentation: augmentation that other stages do not have.
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
    unit: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    steps_done: int = 0
    _total: float | Tensor = 0.0
    _generators: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Number of micro-batches at present.
        self.parts = self.accumulate

    def state(self) -> dict:
        """The state that `restore` needs to resume the stage, also in the middle of an epoch.

        Raises:
            UsageError: if the loss is not finite any more.
        """
        total = self._finite(self._total)
        average = self.average[0].state_dict() if self.average else {}
        device = next(self.model.parameters()).device
        return {
            "done": self.done,
            "steps": self.steps_done,
            "total": total,
            "generators": generators(device) if self.steps_done else [],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
        }

    def restore(self, state: dict) -> None:
        """Restore a state that `state` returned."""
        self.done, self.steps_done = state["done"], state["steps"]
        self._total, self._generators = state["total"], state["generators"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average[0].load_state_dict(state["average"])

    def run(
        self,
        images: Batches,
        recipe: Recipe,
        processes: ProcessGroup = SINGLE_PROCESS,
        after_step: Callable[[], None] = lambda: None,
    ) -> Iterator[float]:
        """Train the remaining epochs and yield the mean loss of each.

        Args:
            processes: the processes that split each batch; their weights stay identical.
            after_step: called between two steps of an epoch, when `state` may be saved.

        Raises:
            UsageError: if a batch is too small for the number of processes, or the loss is not finite any more.
        """
        size = min(self.batch_size, len(images))
        rows = self._rows(size, processes)
        steps = (
            len(images) // size
        )  # an incomplete last batch is dropped, so that all images have the same weight
        while self.done < self.epochs:
            torch.manual_seed(seed_for(recipe.seed, self.name, self.done))
            order = images.order(size)
            if self._generators:  # the same epoch was interrupted
                set_generators(self._generators, images.device)
                self._generators = []
            self.parts = self.accumulate
            total = torch.tensor(float(self._total), device=images.device)
            remaining = order[self.steps_done * size : steps * size].split(size)
            purpose = (recipe.seed, self.name, self.done)
            for x, y in images.read(remaining, rows, recipe, self.augmentation, purpose):
                step = self.done * steps + self.steps_done
                set_lr(self.optimizer, self.lr(step, steps))
                loss = self._gradients(x, y, step / steps, size, processes)
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                processes.all_reduce([*gradients, loss])
                total += loss
                self.optimizer.step()
                processes.average_statistics(self.model)
                self._update_average(step, steps)
                self.steps_done += 1
                if self.steps_done < steps:
                    self._total = total
                    after_step()
            mean = self._finite(total) / steps
            self.done, self.steps_done, self._total = self.done + 1, 0, 0.0
            yield mean

    def _finite(self, total: float | Tensor) -> float:
        """The sum of the losses of an epoch; all later weights would be NaN if it were not finite."""
        value = float(total)
        if not math.isfinite(value):
            raise UsageError(
                f"the loss became {value} in epoch {self.done + 1} of {self.name}: lower lr, or choose a longer warmup "
                'or precision = "fp32"'
            )
        return value

    def _parts(self, size: int, processes: ProcessGroup) -> list[Part]:
        """The micro-batches of this process."""
        parts = cut(size, processes.size * self.parts, self.unit)
        return [part for part in parts[processes.rank * self.parts :][: self.parts] if part.count]

    def _rows(self, size: int, processes: ProcessGroup) -> slice:
        """The rows of a batch that this process computes, however many micro-batches it has."""
        shares = cut(size, processes.size, self.unit)
        if not all(share.count for share in shares):
            groups = f" in groups of {self.unit}" if self.unit > 1 else ""
            raise UsageError(f"cannot split a batch of {size} images{groups} over {processes.size} processes")
        return shares[processes.rank].rows

    def _gradients(self, x: Tensor, y: Tensor, epoch: float, size: int, processes: ProcessGroup) -> Tensor:
        """`_backward`, in more and smaller micro-batches while memory runs out."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        states = generators(x.device)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            parts = self._parts(size, processes)
            try:
                return self._backward(x, y, epoch, parts)
            except KINDS as error:
                largest = max(part.count for part in parts)
                halved(1 if largest <= self.unit else largest, error, x.device)
            self.parts *= 2
            # The failed attempt leaves no trace in statistics of the batches or in random numbers.
            for buffer, value in buffers:
                buffer.data.copy_(value)
            set_generators(states, x.device)

    def _backward(self, x: Tensor, y: Tensor, epoch: float, parts: list[Part]) -> Tensor:
        """Accumulate the gradient of the share of the batch's mean loss that these rows have; return the share.

        Args:
            x, y: the rows of `parts`.
            parts: micro-batches; each draws the random numbers of the whole batch, see `draws`.
        """
        total = x.new_zeros(())
        counts = [part.count for part in parts]
        with same_draws(parts, x.device) as rewind:
            for part, images, labels in zip(parts, x.split(counts), y.split(counts), strict=True):
                rewind()
                with part.draws():
                    loss = self.loss(images, labels, epoch) * (part.count / part.size)
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
        model = _autoencoder(classifier, config, image_size).to(device)
    except (ValueError, AssertionError) as error:
        raise UsageError(f"the masked autoencoder cannot be built: {error}") from error
    model.train()

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        with computing(config.precision, x.device):
            return pretraining_loss(model, x, config.eps, config.step_size, config.mi_weight, config.mi_group)

    def lr(step: int, steps: int) -> float:
        return cosine(step, config.epochs * steps, round(config.warmup * steps), config.lr)

    groups = parameter_groups(model, config.weight_decay, decay_tokens=config.decay_tokens)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
    return Stage(
        "pre-training",
        model,
        optimizer,
        loss,
        lr,
        config.epochs,
        config.batch_size,
        accumulate=config.accumulate,
        unit=(config.mi_group if config.mi_weight else 0) or 1,
    )


def _autoencoder(classifier: nn.Module, config: Pretraining, image_size: int | None) -> Autoencoder:
    if config.decoder == "unet":
        return UNetAutoencoder(classifier, config.decoder_width, config.mask_ratio, image_size)
    return MaskedAutoencoder(
        classifier,
        config.decoder_width,
        config.decoder_depth,
        config.decoder_heads,
        config.mask_ratio,
        image_size,
    )


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


def finetuning_stage(model: nn.Module, average: nn.Module, config: Finetuning, num_classes: int = 0) -> Stage:
    """Adversarial training by the recipe's method; the radius may grow over the first epochs.

    Args:
        average: another instance of the same network, for the moving average; its weights are overwritten.
        num_classes: needed for mixup and CutMix.

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
    if config.probe:
        _evaluate_frozen(learners)

    def loss(x: Tensor, y: Tensor, epoch: float) -> Tensor:
        scale = min(1.0, epoch / config.ramp) if config.ramp else 1.0
        budget = Budget(
            config.eps * (scale if config.ramp_radius else 1.0),
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
        augmentation=Augmentation(
            config.randaugment, config.erasing, config.mixup, config.cutmix, num_classes
        ),
    )


def _evaluate_frozen(module: nn.Module) -> None:
    """Set parts whose parameters are all frozen to evaluation mode: no stochastic depth, no statistics of batches."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _evaluate_frozen(child)


def _freeze_encoder(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.startswith(HEAD))
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError(
            f"probe trains only the head, but {type(model).__name__} has no module {HEAD[-1][:-1]}"
        )
