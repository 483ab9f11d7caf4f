"""What an attack is: a pure state machine over rows, which asks and is told.

An attack never calls a model. The engine fills a fixed number of lanes S with rows (a row is one image with
one target and one restart), asks the attack for one point a lane, evaluates the surrogate there, tells the
attack, and replaces the rows that are done. So every tensor here has S as its leading dimension, lanes may be
at different steps, and nothing that happens in one lane may depend on another.

The exception is an attack whose objective couples rows: it has a field `group`, and its rows come in fixed
groups. A run's samples, by rising id, make groups of `group`, and a group's rows of one rank fill so many
consecutive lanes, always in that order, start together and go on together until each that counts is over. The
last group is filled up with the run's first samples, and in a run of fewer samples all are one group. Rows that
do not count (fooled before, or filling up) play on as company. So the batch size and the order of work are as
little a part of the result as elsewhere; which images are in the run is.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from robench.core.rng import Stream
from robench.threats.threat import Threat

# Objectives are maximised: (logits (S, K), rows) -> (S,), or (S, M) for M gradients at the same point.
Objective = Callable[[Tensor, "Rows"], Tensor]


@dataclass(frozen=True)
class OnFeatures:
    """An objective of what the network makes of the image on its way to the logits.

    Attributes:
        value: (logits (S, K), rows, x, features) -> (S,), with the points x (S, C, H, W) and the features, one
            (S, ...) a layer, in the graph.
        layers: "last" for the last block's features, "all" for every block's.
    """

    value: Callable[[Tensor, "Rows", Tensor, tuple[Tensor, ...]], Tensor]
    layers: str = "last"

    def __call__(self, logits: Tensor, rows: "Rows", x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        return self.value(logits, rows, x, features)


LAYERS = ("last", "all")


@dataclass(frozen=True)
class Rows:
    """What the engine knows of the row in each lane.

    Attributes:
        x: clean images, (S, C, H, W) float32 in [0, 1].
        y: true labels, (S,) int64.
        clean_logits: the surrogate's logits at `x`, (S, K).
        sample: index of the image in the data set's canonical order, (S,) int64.
        rank: which of the row's targets and restarts this is, (S,) int64, in 0 .. Attack.ranks - 1.
        active: lanes whose answer counts, bool (S,): for choosing what to ask first, never for what is asked.
        reference: the surrogate's features of the images that `Attack.references` names, each layer's
            flattened, one after the other, (S, F); None where it names none.
    """

    x: Tensor
    y: Tensor
    clean_logits: Tensor
    sample: Tensor
    rank: Tensor
    active: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """What is the same for every row of a run.

    Attributes:
        threat: norm and radius.
        num_classes: K.
        stream: the counter-based random numbers of this attack (see robench.core.rng).
        group: how many consecutive lanes are a group, 1 for an attack whose rows are independent.
    """

    threat: Threat
    num_classes: int
    stream: Stream
    group: int = 1


@dataclass(frozen=True)
class Ask:
    """The point the attack wants evaluated in each lane, and what it wants there.

    Attributes:
        x: (S, C, H, W) in [0, 1].
        objective: whose gradient is wanted, or None when the logits are enough.
        waits: lanes that ask nothing this time because they want something of the other kind, bool (S,), or
            None: their answer is not a verdict, costs them no pass and must be ignored in `tell`.
        point: what `x` is the image of, where the threat's coordinates are not the pixels; None elsewhere.
    """

    x: Tensor
    objective: Objective | OnFeatures | None = None
    waits: Tensor | None = None
    point: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """What the surrogate says at the points asked for.

    Attributes:
        x: the points, (S, C, H, W).
        logits: (S, K); the mean over the EOT draws where there are several.
        loss: the objective, (S,) or (S, M); empty when none was asked for.
        grad: its gradient, (S, C, H, W) or (S, M, C, H, W), finite; empty when none was asked for.
        broken: rows whose gradient had NaN or infinite entries, which are 0 here, bool (S,); None where nobody looked.
    """

    x: Tensor
    logits: Tensor
    loss: Tensor
    grad: Tensor
    broken: Tensor | None = None


@dataclass(frozen=True)
class State:
    """Base of every attack's state: a frozen dataclass whose fields are all tensors with S leading."""


