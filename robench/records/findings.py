"""What re-checking a record finds, one thing at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.engine.batched_model import undefined
from robench.engine.tolerances import margins, same_margins

# Other devices and batch shapes round logits elsewhere; an attack stops at the boundary, where that can turn
# a verdict. A difference of logits below this is called a tie and said so, never counted as proven.
TIE = 1e-3
# Of a figure between 0 and 1: another library, or the same one elsewhere, rounds its last bits otherwise.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        field: of the record, "robust_accuracy.value" say, or the file it lies in.
        held: whether it is as the record says.
        detail: one sentence with the figures.
        covers: what it settles of `robench.verification.fields.TABLE`; `field` alone where nothing is named.
        proven: what is proven of the defense in a few words; of the last finding.
    """

    field: str
    held: bool
    detail: str
    covers: tuple[str, ...] = ()
    proven: str = ""

    def __str__(self) -> str:
        return f"{'holds' if self.held else 'FAILS'}  {self.field}: {self.detail}"


def equal(field: str, said: Any, actual: Any, what: str, *covers: str) -> Finding:
    """Whether the record says what was found, up to rounding."""
    if same(said, actual):
        return Finding(field, True, f"{_short(said)} ({what})", covers)
    return Finding(field, False, f"the record says {_short(said)}, found {_short(actual)} ({what})", covers)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers in them up to 1e-9; lists and tuples are alike."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return one == other or abs(one - other) <= _ROUNDING
    return one == other


def disagreeing(logits: Tensor, said: list[int]) -> tuple[list[int], int]:
    """Rows whose recorded prediction (-1 for NaN) is none of these logits (M, K), and how many of the others lie on a
    boundary, where rounding decides."""
    recorded = torch.tensor(said, dtype=torch.int64)
    best, found = logits.nan_to_num(-torch.inf).max(1)
    known = (recorded >= 0) & (recorded < logits.shape[1])
    chosen = logits.gather(1, recorded.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    held = torch.where(undefined(logits), recorded == -1, known & (best - chosen < TIE))
    ties = int((held & known & (found != recorded)).sum())
    return (~held).nonzero().flatten().tolist(), ties


def other_margins(logits: Tensor, recorded: list[float]) -> list[int]:
    """Rows whose two best logits (M, K) lie further apart, or less far, than the record says of them."""
    return (~same_margins(torch.tensor(recorded), margins(logits))).nonzero().flatten().tolist()


def rows_named(rows: list[int]) -> str:
    """Rows that do not hold, in words."""
    if not rows:
        return "all do"
    return f"row {rows[0]} does not" + (f", nor do {len(rows) - 1} more" if len(rows) > 1 else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
