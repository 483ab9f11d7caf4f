"""The batch sizes at which a network is called.

A network's arithmetic may depend on the shape of its input, so that the same image gets other rounding errors in a
batch of another size. The full batch size is therefore the reference. Most networks give the same bits at smaller sizes
too, except at very small ones: then a call with few rows takes a smaller batch, and results do not change. Which sizes
these are depends on the network, the library and the number of threads, but not on the values. Each size is therefore
tried once, on rows of the run, when as many rows have been wasted on larger batches as the trial takes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from robench.core.errors import RobenchError

# Function of a batch size to tensors whose leading rows are the results.
Call = Callable[[int], Sequence[Tensor]]

_SMALLEST = 4


class BatchShapes:
    """The batch sizes of one network.

    Args:
        full: the full batch size.
        is_fixed: whether all calls have the full batch size.

    Attributes:
        sizes: powers of two from 4, sixteenths of the full size, and the full size, in ascending order.
        same: kind of call and size -> whether the network gives the same bits as at the full size.
        void: kind of call and size -> number of padded rows because the size was not tried yet.
    """

    def __init__(self, full: int, is_fixed: bool = False):
        self.full = full
        step = max(full // 16 // _SMALLEST, 1) * _SMALLEST
        powers = (_SMALLEST << i for i in range(full.bit_length()))
        self.sizes = (
            [full]
            if is_fixed
            else sorted({full, *(s for s in (*powers, *range(step, full, step)) if s < full)})
        )
        self.same: dict[tuple[str, int], bool] = {}
        self.void: Counter[tuple[str, int]] = Counter()
        # Kind of call and number of rows -> the final size.
        self._settled: dict[tuple[str, int], int] = {}

    @property
    def rigid(self) -> bool:
        """Whether the network has no smaller batch size that is of use, as far as it was tried."""
        return len(self.sizes) == 1 or (bool(self.same) and not any(self.same.values()))

    def fit(self, kind: str, rows: int) -> int:
        """The smallest size for `rows` rows that is not known to give other bits."""
        return next(size for size in self._sizes(rows) if self.same.get((kind, size), True))

    def settled(self, kind: str, rows: int) -> int | None:
        """The size at which `call` calls the network for `rows` rows; None while smaller ones may still be tried."""
        return self._settled.get((kind, rows))

    def call(self, kind: str, rows: int, call: Call) -> list[Tensor]:
        """The results of `rows` rows, from a batch of the smallest size that gives the same bits as the full one.

        Args:
            kind: "logits" or "gradient"; a size is tried once for each.
            rows: at most `full`.
            call: the network; returns logits, then gradients if there are any, then tensors that are not compared.
        """
        settled = self.settled(kind, rows)
        if settled is not None:
            return _leading(call(settled), rows)
        trusted = next(s for s in self._sizes(rows) if s == self.full or self.same.get((kind, s)))
        results = _leading(call(trusted), rows)
        size = self.fit(kind, rows)
        if size == trusted:
            self._settled[kind, rows] = size
        else:
            self.void[kind, size] += trusted - rows
            if self.void[kind, size] >= size:
                self.same[kind, size] = self._gives(results, rows, partial(call, size))
        return results

    def _gives(self, expected: list[Tensor], rows: int, call: Callable[[], Sequence[Tensor]]) -> bool:
        try:
            return _same_bits(expected, [tensor[:rows] for tensor in call()])
        except RobenchError:
            # The network supports a fixed batch size only.
            return False

    def _sizes(self, rows: int) -> list[int]:
        """The sizes for at least `rows` rows, in ascending order."""
        return [size for size in self.sizes if rows <= size]


def _leading(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    return [tensor if len(tensor) == rows else tensor[:rows] for tensor in tensors]


def _same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether float32 tensors are equal bit for bit. A tensor of zeros proves nothing and counts as different."""
    return all(
        a.shape == b.shape and bool(a.any()) and torch.equal(a.view(torch.int32), b.view(torch.int32))
        for a, b in zip(first[:2], second[:2], strict=True)
    )
