"""The findings of verifying a record."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.engine.batched_model import undefined
from robench.engine.tolerances import margins, same_margins
from robench.statistics.accuracy import Accuracy

# Other devices and batch shapes round logits differently, which can change a verdict, because an attack stops at the
# decision boundary. A smaller difference of logits is reported as a tie and never counted as proven.
TIE = 1e-3
# Tolerance of figures between 0 and 1, because libraries and machines round the last bits differently.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        field: field of the record, such as "robust_accuracy.value", or a file.
        held: whether the record is correct.
        detail: one sentence with the figures.
        covers: the fields of `robench.verification.fields.TABLE` that it checks; `field` alone if empty.
        proven: what is proven about the defense; set in the last finding.
    """

    field: str
    held: bool
    detail: str
    covers: tuple[str, ...] = ()
    proven: str = ""

    def __str__(self) -> str:
        return f"{'holds' if self.held else 'FAILS'}  {self.field}: {self.detail}"


def equal(field: str, claimed: Any, actual: Any, what: str, *covers: str) -> Finding:
    """Whether the record agrees with the actual value, up to rounding."""
    held = same(claimed, actual)
    figures = _short(claimed) if held else f"the record says {_short(claimed)}, found {_short(actual)}"
    return Finding(field, held, f"{figures} ({what})", covers)


def same_accuracy(name: str, claimed: Accuracy, expected: Accuracy, interval: str) -> Iterator[Finding]:
    """Whether an accuracy of the record agrees with its count and interval.

    Args:
        interval: the kind of interval.
    """
    yield equal(f"{name}.correct", claimed.correct, expected.correct, "counted from the samples")
    yield equal(f"{name}.value", claimed.value, expected.value, "correct / n")
    yield equal(f"{name}.interval", claimed.interval, expected.interval, interval)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, with numbers compared up to 1e-9 and lists equal to tuples."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return one == other or abs(one - other) <= _ROUNDING
    return one == other


def disagreeing(logits: Tensor, predictions: list[int]) -> tuple[list[int], int]:
    """Rows whose recorded prediction (-1 for NaN) contradicts these logits (M, K), and the number of ties among the
    other rows, where rounding decides."""
    recorded = torch.tensor(predictions, dtype=torch.int64)
    best, predicted = logits.nan_to_num(-torch.inf).max(1)
    known = (recorded >= 0) & (recorded < logits.shape[1])
    chosen = logits.gather(1, recorded.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    held = torch.where(undefined(logits), recorded == -1, known & (best - chosen < TIE))
    ties = int((held & known & (predicted != recorded)).sum())
    return (~held).nonzero().flatten().tolist(), ties


def other_margins(logits: Tensor, recorded: list[float]) -> list[int]:
    """Rows whose margin between the two best logits (M, K) differs from the record."""
    return (~same_margins(torch.tensor(recorded), margins(logits))).nonzero().flatten().tolist()


def rows_named(rows: list[int]) -> str:
    """A short text that names the images (by row) for which a check fails."""
    if not rows:
        return "all do"
    return f"image {rows[0]} does not" + (f", nor do {len(rows) - 1} more" if len(rows) > 1 else "")


def rows_hold(field: str, broken: list[int], what: str, *covers: str) -> Finding:
    """Whether a check holds in every row; `broken` are the rows in which it does not."""
    return Finding(field, not broken, f"{what}; {rows_named(broken)}", covers)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
