"""Recipes: the `[recipe]` table of a card, which sets how its checkpoint is trained; every field is validated."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Annotated, Any, Literal, TypeVar

from robench.core.errors import UsageError
from robench.core.fields import ABOVE_ZERO, AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, check_table
from robench.threats.threat import Threat
from robench.training.methods import Method, find_method
from robench.training.picture_augment import randaugment
from robench.training.purifier_training import find_purifier_training

Count = Annotated[int, AT_LEAST_ONE]
Share = Annotated[float, BELOW_ONE]
Positive = Annotated[float, ABOVE_ZERO]


@dataclass(frozen=True)
class Pretraining:
    """Masked pre-training, with MIMIR's defaults for CIFAR-10 (arXiv 2312.04960, official code).

    Attributes:
        epochs, warmup: number of epochs. The learning rate rises linearly during the first `warmup` epochs, then
            follows a cosine to 0.
        batch_size, lr, weight_decay: of AdamW(0.9, 0.95); one-dimensional parameters are not decayed.
        decay_tokens: whether the class token and trained position embeddings are decayed too, as in the official code.
        accumulate: as in Finetuning; a group of `mi_group` rows is never split.
        eps, step_size: radius and step size of the one-step inner attack in Linf; eps 0 gives plain MAE.
        mask_ratio: fraction of patches hidden.
        mi_weight: lambda, the weight of the nHSIC penalty; 0 for no penalty.
        mi_group: number of rows whose nHSIC is one penalty; the penalties are averaged. In the official code these are
            the rows of one GPU, 128 of 512 on CIFAR-10 and 512 of 2,048 on ImageNet. nHSIC grows with the rows, so the
            gradient of one penalty over 512 rows is several times larger. 0 for all rows that are computed at once.
        decoder: "transformer", or "unet" for a ConvNeXt, as in SparK, whose decoder has no other size than its width.
        decoder_width, decoder_depth, decoder_heads: size of the decoder.
        precision: "fp32", or "bf16" for autocast; weights and nHSIC stay in fp32.
    """

    epochs: Count = 800
    warmup: float = 40.0
    batch_size: Count = 512
    lr: Positive = 3e-4
    weight_decay: float = 0.05
    decay_tokens: bool = False
    accumulate: Count = 1
    eps: float = 8 / 255
    step_size: float = 10 / 255
    mask_ratio: Share = 0.75
    mi_weight: float = 1e-5
    mi_group: int = 0
    decoder: Literal["transformer", "unet"] = "transformer"
    decoder_width: Count = 128
    decoder_depth: Count = 2
    decoder_heads: Count = 16
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class Finetuning:
    """Training of the whole classifier, with the defaults of MIMIR's fine-tuning on CIFAR-10.

    Attributes:
        method: spec of an adversarial training method, optionally with arguments, such as "trades(beta=6.0)".
        epochs, warmup: number of epochs. The learning rate rises linearly during the first `warmup` epochs, then
            follows a cosine to `min_lr`.
        batch_size, lr, weight_decay: of AdamW; one-dimensional parameters are not decayed.
        accumulate: number of micro-batches that a batch is split into. Their gradients are accumulated, which saves
            memory and does not change the training.
        precision: "fp32", or "bf16" for autocast; weights stay in fp32.
        layer_decay: factor of the learning rate from each layer to the one below it.
        head_std: standard deviation of the initial weights of a linear head after pre-training; the official code has
            2e-5 on ImageNet.
        drop_path: stochastic depth rate of the last block.
        label_smoothing: of every cross entropy in the method's loss.
        eps, step_size, steps: of the method's inner attack in Linf; pgd-at with 0 steps trains on clean images.
            apgd-at sets its own step size.
        ramp: number of epochs over which the step size and the radius grow linearly from 0.
        ramp_radius: whether the radius grows with the step size.
        resized_crop: as in Recipe, for this stage alone; 0 for that of the recipe.
        randaugment: RandAugment of timm, such as "rand-m9-mstd0.5-inc1"; empty for none.
        erasing: probability that a random rectangle is filled with noise.
        mixup, cutmix: parameter of the Beta distribution of the weights of mixed images; 0 for none, and if both are
            positive, each batch is mixed by one of the two with equal chances.
        average: decay per step of the moving average of the weights, which becomes the checkpoint; 0 keeps the last
            weights.
        probe: freeze the encoder and train the head alone (a linear probe if the head is linear).
    """

    method: str = "pgd-at"
    epochs: Count = 50
    warmup: float = 5.0
    batch_size: Count = 128
    accumulate: Count = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    lr: Positive = 0.025
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    layer_decay: Positive = 0.65
    head_std: Positive = 0.02
    drop_path: Share = 0.1
    label_smoothing: Share = 0.1
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    ramp: float = 0.0
    ramp_radius: bool = True
    average: Share = 0.0
    probe: bool = False
    resized_crop: Share = 0.0
    randaugment: str = ""
    erasing: Share = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class PurifierStage:
    """One stage of a purifier's training, by a method of `robench.training.purifier_training`.

    Attributes:
        method: spec of the method, such as "nim(sigma='gamma')".
        epochs, warmup: number of epochs. The learning rate rises linearly during the first `warmup` epochs, then
            follows a cosine to `min_lr`.
        batch_size, lr, weight_decay, beta2: of AdamW(0.9, beta2); one-dimensional parameters are not decayed.
        accumulate, precision, average: as in Finetuning.
    """

    method: str = ""
    epochs: Count = 100
    warmup: float = 5.0
    batch_size: Count = 128
    accumulate: Count = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    lr: Positive = 1e-3
    min_lr: float = 0.0
    weight_decay: float = 0.05
    beta2: Share = 0.95
    average: Share = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a checkpoint's weights, except the network and the dataset.

    Attributes:
        finetuning, pretraining: stages of a classifier's training; pretraining None skips the pre-training.
        purifying: stages of a purifier's training, `[[recipe.purifying]]`, in order; empty for a classifier.
        start: name of the card whose checkpoint is loaded before training, instead of a pre-training; for a
            classifier, its head is not loaded.
        samples: number of training images, from the start of the train split; 0 for all.
        generated: fraction of generated images in every batch; their file is given to `train`.
        measured: number of test images for the final evaluation, from the start of the test split; 0 for all.
        seed: seed of all random numbers.
        shift: random crops after zero padding by this many pixels.
        rotation, scaling: random rotations by up to this many degrees, and random scales within 1 +- this number.
        flip: random horizontal flips.
        resized_crop: random resized crops with at least this fraction of the area and an aspect ratio between 3:4
            and 4:3; 0 for none.
        evaluation: threat model of the final evaluation.
        stored: precision of the checkpoint, "fp32" or "fp16"; the evaluation uses the stored weights.
        threads: number of CPU threads; 0 for torch's default. It affects the last bits of the weights. One thread
            is fastest for a small network.
    """

    finetuning: Finetuning = field(default_factory=Finetuning)
    pretraining: Pretraining | None = None
    purifying: tuple[PurifierStage, ...] = ()
    start: str = ""
    samples: int = 0
    generated: Share = 0.0
    measured: int = 0
    seed: int = 0
    shift: int = 0
    rotation: float = 0.0
    scaling: Share = 0.0
    flip: bool = False
    resized_crop: Share = 0.0
    evaluation: str = "Linf:8/255"
    stored: Literal["fp32", "fp16"] = "fp32"
    threads: int = 0


