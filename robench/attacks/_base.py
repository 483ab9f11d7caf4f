"""The attack interface: a pure state machine over rows with the methods `ask` and `tell`.

An attack never calls a model. The engine has S lanes (places in a batch) and fills them with rows; a row is one image
with one target and one restart. In each turn it asks the attack for one point in each lane, evaluates the surrogate
there, passes the answer to the attack, and replaces finished rows by new ones. Every tensor here has S as its leading
dimension. Lanes may be at different steps, and a lane must not depend on any other.

The exception is an attack whose objective couples rows. It has a field `group`, and its rows come in fixed groups: the
samples of a run, sorted by id, are split into groups of `group`, and the rows of a group with the same rank fill
consecutive lanes in that order. They start together and continue until every active row is finished. The last group is
padded with the first samples of the run; a run with fewer samples is a single group. Rows that are not active (fooled
earlier, or padding) continue as padding rows. Results therefore do not depend on the batch size or the order of work,
but they do depend on which images are in the run.
"""

import math
import warnings
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from robench.attacks._objective_types import Cheapest, Objective, OnFeatures
from robench.core.rng import Stream
from robench.threats.threat import Threat

LAYERS = ("last", "all")


@dataclass(frozen=True)
class Rows:
    """The row in each lane.

    Attributes:
        x: clean images, (S, C, H, W) float32 in [0, 1].
        y: true labels, (S,) int64.
        clean_logits: the surrogate's logits at `x`, (S, K).
        sample: index of the image in the canonical order of the dataset, (S,) int64.
        rank: index over the targets and restarts of the image, (S,) int64, in 0 .. Attack.ranks - 1.
        active: whether the result of the row counts, bool (S,). Queries must not depend on it, only their order may.
        reference: the surrogate's features of the images that `Attack.references` selects, flattened and
            concatenated over layers, (S, F); None if it selects none.
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
    """The part of the problem that is the same for every row of a run.

    Attributes:
        threat: the threat model.
        num_classes: number of classes K.
        stream: counter-based random numbers of this attack, see `robench.core.rng`.
        group: number of consecutive lanes in a group; 1 for an attack with independent rows.
    """

    threat: Threat
    num_classes: int
    stream: Stream
    group: int = 1


@dataclass(frozen=True)
class Ask:
    """The query of each lane: a point, and what to compute there.

    Attributes:
        x: images to evaluate, (S, C, H, W) in [0, 1].
        objective: objective whose gradient is needed; None if only the logits are needed.
        waits: lanes that make no query in this turn, bool (S,); None if all do. Their answer is not judged, is not
            counted as a pass, may be zero and must be ignored in `tell`. Attacks with two kinds of queries implement
            `Attack.probes` instead.
        point: for a transformation, the parameters whose image is `x`; otherwise None.
    """

    x: Tensor
    objective: Objective | OnFeatures | Cheapest | None = None
    waits: Tensor | None = None
    point: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """The answer of the surrogate to a query.

    Attributes:
        x: the evaluated images, (S, C, H, W).
        logits: logits, (S, K), averaged over EOT draws.
        loss: value of the objective, (S,) or (S, M); empty without an objective.
        grad: gradient of the objective, (S, C, H, W) or (S, M, C, H, W), finite; empty without an objective.
        broken: rows whose gradient had NaN or infinite entries, which are set to 0, bool (S,); None if not checked.
        column: the column of `loss` whose gradient is in `grad`, (S,), if only one is (see `Cheapest`); else None.
    """

    x: Tensor
    logits: Tensor
    loss: Tensor
    grad: Tensor
    broken: Tensor | None = None
    column: Tensor | None = None


@dataclass(frozen=True)
class State:
    """Base of attack states: a frozen dataclass whose fields are tensors with leading dimension S."""


S = TypeVar("S", bound=State)


class Contract:
    """The attributes of an attack that the engine reads, with their default values.

    A subclass of `Attack` overrides parameters with dataclass fields and constants with class variables.

    Attributes:
        steps, queries: number of steps or queries of a row, for progress and to detect a loss that rises until the end.
        restarts: number of random starts for each target.
        targets: number of target classes; 0 for an untargeted loss. An image has max(targets, 1) * restarts rows, which
            the engine runs in parallel.
        eot: number of noise draws of a randomized surrogate that each answer averages.
        loss: the loss on the logits that is maximized, one of `robench.attacks._losses`; "" for another objective.
        group: number of images that the objective couples.
        layers: features that the objective uses, "last" or "all"; "" for none. A defense without features is refused
            before the first query.
        minimise: whether to continue after a success and keep the nearest adversarial example.
        minimum_norm: whether the attack searches for the nearest adversarial example, regardless of the radius.
        gradient_free: whether the attack uses only logits or decisions. If it fools several images that survived
            white-box attacks, the record gets a warning that gradients may be masked.
        ascends: whether each row maximizes one loss from its first query to its last.
        in_pixels: whether the attack works only on images, and not on the parameters of a transformation.
        transfers: whether the attack is designed for transfer. Without feedback from the judge, every row then runs to
            its end, and its best point is judged.
        horizon: number of queries of a row that are known in advance as long as none is accepted. If above 1, the
            attack implements `advance` and `moved`.
        cost_varies: 1 if every row that is never fooled costs the same number of passes on any network; otherwise an
            upper bound on the ratio to the number that `robench.engine.query_cost` counts.
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
    """Base class of attacks; a subclass is a frozen dataclass whose fields are the arguments of its spec.

    A subclass implements `init`, `ask`, `tell` and `finished`, and `best` if its state has no field of that name. All
    of them are pure functions. `Contract` lists the attributes that a subclass may override.
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
        """The norms that the attack supports."""
        return ("Linf", "L2", "L1")

    @property
    def judged_at_end(self) -> bool:
        """Whether only `best` is judged, at the end of a row, and not every point that is queried."""
        return False

    @property
    def num_queries(self) -> int:
        """Approximate number of queries of a row that is never fooled, for the progress bar."""
        return max(self.steps, self.queries) + 1

    @property
    def questions(self) -> int:
        """Deprecated name of `num_queries`."""
        return self.num_queries

    def ranks(self, num_classes: int) -> int:
        """Number of rows of an image: restarts times targets (at most K - 1; 1 if untargeted)."""
        return max(min(self.targets, num_classes - 1), 1) * self.restarts

    def target(self, rows: Rows) -> Tensor:
        """The target class of each row, (S,): the wrong class with the largest clean logit for the first `restarts`
        ranks, the second largest for the next, and so on."""
        wrong = rows.clean_logits.scatter(1, rows.y[:, None], -math.inf)
        order = wrong.argsort(dim=1, descending=True, stable=True)
        return order.gather(1, (rows.rank // self.restarts)[:, None])[:, 0]

    def references(self, run: Rows, rows: Rows) -> Tensor | None:
        """The image whose features are the reference for each row, as an index into `run`, (S,); None for none.

        Args:
            run: all images of the run, one row each with rank 0.
            rows: the rows that need reference images.
        """
        return None

    def init(self, problem: Problem, rows: Rows) -> S:
        """The state before the first query."""
        raise NotImplementedError

    def ask(self, problem: Problem, rows: Rows, state: S) -> Ask:
        """The next query of every lane. Finished lanes must not affect the queries of the others."""
        raise NotImplementedError

    def tell(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> S:
        """The state after the answer. It is also called for finished lanes, where its result is ignored."""
        raise NotImplementedError

    def probes(self, state: S) -> Tensor | None:
        """Lanes whose next query needs only logits, bool (S,), for an attack that also has queries with an objective;
        None if all queries are of one kind.

        All queries of a turn are of one kind, which the engine chooses; the other lanes wait, and `tell` must ignore
        their answers. An answer without an objective has an empty `grad`.
        """
        return None

    def pull_back(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> Answer:
        """The answer for `tell`. If the attack does not search pixels, it converts the gradients to its parameters."""
        return answer

    def advance(self, problem: Problem, rows: Rows, state: S, offset: Tensor) -> S:
        """The state after the next `offset` (S,) queries, fewer than `horizon`, if all of them are rejected.

        On devices other than a CPU, it is also called with zeros, at least once in `horizon` queries. There the attack
        prepares what the next `horizon` queries need, such as random numbers, without synchronizing with the host.
        """
        raise NotImplementedError

    def moved(self, state: S) -> Tensor:
        """Whether the last query was accepted, so that the following queries change, bool (S,)."""
        raise NotImplementedError

    def finished(self, state: S) -> Tensor:
        """Which lanes are finished, bool (S,)."""
        raise NotImplementedError

    def best(self, state: S) -> Tensor:
        """The best point of each lane so far, (S, ...), by default the field `best` of the state. It is judged if no
        queried point fooled the judge."""
        return cast(Any, state).best


@dataclass(frozen=True)
class GradientAttack(Attack[S]):
    """Base class of attacks that follow the gradient of a loss on the logits.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations, with one forward and one backward pass each and one more of both at the end.
        targets: number of target classes, most likely first; 0 for the untargeted loss.
        restarts: number of random starts, for each target if targeted.
        eot: draws of a randomized surrogate averaged for each gradient.
    """

    loss: str = "ce"
    steps: int = 100
    targets: int = 0
    restarts: int = 1
    eot: int = 1


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless a parameter is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a parameter is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number in [0, 1]")


def select(condition: Tensor, new: State | Any, old: State | Any) -> Any:
    """Combine two states (or Rows) field by field: `new` where `condition` (S,) holds, else `old`."""
    return replace(
        old, **{name: where(condition, getattr(new, name), tensor) for name, tensor in tensors(old).items()}
    )


def gather(value: State | Any, lanes: Tensor) -> Any:
    """A state (or Rows) whose lane i is lane `lanes[i]` of `value`."""
    return replace(value, **{name: tensor.index_select(0, lanes) for name, tensor in tensors(value).items()})


def tensors(value: State | Any) -> dict[str, Tensor]:
    """The fields of a state (or Rows) that are not None."""
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) is not None}


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.where` with `condition` (S,) broadcast over the trailing dimensions of `a` and `b`.

    The result may be `a` or `b` itself, without a copy.
    """
    if a.device.type != "cpu" or a.dim() < 3 or a.shape != b.shape:
        return torch.where(spread(condition, a), a, b)
    # On CPUs copying whole rows is several times faster than an elementwise choice.
    lanes = condition.nonzero()[:, 0]
    if len(lanes) in (0, len(a)):
        return a if len(lanes) else b
    return write(b.clone(), lanes, a.index_select(0, lanes))