S = TypeVar("S", bound=State)


class Contract:
    """What the engine reads of an attack beside its methods, with the values of an attack that says nothing.

    A subclass of `Attack` overrides what differs: parameters with dataclass fields, facts with class variables.

    Attributes:
        steps, queries: length of a row, for progress and for losses that still rise at the end.
        restarts: starts of each target; targets: classes aimed at, 0 for an untargeted loss. Restarts times targets
            are the rows of an image, which the engine runs side by side.
        eot: draws of a randomised surrogate averaged for each answer.
        loss: the logit loss that is maximised, one of `robench.attacks._losses`; "" for another objective.
        group: images that the objective couples.
        layers: features that the objective looks at, "last" or "all"; "" for none. A defense without features is
            refused before the first query.
        minimise: whether a row that fools goes on to the nearest adversarial example, which is then kept.
        minimum_norm: whether the attack looks for the nearest adversarial example, whatever the radius.
        gradient_free: whether the attack sees only logits or decisions. If it fools images that survived white-box
            attacks, gradients may be masked.
        ascends: whether each row maximises one loss from its first query to its last.
        in_pixels: whether the attack works on images only, and not on the parameters of a transformation.
        transfers: whether images are made for another network than the surrogate. Without feedback from the judge,
            every row then runs to its end, and its best point is judged.
        horizon: how many queries of a row are known in advance, as long as none is accepted; above 1 the attack gives
            `advance` and `moved`.
        cost_varies: 1 if every row that is never fooled costs the same number of passes on any network, else at most
            how many times the number that `robench.engine.query_cost` counts.
    """

    steps: int = 1
    queries: int = 1
    restarts: int = 1
    targets: int = 0
    eot: int = 1
    loss: str = ""
    group: int = 1
    layers: str = ""
    minimise: bool = False
    minimum_norm: ClassVar[bool] = False
    gradient_free: ClassVar[bool] = False
    ascends: ClassVar[bool] = False
    in_pixels: ClassVar[bool] = False
    transfers: ClassVar[bool] = False
    horizon: ClassVar[int] = 1
    cost_varies: ClassVar[int] = 1


