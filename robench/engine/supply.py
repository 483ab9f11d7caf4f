"""The rows that wait for lanes, and the choice of those that start."""

from dataclasses import dataclass

from robench.engine.ahead import Recent
from robench.engine.attack_context import AttackContext, SampleResults
from robench.engine.lanes import Group, Queue

# A row waits for a lower rank of its image while more than this fraction of recent rows win.
_SUPERFLUOUS = 0.1


@dataclass(frozen=True)
class Start:
    """A group of rows to start.

    Attributes:
        rank: rank of the rows.
        group: the group of samples.
        counted: the group's samples, with -1 for rows that do not count.
    """

    rank: int
    group: Group
    counted: list[int]


class Supply:
    """Supplies idle lanes with rows.

    Args:
        context: the inputs of the attack.
        samples: indices of the samples to attack, in order.
        results: results so far, kept up to date by the caller.
        divisible: whether the network may be called on some of the lanes.

    Attributes:
        wins: recent fraction of rows that ended with an adversarial example.
    """

    def __init__(self, context: AttackContext, samples: list[int], results: SampleResults, divisible: bool):
        self.context, self.results, self.divisible = context, results, divisible
        self.attacked = set(samples)
        ranks = context.attack.ranks(context.problem.num_classes)
        self.queue = Queue(context.samples.ids, self.attacked, ranks, context.problem.group)
        self.wins = Recent(0.5, weight=0.2)

    def next(self, room: int, running: list[int]) -> list[Start]:
        """Remove at most `room` groups from the queue.

        Args:
            running: samples of the active rows.
        """
        starts: list[Start] = []
        samples, busy = set(running), len(running)
        while self.queue and len(starts) < room:
            rank, group = self.queue.first
            counted = self._counted(group)
            if max(counted) >= 0:
                if not samples.isdisjoint(counted) and self._is_premature(busy + len(starts)):
                    break
                starts.append(Start(rank, group, counted))
                samples.update(counted)
            self.queue.pop()
        return starts

    def _counted(self, group: Group) -> list[int]:
        members = self.attacked.intersection(group.members[: group.size])
        return [s if s in members and not self._is_decided(s) else -1 for s in group.members]

    def _is_decided(self, sample: int) -> bool:
        """Whether the sample needs no more rows, because one has won; waiting rows have higher ranks."""
        won = int(self.results.draws.numpy()[sample]) == self.context.judge.draws
        return won and not self.context.attack.minimise

    def _is_premature(self, busy: int) -> bool:
        """Whether a row should wait because a running row of the same sample may well make it superfluous.

        Idle lanes cost nothing if the network may be called on smaller batches, unless they are padding anyway.
        """
        attack, shapes = self.context.attack, self.context.network.shapes
        if not self.divisible or attack.minimise or shapes.rigid:
            return False
        kind = "logits" if attack.gradient_free else "gradient"
        return shapes.fit(kind, busy) <= busy and self.wins.value > _SUPERFLUOUS
