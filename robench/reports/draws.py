"""Robust accuracy of randomized defenses over several draws of their noise, as a table below a leaderboard."""

from collections.abc import Sequence

from robench.records.randomized import FIELD, draws_label
from robench.records.record import Record
from robench.reports.formatting import EMPTY
from robench.reports.table import Grid

STATISTICS = ("worst_draw", "average", "majority", "single_draw")


def draws_grids(rows: Sequence[tuple[str, Record]], heading: str = "defense") -> list[Grid]:
    """A table for the randomized defenses among the rows, each a shown name and a record; empty if there are none.

    Args:
        heading: heading of the column with the names.
    """
    randomised = [(name, record) for name, record in rows if record.extra.get(FIELD)]
    if not randomised:
        return []
    columns = (heading, "draws", *(f"{name.replace('_', ' ')} %" for name in STATISTICS))
    lines = tuple(
        (
            name,
            draws_label(record).removesuffix(" draws"),
            *(_share(record.extra[FIELD], of) for of in STATISTICS),
        )
        for name, record in randomised
    )
    return [
        Grid(
            "Randomized defenses: robust accuracy over several draws of the noise (clean accuracy)",
            columns,
            (lines,),
            names=frozenset(columns[:2]),
            numbers=frozenset(columns[2:]),
            notes=("Most published figures are for a single draw.",),
        )
    ]


def _share(figures: dict, name: str) -> str:
    if name not in figures["robust"]:
        return EMPTY
    robust, clean = figures["robust"][name], figures["clean"][name]
    low, high = (100 * end for end in robust["interval"])
    return f"{100 * robust['value']:.2f} ({100 * clean['value']:.2f}) [{low:.1f}, {high:.1f}]"
