"""Tables of differences between the accuracies of two defenses on the same images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from robench.records.record import Record
from robench.records.samples import clean_right, held
from robench.reports.formatting import EMPTY
from robench.reports.table import Grid
from robench.statistics.accuracy import mcnemar, paired_difference

_NOTE = (
    "differences in percentage points on the same images, with 95 % intervals (Agresti & Min 2005) and the p-value of "
    "McNemar's exact test, without a correction for the number of comparisons; ! as in the table above"
)


def differences(
    title: str,
    pairs: Iterable[Sequence[str]],
    columns: Mapping[str, bool],
    records: Mapping[tuple[str, str], Record | None],
) -> Iterator[Grid]:
    """The table of the differences of some pairs of rows, if there are records of the same images.

    Args:
        title: title of the table that has the accuracies.
        pairs: the names of two rows each; the accuracy of the second is subtracted from that of the first.
        columns: name of each column, and whether it is of robust accuracy; otherwise it is of clean accuracy.
        records: the record of a row and a column.
    """
    lines = []
    for first, second in pairs:
        cells = [
            _cell(records[first, column], records[second, column], robust)
            for column, robust in columns.items()
        ]
        if set(cells) != {EMPTY}:
            lines.append((f"{first} minus {second}", *cells))
    if lines:
        yield Grid(
            title=f"{title}: differences",
            columns=("", *columns),
            groups=(tuple(lines),),
            names=frozenset(("",)),
            numbers=frozenset(columns),
            notes=(_NOTE,),
        )


def _cell(first: Record | None, second: Record | None, robust: bool) -> str:
    verdicts = _verdicts([first, second], robust)
    if verdicts is None:
        return EMPTY
    right, other = verdicts
    won, lost, n = int((right & ~other).sum()), int((other & ~right).sum()), len(right)
    low, high = (100 * end for end in paired_difference(won, lost, n))
    p = mcnemar(won, lost)
    mark = " !" if robust and any(record and record.health for record in (first, second)) else ""
    return f"{100 * (won - lost) / n:+.2f}{mark}\n[{low:.1f}, {high:.1f}]\np {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _verdicts(records: Sequence[Record | None], robust: bool) -> list[np.ndarray] | None:
    """Which images each record has right; None if the records are not of the same images."""
    present = [record for record in records if record is not None]
    if len(present) < len(records) or len({(r.job.dataset.digest, r.job.n) for r in present}) > 1:
        return None
    verdicts = [held(record) if robust else clean_right(record) for record in present]
    return (
        [verdict for verdict in verdicts if verdict is not None]
        if all(v is not None for v in verdicts)
        else None
    )
