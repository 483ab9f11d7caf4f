"""Tables of differences between the accuracies of two defenses on the same images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from robench.records.record import Record
from robench.records.samples import clean_right, held, image_keys
from robench.reports.formatting import EMPTY
from robench.reports.table import Grid
from robench.statistics.accuracy import mcnemar, paired_difference

_NOTE = (
    "differences in percentage points on the same images{shared}, with 95 % intervals (Agresti & Min 2005) and the "
    "p-value of McNemar's exact test, without a correction for the number of comparisons{warned}"
)


def differences(
    title: str,
    pairs: Iterable[Sequence[str]],
    columns: Mapping[str, bool],
    records: Mapping[tuple[str, str], Record | None],
) -> Iterator[Grid]:
    """The table of the differences of some pairs of rows, on the images that the records of both have.

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
            notes=(_note(lines),),
        )


def _note(lines: Sequence[Sequence[str]]) -> str:
    """The note below the table, without signs that no cell has."""
    cells = [cell for _, *cells in lines for cell in cells]
    return _NOTE.format(
        shared=" (n where a record has more)" if any("\nn = " in cell for cell in cells) else "",
        warned="; ! as in the table above" if any(" !" in cell for cell in cells) else "",
    )


def _cell(first: Record | None, second: Record | None, robust: bool) -> str:
    if first is None or second is None or (pair := _verdicts(first, second, robust)) is None:
        return EMPTY
    right, other = pair
    won, lost, n = int((right & ~other).sum()), int((other & ~right).sum()), len(right)
    low, high = (100 * end for end in paired_difference(won, lost, n))
    p = mcnemar(won, lost)
    mark = " !" if robust and (first.health or second.health) else ""
    shared = "" if n == first.job.n == second.job.n else f"\nn = {n:,}"
    chance = "< 0.001" if p < 0.001 else f"= {p:.3f}"
    return f"{100 * (won - lost) / n:+.2f}{mark}\n[{low:.1f}, {high:.1f}]\np {chance}{shared}"


def _verdicts(first: Record, second: Record, robust: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Which of the images of both records each of them has right; None if there are none."""
    verdict = held if robust else clean_right
    right, other, keys, others = verdict(first), verdict(second), image_keys(first), image_keys(second)
    if right is None or other is None or keys is None or others is None:
        return None
    places = {key: place for place, key in enumerate(others)}
    pairs = [(place, places[key]) for place, key in enumerate(keys) if key in places]
    if not pairs:
        return None
    at, other_at = np.array(pairs).T
    return right[at], other[other_at]