# Fields that may be written as fractions, "8/255".
_RADII = ("eps", "step_size")
# Fields of stages that earlier releases do not have.
_ADDED_LATER = {
    *("method", "accumulate", "precision", "probe", "decay_tokens", "mi_group", "head_std", "ramp_radius"),
    *("resized_crop", "randaugment", "erasing", "mixup", "cutmix", "decoder"),
}

Table = TypeVar("Table", bound=Pretraining | Finetuning | PurifierStage | Recipe)


def read_recipe(table: Mapping[str, Any], origin: str) -> Recipe:
    """Validate and build the recipe of a card.

    Args:
        table: the card's `[recipe]`; `eps` and `step_size` may be strings such as "8/255".
        origin: the card's file, for messages.

    Raises:
        UsageError: if a field is unknown, of the wrong type or out of range.
    """
    table = dict(table)
    for name, kind in (("pretraining", Pretraining), ("finetuning", Finetuning)):
        if name in table:
            if not isinstance(table[name], Mapping):
                raise UsageError(
                    f"{origin}: recipe.{name} = {table[name]!r}: expected a table [recipe.{name}]"
                )
            table[name] = _read(kind, table[name], f"{origin}: recipe.{name}")
    if "purifying" in table:
        if unused := [name for name in ("pretraining", "finetuning") if name in table]:
            raise UsageError(
                f"{origin}: [[recipe.purifying]] and [recipe.{unused[0]}]: a purifier has only the former"
            )
        table["purifying"] = _read_stages(table["purifying"], f"{origin}: recipe.purifying")
    recipe = _read(Recipe, table, f"{origin}: recipe")
    if recipe.start and recipe.pretraining:
        raise UsageError(f"{origin}: recipe.start = {recipe.start!r} and [recipe.pretraining]: give only one")
    if recipe.finetuning.probe and recipe.pretraining:
        raise UsageError(f"{origin}: recipe.finetuning.probe needs recipe.start, or --pretrained FILE")
    try:
        choose_method(recipe.finetuning)
    except UsageError as error:
        raise UsageError(f"{origin}: recipe.finetuning: {error}") from error
    if Threat.parse(recipe.evaluation).norm != "Linf":
        raise UsageError(f"{origin}: recipe.evaluation = {recipe.evaluation!r}: expected an Linf threat")
    return recipe


