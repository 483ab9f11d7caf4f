"""Where a run stands, for whoever shows it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run, or one process of it, stands.

    Attributes:
        attack: canonical spec of the attack that plays; index, of attacks, in the suite.
        rows, of_rows: rows finished of this attack, and all of them (an upper bound).
        survivors, samples: robust so far, of all.
        passes: images the network was called on so far in this process.
        share: part of this attack that is done, 0 to 1.
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

    @classmethod
    def of_shares(cls, parts: Sequence["Progress"]) -> "Progress":
        """Where a run stands that plays its shares in turns: the "attacks" are its shares."""
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
        )

    @classmethod
    def together(cls, parts: Sequence["Progress"]) -> "Progress":
        """Where a run stands whose processes stand there: at the attack that some of them still play."""
        last = min(parts, key=lambda part: part.index)
        there = [part for part in parts if part.index == last.index]
        done = [1.0 if part.index > last.index else part.share for part in parts]
        return cls(
            last.attack,
            last.index,
            last.attacks,
            rows=sum(part.rows for part in there),
            of_rows=sum(part.of_rows for part in there),
            survivors=sum(part.survivors for part in parts),
            samples=sum(part.samples for part in parts),
            passes=sum(part.passes for part in parts),
            share=sum(done) / len(done),
        )
