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


@dataclass(frozen=True)
class Attack(Generic[S]):
    """Base of every attack: a frozen dataclass whose fields are its parameters, the spec's keywords.

    A subclass gives `init`, `ask`, `tell` and `finished`, and `best` where its state has none; they are pure.
    `restarts` and `targets` (0: untargeted) multiply into rows, which the engine runs side by side; `eot` is
    the number of draws of a randomised surrogate averaged for every answer. An attack that looks at features
    names them in `layers` ("last" or "all"), so that a defense without any is refused before the first
    question; `group` is how many images an objective couples; `ascends` says that it climbs one loss from its
    first question to its last; `in_pixels` that it searches among images only, and not among the parameters
    of a transformation.

    An attack for the least distance may have a field `minimise`: where it is set, a row that has fooled plays on
    to its end, and the nearest image is kept. `transfers` says that images are made for another network than the
    one asked: where the attacker hears no verdict, the row plays to its end, and its best point is judged. Under
    `judged_at_end` that is so for every attacker. `cost_varies` is 1 where every row that is never fooled costs the
    same number of passes, whatever the network; else how many times what `robench.engine.query_cost` counts one may
    cost at most.
    """

    cost_varies: ClassVar[int] = 1
    ascends: ClassVar[bool] = False
    in_pixels: ClassVar[bool] = False
    transfers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "eot", "group"):
            value = getattr(self, name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
        targets = getattr(self, "targets", 0)
        if not isinstance(targets, int) or isinstance(targets, bool) or targets < 0:
            raise ValueError(f"targets={targets!r}: expected a whole number, 0 for untargeted")
        if not isinstance(minimise := getattr(self, "minimise", False), bool):
            raise ValueError(f"minimise={minimise!r}: expected True or False")
        layers = getattr(self, "layers", "last")
        if layers not in LAYERS:
            raise ValueError(f"layers={layers!r}: expected one of {', '.join(LAYERS)}")

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms the attack is defined for."""
        return ("Linf", "L2", "L1")

    @property
    def judged_at_end(self) -> bool:
        """Whether `best` alone is judged, once a row has played to its end, and no point on the way."""
        return False

    @property
    def questions(self) -> int:
        """How many questions a row asks when it is never fooled, about: for showing progress."""
        return getattr(self, "steps", getattr(self, "queries", 1)) + 1

    def ranks(self, num_classes: int) -> int:
        """Rows an image gives: targets x restarts, with at most K - 1 targets."""
        targets = min(getattr(self, "targets", 0), num_classes - 1)
        return max(targets, 1) * getattr(self, "restarts", 1)

    def target(self, rows: Rows) -> Tensor:
        """The class each row aims at, (S,): rank // restarts counts the clean logits down from the
        most likely class that is not the label."""
        wrong = rows.clean_logits.scatter(1, rows.y[:, None], -math.inf)
        order = wrong.argsort(dim=1, descending=True, stable=True)
        return order.gather(1, (rows.rank // getattr(self, "restarts", 1))[:, None])[:, 0]

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

    def heard(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> Answer:
        """The answer with its gradients in what is searched, where that is not the image: `tell` is told this."""
        return answer

    def finished(self, state: S) -> Tensor:
        """Which lanes have nothing more to ask, bool (S,)."""
        raise NotImplementedError

    def best(self, state: S) -> Tensor:
        """The point each lane holds for its best so far, (S, ...): what is judged when nothing fooled. It is the
        state's own `best`, where an attack says nothing else."""
        return cast(Any, state).best


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
