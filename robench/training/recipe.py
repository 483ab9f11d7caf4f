"""How a checkpoint is made: the `[recipe]` table of a card, every field checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Annotated, Any, Literal, TypeVar

from robench.core.errors import UsageError
from robench.core.fields import ABOVE_ZERO, AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, check_table
from robench.threats.threat import Threat
from robench.training.methods import Method, find_method
from robench.training.purifier_training import find_purifier_training

Count = Annotated[int, AT_LEAST_ONE]
Share = Annotated[float, BELOW_ONE]
Positive = Annotated[float, ABOVE_ZERO]


@dataclass(frozen=True)
class Pretraining:
    """Masked pre-training, with MIMIR's defaults for CIFAR-10 (arXiv 2312.04960, official code).

    Attributes:
        epochs, warmup: passes over the data; the learning rate rises over the first `warmup`, then falls by a
            cosine to 0.
        batch_size, lr, weight_decay: of AdamW(0.9, 0.95); decay spares one-dimensional parameters.
        eps, step_size: of the one-step inner attack in Linf; eps 0 gives plain MAE.
        mask_ratio: the part of the patches that is hidden.
        mi_weight: lambda, the weight of the nHSIC penalty; 0 leaves it out.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        precision: "fp32", or "bf16" to compute the networks in it (autocast); weights and nHSIC stay in fp32.
    """

    epochs: Count = 800
    warmup: float = 40.0
    batch_size: Count = 512
    lr: Positive = 3e-4
    weight_decay: float = 0.05
    eps: float = 8 / 255
    step_size: float = 10 / 255
    mask_ratio: Share = 0.75
    mi_weight: float = 1e-5
    decoder_width: Count = 128
    decoder_depth: Count = 2
    decoder_heads: Count = 16
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class Finetuning:
    """Training of the whole classifier, with the defaults of MIMIR's fine-tuning on CIFAR-10.

    Attributes:
        method: spec of a method of adversarial training with settings of its own, such as "trades(beta=6.0)".
        epochs, warmup: passes over the data; the learning rate rises over the first `warmup`, then falls by a
            cosine to `min_lr`.
        batch_size, lr, weight_decay: of AdamW; decay spares one-dimensional parameters.
        accumulate: parts that a batch is cut into, their gradients added up before the step: the same
            training in less memory.
        precision: "fp32", or "bf16" to compute the networks in it (autocast); weights stay in fp32.
        layer_decay: the factor on the learning rate from each layer to the one below it.
        drop_path: rate of stochastic depth at the last block.
        label_smoothing: of every cross entropy in the method's loss.
        eps, step_size, steps: of the method's inner maximiser in Linf; 0 steps trains on clean images, by
            pgd-at. apgd-at finds its own step size.
        ramp: the radius and step size grow linearly from 0 over this many epochs.
        average: decay, a step, of the running average of the weights that is kept at the end; 0 keeps the
            last weights.
        probe: train the head alone, on the features of the encoder that training starts from: a linear probe,
            where the head is linear.
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
    drop_path: Share = 0.1
    label_smoothing: Share = 0.1
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    ramp: float = 0.0
    average: Share = 0.0
    probe: bool = False