@dataclass(frozen=True)
class Attack(Contract, Generic[S]):
    """Base of every attack: a frozen dataclass whose fields are its parameters, the keywords of its spec.

    A subclass gives `init`, `ask`, `tell` and `finished`, and `best` if its state has no field of that name. All of
    them are pure. `Contract` lists the attributes that a subclass may override.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # Names of release 0.1.
        for old, new in (("questions", "num_queries"), ("heard", "pull_back")):
            if old in vars(cls):
                warnings.warn(f"{cls.__name__}.{old} is now {new}", DeprecationWarning, stacklevel=2)
                setattr(cls, new, vars(cls)[old])

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "eot", "group"):
            check_count(name, getattr(self, name))
        if not isinstance(self.targets, int) or isinstance(self.targets, bool) or self.targets < 0:
            raise ValueError(f"targets={self.targets!r}: expected a whole number, 0 for untargeted")
        if not isinstance(self.minimise, bool):
            raise ValueError(f"minimise={self.minimise!r}: expected True or False")
        if self.layers not in LAYERS and (self.layers or "layers" in self.__dataclass_fields__):
            raise ValueError(f"layers={self.layers!r}: expected one of {', '.join(LAYERS)}")

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms the attack is defined for."""
        return ("Linf", "L2", "L1")

    @property
    def judged_at_end(self) -> bool:
        """Whether `best` alone is judged, once a row has run to its end, and no point on the way."""
        return False

    @property
    def num_queries(self) -> int:
        """About how many queries a row makes when it is never fooled, for progress."""
        return max(self.steps, self.queries) + 1

    @property
    def questions(self) -> int:
        """`num_queries`, under its name of release 0.1."""
        return self.num_queries

    def ranks(self, num_classes: int) -> int:
        """Rows of an image: targets x restarts, with at most K - 1 targets."""
        return max(min(self.targets, num_classes - 1), 1) * self.restarts

    def target(self, rows: Rows) -> Tensor:
        """The class each row aims at, (S,): rank // restarts counts the clean logits down from the
        most likely class that is not the label."""
        wrong = rows.clean_logits.scatter(1, rows.y[:, None], -math.inf)
        order = wrong.argsort(dim=1, descending=True, stable=True)
        return order.gather(1, (rows.rank // self.restarts)[:, None])[:, 0]

    def references(self, run: Rows, rows: Rows) -> Tensor | None:
        """The image whose features each row is compared with, as an index into `run`, (S,); None for none.

        Args:
            run: every image of the run, one row each, of rank 0.
        """
        return None

    def init(self, problem: Problem, rows: Rows) -> S:
        """The state before the first question."""
        raise NotImplementedError

    def ask(self, problem: Problem, rows: Rows, state: S) -> Ask:
        """The next point of every lane; must not depend on lanes that are finished."""
        raise NotImplementedError

    def tell(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> S:
        """The state after the answer. Told about lanes that are finished too: what it does there is ignored."""
        raise NotImplementedError

    def pull_back(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> Answer:
        """The answer with its gradients pulled back to what is searched, if that is not the image: for `tell`."""
        return answer

    def advance(self, problem: Problem, rows: Rows, state: S, offset: Tensor) -> S:
        """The state as if the next `offset` (S,) queries, fewer than `horizon`, had been rejected."""
        raise NotImplementedError

    def moved(self, state: S) -> Tensor:
        """Whether the last answer was accepted, bool (S,): the queries after it are then different ones."""
        raise NotImplementedError

    def finished(self, state: S) -> Tensor:
        """Which lanes have nothing more to ask, bool (S,)."""
        raise NotImplementedError

    def best(self, state: S) -> Tensor:
        """The point each lane holds for its best so far, (S, ...): what is judged when nothing fooled. It is the
        state's own `best`, where an attack says nothing else."""
        return cast(Any, state).best


@dataclass(frozen=True)
class GradientAttack(Attack[S]):
    """Base of attacks that follow the gradient of a loss on the logits.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations; one forward and one backward pass each, and one more at the end.
        targets: 0 for the untargeted loss, else the number of classes to aim at, the most likely first.
        restarts: random starts (of each target).
        eot: draws of a randomised surrogate averaged for each gradient.
    """

    loss: str = "ce"
    steps: int = 100
    targets: int = 0
    restarts: int = 1
    eot: int = 1


def check_count(name: str, value: object) -> None:
    """Refuse a parameter that is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")


def select(condition: Tensor, new: State | Any, old: State | Any) -> Any:
    """A state (or Rows) that takes `new` where `condition` (S,) holds, else `old`, field by field."""
    return replace(
        old, **{name: where(condition, getattr(new, name), tensor) for name, tensor in tensors(old).items()}
    )


def gather(value: State | Any, lanes: Tensor) -> Any:
    """A state (or Rows) with lane i taken from lane `lanes[i]`."""
    return replace(value, **{name: tensor.index_select(0, lanes) for name, tensor in tensors(value).items()})


def tensors(value: State | Any) -> dict[str, Tensor]:
    """The fields of a state (or Rows) that are there."""
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) is not None}


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.where` with `condition` (S,) spread over the trailing dimensions of `a` and `b`.

    What it gives may be `a` or `b` itself.
    """
    if a.device.type != "cpu" or a.dim() < 3 or a.shape != b.shape:
        return torch.where(spread(condition, a), a, b)
    # CPUs copy whole rows several times as fast as they choose number by number.
    lanes = condition.nonzero()[:, 0]
    if len(lanes) in (0, len(a)):
        return a if len(lanes) else b
    return b.index_copy(0, lanes, a.index_select(0, lanes))


def finite(grad: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient (S, ...) whose NaN and infinite entries give no direction, they are 0; and which rows have some."""
    # A sum is finite where all its terms are, at a fraction of the price of looking at each.
    broken = ~torch.isfinite(grad.flatten(1).sum(1))
    return grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) if bool(broken.any()) else grad, broken


def spread(value: Tensor, like: Tensor) -> Tensor:
    """View a (S,) tensor so that it broadcasts against `like` (S, ...)."""
    return value.view(-1, *[1] * (like.dim() - 1))
