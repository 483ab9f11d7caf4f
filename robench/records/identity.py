"""Group the records of one defense on the same images, by weights and answers, not by name."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robench.records.randomized import FIELD
from robench.records.record import DefenseFacts, Record
from robench.records.samples import clean_margins

# Tolerances of margins between logits: rounding on other devices is smaller, and other weights or code change them by
# more. The closer bound is for records without a digest of the loaded state, which only their answers can identify.
_LOOSE, _CLOSE = 1e-2, 1e-4
# Of this many images, one may have another margin.
_ONE_IN = 1000


def subjects(records: Sequence[Record]) -> dict[int, int]:
    """A number for each record, by its `id`: the same for records of one defense on the same images.

    Records share a defense if they share a digest, of the checkpoint or of the loaded state, and have the same clean
    margins, image by image. One checkpoint with other settings, or in edited code, is another defense. Older records
    have no digest of the loaded state. They also share a defense with a record that has the same number of parameters
    and almost bit-identical margins, because the same weights in another file have another file digest.
    """
    number: dict[int, int] = {}
    # Most records of one defense have identical traits, and need no comparison.
    numbers: dict[tuple, int] = {}
    distinct: list[Traits] = []
    for record in records:
        traits = Traits.of(record)
        if (key := traits.identity) not in numbers:
            numbers[key] = len(distinct)
            distinct.append(traits)
        number[id(record)] = numbers[key]
    roots = connected(distinct)
    return {record: roots[i] for record, i in number.items()}


@dataclass(frozen=True, eq=False)
class Traits:
    """What identifies the defense of a record.

    Attributes:
        images: digest and number of images, whether they were corrupted, and whether the defense is randomised.
        seed: seed of the noise of a randomised defense.
        margins: clean margins in the order of the ids, (n,); None if they cannot be read.
    """

    images: tuple[str, int, bool, bool]
    defense: DefenseFacts
    seed: int
    margins: np.ndarray | None

    @classmethod
    def of(cls, record: Record) -> "Traits":
        job, randomised = record.job, FIELD in record.extra
        images = (job.dataset.digest, job.n, record.corrupted, randomised)
        return cls(images, job.defense, job.seed if randomised else 0, clean_margins(record))

    @property
    def randomised(self) -> bool:
        return self.images[-1]

    @property
    def named(self) -> tuple[str, ...]:
        return self.defense.name, self.defense.card_digest, self.defense.checkpoint_sha256

    @property
    def digests(self) -> tuple[tuple[str, str | int | None, float], ...]:
        """What two records of one defense may share, and the tolerance of their margins then."""
        return (
            ("state", self.defense.state_sha256, _LOOSE),
            ("checkpoint", self.defense.checkpoint_sha256, _LOOSE),
            ("parameters", self.defense.parameters, _CLOSE),
        )

    @property
    def identity(self) -> tuple:
        """Equal for records that share a defense bit for bit; unique for one that has nothing to share."""
        shared = tuple(value for _, value, _ in self.digests)
        if not any(value not in ("", None) for value in shared):
            return (id(self),)
        margins = None if self.margins is None else hashlib.sha256(self.margins.tobytes()).digest()
        return (self.images, self.named, *shared, self.seed, margins)

    def places(self, near: bool) -> Iterator[tuple]:
        """Keys of an index. Two traits of one defense have a key in common, if those of one include the near ones.

        Margins that agree do so on the first image, or on the second if the first may differ, and so on.
        """
        unread = self.margins is None
        if near:
            yield self.images, "named" if unread or self.randomised else "unread", self.named
        else:
            yield self.images, "named", self.named
            if unread:
                yield self.images, "unread", self.named
        if self.randomised:
            yield self.images, "noise", self.defense.state_sha256
        first = [] if self.margins is None else self.margins[: 1 + len(self.margins) // _ONE_IN].tolist()
        for kind, value, slack in self.digests:
            if value not in ("", None):
                for image, margin in enumerate(first):
                    for cell in _cells(margin, slack, near):
                        yield self.images, kind, value, image, cell


def _cells(margin: float, slack: float, near: bool) -> Iterable[float | str]:
    """The cell of a margin; with `near` also those on both sides, which hold every margin within `slack`."""
    if not math.isfinite(margin):
        return (str(margin),)
    # Differences on this scale are relative to 1 + |margin|, as in `_agree`.
    cell = math.floor(math.copysign(math.log1p(abs(margin)), margin) / (1.1 * slack))
    return (cell - 1, cell, cell + 1) if near else (cell,)


def connected(distinct: Sequence[Traits]) -> list[int]:
    """A number for each, the same for those that are linked by `same`, directly or through others."""
    parents = list(range(len(distinct)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    index: dict[tuple, list[int]] = {}
    for i, traits in enumerate(distinct):
        for place in traits.places(near=True):
            for j in index.get(place, ()):
                if root(i) != root(j) and same(traits, distinct[j]):
                    parents[root(i)] = root(j)
        for place in traits.places(near=False):
            index.setdefault(place, []).append(i)
    return [root(i) for i in range(len(distinct))]


def same(one: Traits, other: Traits) -> bool:
    """Whether both are of one defense on the same images."""
    if one.images != other.images:
        return False
    a, b = one.defense, other.defense
    if a.state_sha256 and b.state_sha256:
        shared, slack = a.state_sha256 == b.state_sha256, _LOOSE
    elif a.checkpoint_sha256 and a.checkpoint_sha256 == b.checkpoint_sha256:
        shared, slack = True, _LOOSE
    else:
        shared, slack = a.parameters is not None and a.parameters == b.parameters, _CLOSE
    if not shared:
        return False
    if one.randomised and one.seed != other.seed:
        # Other noise gives other margins, so digests that cover the settings decide, or else the card.
        return bool(a.state_sha256 and b.state_sha256) or one.named == other.named
    if one.margins is None or other.margins is None:
        return one.named == other.named
    return _agree(one.margins, other.margins, slack)


def _agree(one: np.ndarray, other: np.ndarray, slack: float) -> bool:
    """Whether margins (n,) are equal up to rounding, except for one image in a thousand."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        close = np.abs(one - other) <= slack * (1 + np.minimum(np.abs(one), np.abs(other)))
    off = ~(close | (one == other) | (np.isnan(one) & np.isnan(other)))
    return int(off.sum()) <= len(one) // _ONE_IN