@dataclass(frozen=True)
class PurifierStage:
    """One stage of a purifier's training, by a way of `robench.training.purifier_training`.

    Attributes:
        method: spec of the way, such as "nim(sigma='gamma')".
        epochs, warmup: passes over the data; the learning rate rises over the first `warmup`, then falls by a
            cosine to `min_lr`.
        batch_size, lr, weight_decay, beta2: of AdamW(0.9, beta2); decay spares one-dimensional parameters.
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
    """Everything that decides a checkpoint's weights, besides the network and the data set.

    Attributes:
        finetuning, pretraining: of a classifier; pretraining None starts it from nothing.
        purifying: the stages of a purifier, `[[recipe.purifying]]`, one after another; none for a classifier.
        start: the card whose checkpoint training starts from, in place of random weights and of a pre-training: all
            of it for a purifier, what lies below the head for a classifier.
        samples: number of training images, the first of the train split; 0 for all.
        measured: how many test images the finished defense is measured on, the first ones; 0 for all.
        seed: of every random number.
        shift: random crops after padding by this many pixels with zeros.
        rotation, scaling: random rotations up to this many degrees, and scales within 1 -+ so much.
        flip: random mirror images.
        resized_crop: random crops of at least so much of the area, at most all of it, of a shape between 3 : 4
            and 4 : 3, resized to the whole; 0 for none.
        evaluation: the threat at which the finished classifier is measured.
        stored: "fp32", or "fp16" for a checkpoint of half the size; what is measured is what is stored.
        threads: of the CPU; 0 for as many as torch takes. It decides the last bits of the weights; a small
            network is trained fastest by one.
    """

    finetuning: Finetuning = field(default_factory=Finetuning)
    pretraining: Pretraining | None = None
    purifying: tuple[PurifierStage, ...] = ()
    start: str = ""
    samples: int = 0
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

Table = TypeVar("Table", bound=Pretraining | Finetuning | PurifierStage | Recipe)


def read_recipe(table: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe of a card.

    Args:
        table: the card's `[recipe]`; `eps` and `step_size` may be strings such as "8/255".
        origin: the card's file, for messages.

    Raises:
        UsageError: for a field that is unknown, of another type or out of range.
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
        table["purifying"] = _read_stages(table["purifying"], f"{origin}: recipe.purifying")
    recipe = _read(Recipe, table, f"{origin}: recipe")
    if recipe.start and recipe.pretraining:
        raise UsageError(f"{origin}: recipe.start = {recipe.start!r} and [recipe.pretraining]: give one")
    if recipe.finetuning.probe and recipe.pretraining:
        raise UsageError(f"{origin}: recipe.finetuning.probe needs recipe.start, or --pretrained FILE")
    try:
        choose_method(recipe.finetuning)
    except UsageError as error:
        raise UsageError(f"{origin}: recipe.finetuning: {error}") from error
    if Threat.parse(recipe.evaluation).norm != "Linf":
        raise UsageError(f"{origin}: recipe.evaluation = {recipe.evaluation!r}: expected a threat in Linf")
    return recipe


def _read_stages(tables: Any, where: str) -> tuple[PurifierStage, ...]:
    if not isinstance(tables, list) or not all(isinstance(each, Mapping) for each in tables) or not tables:
        raise UsageError(f"{where} = {tables!r}: expected tables [[recipe.purifying]]")
    stages = tuple(_read(PurifierStage, each, f"{where}, stage {i}") for i, each in enumerate(tables, 1))
    for i, stage in enumerate(stages, 1):
        if not stage.method:
            raise UsageError(f"{where}, stage {i}: the field method is missing")
        try:
            find_purifier_training(stage.method)
        except UsageError as error:
            raise UsageError(f"{where}, stage {i}: {error}") from error
    return stages


def choose_method(config: Finetuning) -> Method:
    """The method of `config`, which suits its steps and average.

    Raises:
        UsageError: when there is no such method, or it cannot be trained so.
    """
    method = find_method(config.method)
    if not method.fewest_steps <= config.steps <= method.most_steps:
        limit = _between(method.fewest_steps, method.most_steps)
        raise UsageError(f"{config.method} with steps = {config.steps}: expected {limit}")
    if method.needs_average and not config.average:
        raise UsageError(f"{config.method} keeps a running average: give its decay, such as average = 0.999")
    return method


def _between(low: int, high: float) -> str:
    if high == inf:
        return f"at least {low}"
    return f"{low}" if low == high else f"{low} to {high}"


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The fields of `recipe` that decide the weights, for a fingerprint.

    Fields that came later are left out at their defaults, so that what was begun before them goes on.
    """
    table = asdict(recipe)
    later = Finetuning()
    if not table["purifying"]:
        del table["purifying"]
    for name in ("method", "accumulate", "precision", "probe"):
        if table["finetuning"][name] == getattr(later, name):
            del table["finetuning"][name]
    if table["pretraining"] and table["pretraining"]["precision"] == Pretraining.precision:
        del table["pretraining"]["precision"]
    for name in ("resized_crop", "samples"):
        if table[name] == getattr(Recipe, name):
            del table[name]
    for name in (
        "stored",
        "start",
        "measured",
    ):  # finished weights are rounded and measured; a start has a digest
        del table[name]
    return table


def _read(kind: type[Table], table: Mapping[str, Any], where: str) -> Table:
    fractions = {key: table[key] for key in _RADII if isinstance(table.get(key), str)}
    table = {**table, **{key: Threat.parse(f"Linf:{radius}").eps for key, radius in fractions.items()}}
    check_table(table, kind, where, inside=".", ranges=(NOT_NEGATIVE,))
    return kind(**{**table, **{key: float(table[key]) for key in _RADII if key in table}})