def _read_stages(tables: Any, origin: str) -> tuple[PurifierStage, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables) or not tables:
        raise UsageError(f"{origin} = {tables!r}: expected tables [[recipe.purifying]]")
    stages = tuple(_read(PurifierStage, table, f"{origin}, stage {i}") for i, table in enumerate(tables, 1))
    for i, stage in enumerate(stages, 1):
        if not stage.method:
            raise UsageError(f"{origin}, stage {i}: the field method is missing")
        try:
            find_purifier_training(stage.method)
        except UsageError as error:
            raise UsageError(f"{origin}, stage {i}: {error}") from error
    return stages


def choose_method(config: Finetuning) -> Method:
    """Build the method of `config` and check that it supports the configured steps and average.

    Raises:
        UsageError: if the method is unknown, or does not support the recipe's steps, average or mixed labels.
    """
    method = find_method(config.method)
    if not method.fewest_steps <= config.steps <= method.most_steps:
        low, high = method.fewest_steps, method.most_steps
        limit = f"at least {low}" if high == inf else f"{low}" if low == high else f"{low} to {high}"
        raise UsageError(f"{config.method} with steps = {config.steps}: expected {limit}")
    if (config.mixup or config.cutmix) and not method.mixes_labels:
        raise UsageError(f"{config.method} does not support mixed labels: set mixup and cutmix to 0")
    if config.randaugment:
        randaugment(config.randaugment, 32)
    if method.needs_average and not config.average:
        raise UsageError(f"{config.method} needs a running average: give its decay, such as average = 0.999")
    return method


def never_reached(recipe: Recipe) -> list[str]:
    """A line for each warm-up, and each ramp of an inner attack, that is longer than its stage."""
    stages: list[tuple[str, Pretraining | Finetuning | PurifierStage]] = [
        (f"purifier stage {k}", stage) for k, stage in enumerate(recipe.purifying, 1)
    ]
    if not stages:
        stages = [("pre-training", recipe.pretraining)] if recipe.pretraining else []
        stages.append(("fine-tuning", recipe.finetuning))
    lines = []
    for name, stage in stages:
        for field_name, what in (("warmup", "the learning rate"), ("ramp", "the inner attack")):
            length = getattr(stage, field_name, 0.0)
            if length > stage.epochs:
                lines.append(
                    f"{name}: {field_name} = {length:g} is longer than epochs = {stage.epochs}, so {what} only reaches "
                    f"{stage.epochs / length:.0%} of its full value"
                )
    return lines


def decisive_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of `recipe` that determine the weights, for a fingerprint.

    Fields added in later releases are left out if they have their defaults, so that trainings interrupted before
    these releases can be resumed.
    """
    table = asdict(recipe)
    if not table["purifying"]:
        del table["purifying"]
    for stage, kind in (("finetuning", Finetuning), ("pretraining", Pretraining)):
        for name in _ADDED_LATER & (table[stage] or {}).keys():
            if table[stage][name] == getattr(kind, name):
                del table[stage][name]
    for name in ("resized_crop", "samples", "generated"):
        if table[name] == getattr(Recipe, name):
            del table[name]
    # The first two do not affect training, and the fingerprint has the digest of the checkpoint that `start` names.
    for name in ("stored", "measured", "start"):
        del table[name]
    return table


def _read(table_type: type[Table], table: Mapping[str, Any], origin: str) -> Table:
    fractions = {key: table[key] for key in _RADII if isinstance(table.get(key), str)}
    table = {**table, **{key: Threat.parse(f"Linf:{radius}").eps for key, radius in fractions.items()}}
    check_table(table, table_type, origin, inside=".", ranges=(NOT_NEGATIVE,))
    return table_type(**{**table, **{key: float(table[key]) for key in _RADII if key in table}})
