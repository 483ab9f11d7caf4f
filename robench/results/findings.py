"""What re-checking a record finds, one thing at a time."""

from dataclasses import dataclass
from typing import Any

# Other devices and batch shapes round logits elsewhere; an attack stops at the boundary, where that can turn
# a verdict. A difference of logits below this is called a tie and said so, never counted as proven.
TIE = 1e-3


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        field: of the record, "robust_accuracy.value" say, or the file it lies in.
        held: whether it is as the record says.
        detail: one sentence with the figures.
    """

    field: str
    held: bool
    detail: str

    def __str__(self) -> str:
        return f"{'holds' if self.held else 'FAILS'}  {self.field}: {self.detail}"


def equal(field: str, said: Any, actual: Any, what: str) -> Finding:
    """Whether the record says what was found."""
    if said == actual:
        return Finding(field, True, f"{_short(said)} ({what})")
    return Finding(field, False, f"the record says {_short(said)}, found {_short(actual)} ({what})")


def rows_named(rows: list[int]) -> str:
    """Rows that do not hold, in words."""
    if not rows:
        return "all do"
    return f"row {rows[0]} does not" + (f", nor do {len(rows) - 1} more" if len(rows) > 1 else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
