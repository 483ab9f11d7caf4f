"""What an attack maximizes: functions of the logits, or of features, of a batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from robench.attacks._base import Rows

# Objectives are maximized: (logits (S, K), rows) -> (S,), or (S, M) for M gradients at the same point.
Objective = Callable[[Tensor, "Rows"], Tensor]


@dataclass(frozen=True)
class OnFeatures:
    """An objective that depends on intermediate features of the network.

    Attributes:
        value: (logits (S, K), rows, x, features) -> (S,), where the points x (S, C, H, W) and the features, one tensor
            (S, ...) for each layer, are part of the graph.
        layers: "last" for the features of the last block, "all" for those of every block.
    """

    value: Callable[[Tensor, "Rows", Tensor, tuple[Tensor, ...]], Tensor]
    layers: str = "last"

    def __call__(self, logits: Tensor, rows: "Rows", x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        return self.value(logits, rows, x, features)


@dataclass(frozen=True)
class OnLogits:
    """An objective on the logits of each row, which the engine can evaluate for some of the lanes.

    Attributes:
        value: (logits (S, K), y (S,), *given) -> (S,) or (S, M), row by row.
        given: further tensors (S, ...), such as target classes.
    """

    value: Callable[..., Tensor]
    given: tuple[Tensor, ...] = ()

    def __call__(self, logits: Tensor, rows: "Rows") -> Tensor:
        return self.of_lanes(logits, rows.y)

    def of_lanes(self, logits: Tensor, y: Tensor, lanes: Tensor | None = None) -> Tensor:
        """The objective in some lanes (L,), from their logits (L, K) and the labels (S,) of all lanes."""
        values = (y, *self.given)
        if lanes is not None:
            values = tuple(tensor.index_select(0, lanes) for tensor in values)
        return self.value(logits, *values)


@dataclass(frozen=True)
class Cheapest(OnLogits):
    """An objective with several values at each point, of which an attack needs one gradient: that of the lowest cost.

    The engine may compute the gradients one after another and keep only the cheapest of each row, so that many classes
    of large images fit in memory. The answer then has a `column`.

    Attributes:
        cost: (values (S, M), gradients (S, M, D)) -> (S, M).
    """

    cost: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