def write(x: Tensor, lanes: Tensor, rows: Tensor) -> Tensor:
    """Write `rows` (L, ...) into some lanes (L,) of `x` (S, ...), in place, and return it."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.index_copy_(0, lanes, rows)
    # torch copies the numbers of a row one by one.
    x.detach().numpy()[lanes.numpy()] = rows.detach().numpy()
    return x


def finite(grad: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient (S, ...) with NaN and infinite entries set to 0, and which rows had such entries, bool (S,)."""
    # A sum of finite entries is finite, unless it overflows. Checking sums is much cheaper than checking every entry.
    if grad.device.type == "cpu" and math.isfinite(float(grad.sum())):
        return grad, _none(len(grad))
    broken = ~torch.isfinite(grad.flatten(1).sum(1))
    return grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) if occurs(broken) else grad, broken


@cache
def _none(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


def occurs(mask: Tensor) -> bool:
    """Whether to do what is only needed where a mask (S,) holds.

    On a CPU: whether it holds anywhere. Elsewhere always, since the host would wait for the answer longer than the work
    takes; the work must change nothing where the mask does not hold.
    """
    return mask.device.type != "cpu" or bool(mask.numpy().any())


def lanes_of(mask: Tensor) -> Tensor:
    """The lanes to compute for a mask (S,), int64: on a CPU those where it holds, elsewhere all, as in `occurs`."""
    return mask.nonzero()[:, 0] if mask.device.type == "cpu" else torch.arange(len(mask), device=mask.device)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """View a (S,) tensor so that it broadcasts against `like` (S, ...)."""
    return value.view(-1, *[1] * (like.dim() - 1))
