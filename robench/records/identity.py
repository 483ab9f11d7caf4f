"""Group the records of one defense on the same images, by weights and answers, not by name."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from robench.core.errors import ResourceError
from robench.records.randomized import FIELD
from robench.records.record import Record
from robench.records.samples import read_samples

# Tolerances of margins between logits: rounding on other devices is smaller, and other weights or code change them by
# more. The closer bound is for records without a digest of the loaded state, which only their answers can identify.
_LOOSE, _CLOSE = 1e-2, 1e-4


def subjects(records: Sequence[Record]) -> dict[int, int]:
    """A number for each record, by its `id`: the same for records of one defense on the same images.

    Records share a defense if they share a digest, of the checkpoint or of the loaded state, and have the same clean
    margins, image by image. One checkpoint with other settings, or in edited code, is another defense. Older records
    have no digest of the loaded state. They also share a defense with a record that has the same number of parameters
    and almost bit-identical margins, because the same weights in another file have another file digest.
    """
    margins: dict[int, np.ndarray | None] = {}

    def of(record: Record) -> np.ndarray | None:
        if id(record) not in margins:
            margins[id(record)] = _margins(record)
        return margins[id(record)]

    number: dict[int, int] = {}
    groups: dict[tuple, list[list[Record]]] = {}
    for record in records:
        place = (record.job.dataset.digest, record.job.n, record.corrupted)
        known = groups.setdefault(place, [])
        alike = [group for group in known if any(_same(record, other, of) for other in group)]
        joined = [record, *(other for group in alike for other in group)]
        groups[place] = [group for group in known if all(group is not other for other in alike)] + [joined]
    for count, group in enumerate(group for known in groups.values() for group in known):
        number |= {id(record): count for record in group}
    return number


def _same(one: Record, other: Record, margins: Callable[[Record], np.ndarray | None]) -> bool:
    a, b = one.job.defense, other.job.defense
    if (FIELD in one.extra) != (FIELD in other.extra):
        return False
    if a.state_sha256 and b.state_sha256:
        shared, slack = a.state_sha256 == b.state_sha256, _LOOSE
    elif a.checkpoint_sha256 and a.checkpoint_sha256 == b.checkpoint_sha256:
        shared, slack = True, _LOOSE
    else:
        shared, slack = a.parameters is not None and a.parameters == b.parameters, _CLOSE
    if not shared:
        return False
    named = (a.name, a.card_digest, a.checkpoint_sha256) == (b.name, b.card_digest, b.checkpoint_sha256)
    if FIELD in one.extra and one.job.seed != other.job.seed:
        # Other noise gives other margins, so digests that cover the settings decide, or else the card.
        return bool(a.state_sha256 and b.state_sha256) or named
    first, second = margins(one), margins(other)
    if first is None or second is None:
        return named
    return _agree(first, second, slack)


def _agree(one: np.ndarray, other: np.ndarray, slack: float) -> bool:
    """Whether margins (N,) are equal up to rounding, except for one image in a thousand."""
    with np.errstate(invalid="ignore"):
        close = np.abs(one - other) <= slack * (1 + np.abs(one))
    off = ~(close | (one == other) | (np.isnan(one) & np.isnan(other)))
    return int(off.sum()) <= len(one) // 1000


def _margins(record: Record) -> np.ndarray | None:
    """Clean margins in the order of the ids, (n,); None if the samples cannot be read."""
    try:
        rows = read_samples(record.folder).sort_by("id") if record.folder else None
    except ResourceError:
        return None
    if rows is None or len(rows) != record.job.n:
        return None
    return rows["clean_margin"].to_numpy().astype(np.float64)


def by_subject(records: Iterable[Record], number: dict[int, int]) -> dict[int, list[Record]]:
    """The records of each number of `subjects`."""
    grouped: dict[int, list[Record]] = {}
    for record in records:
        grouped.setdefault(number[id(record)], []).append(record)
    return grouped
