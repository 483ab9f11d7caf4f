"""Progress of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """The progress of a run or of one of its shares.

    Attributes:
        attack: canonical spec of the current attack.
        index: index of the current attack in the suite.
        attacks: number of attacks in the suite.
        rows: number of finished rows of the current attack.
        of_rows: maximum number of rows of the current attack.
        survivors: number of samples that are robust so far, or with which something remains to be done (`left`).
        samples: number of samples.
        passes: number of images on which this process has called the network.
        share: finished fraction of the current attack, 0 to 1.
        left: what remains to be done with the survivors, such as "attack" or "certify".
    """

    attack: str
    index: int
    attacks: int
    rows: int
    of_rows: int
    survivors: int
    samples: int
    passes: int
    share: float = 0.0
    left: str = "attack"

    @classmethod
    def of_shares(cls, parts: Sequence["Progress"]) -> "Progress":
        """The progress of a run whose shares run one after another; each share counts as an "attack"."""
        done = [(part.index + part.share) / part.attacks for part in parts]
        finished = sum(share == 1.0 for share in done)
        return cls(
            "shares",
            min(finished, len(parts) - 1),
            len(parts),
            rows=finished,
            of_rows=len(parts),
            survivors=sum(part.survivors for part in parts),
            samples=sum(part.samples for part in parts),
            passes=sum(part.passes for part in parts),
            share=sum(done) / len(done),
            left=parts[0].left,
        )

    @classmethod
    def together(cls, parts: Sequence["Progress"]) -> "Progress":
        """The progress of a run whose shares run in parallel: at the first attack that any of them still runs."""
        slowest = min(parts, key=lambda part: part.index)
        current = [part for part in parts if part.index == slowest.index]
        done = [1.0 if part.index > slowest.index else part.share for part in parts]
        return cls(
            slowest.attack,
            slowest.index,
            slowest.attacks,
            rows=sum(part.rows for part in current),
            of_rows=sum(part.of_rows for part in current),
            survivors=sum(part.survivors for part in parts),
            samples=sum(part.samples for part in parts),
            passes=sum(part.passes for part in parts),
            share=sum(done) / len(done),
            left=parts[0].left,
        )

    def of_grid(self, title: str, index: int, count: int, share: float) -> "Progress":
        """The progress of a grid whose first unfinished run has this progress; each record counts as an "attack".

        Args:
            title: name of the record, to which the current attack is added.
            index: index of the record.
            count: number of records.
            share: finished fraction of the grid.
        """
        title = title if self.attack == "shares" else f"{title}: {self.attack}"
        return replace(self, attack=title, index=index, attacks=count, share=min(share, 1.0))
