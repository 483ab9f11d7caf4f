"""What a run knows at any moment: sample by sample, attack by attack; saved, resumed, and merged from processes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robench.engine.adversarial_examples import AdversarialExamples
from robench.engine.attack_context import SampleResults
from robench.engine.checkpoint import Saved
from robench.engine.loss_monitor import LossStats
from robench.engine.outcome import AttackCost
from robench.engine.progress import Progress

# In `fooled_by`, beside the place of an attack in the suite.
CLEAN, ROBUST, NOISE = -2, -1, -3
_SAMPLES = ("fooled_by", "draws", "steps", "forward", "backward")


@dataclass
class RunState:
    """The results of a run so far.

    Attributes:
        fooled_by: (n,) the attack that fooled each sample, by its place, or CLEAN, ROBUST, NOISE.
        draws, steps: (n,) in how many draws, after how many queries; forward, backward: (n,) passes.
        examples, costs, stats: one an attack, of those that have begun; costs and stats of those that are over.
        nonfinite: NaN or infinite logits that attacks met.
        images: that the surrogate was called on in this process.
        seconds: that the attack under way has taken.
    """

    fooled_by: Tensor
    draws: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    examples: list[AdversarialExamples] = field(default_factory=list)
    costs: list[AttackCost] = field(default_factory=list)
    stats: list[LossStats] = field(default_factory=list)
    nonfinite: int = 0
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, n: int) -> "RunState":
        draws, steps, forward, backward = torch.zeros(4, n, dtype=torch.int64).unbind()
        return cls(torch.full((n,), ROBUST), draws, steps, forward, backward)

    def unplayed(self) -> "RunState":
        """The clean pass's results alone, for one share of the run."""
        return replace(self, examples=[], costs=[], stats=[])

    def standing(self, specs: Sequence[str], mine: Tensor) -> Progress:
        """Where the samples `mine`, bool (n,), stand between two attacks of these specs."""
        played = len(self.costs)
        index = min(played, len(specs) - 1)
        return Progress(
            attack=specs[index],
            index=index,
            attacks=len(specs),
            rows=0,
            of_rows=0,
            survivors=int(((self.fooled_by == ROBUST) & mine).sum()),
            samples=int(mine.sum()),
            passes=self.images,
            share=float(played == len(specs)),
        )

    def begin(self, index: int) -> AdversarialExamples:
        """Where the images go that an attack finds, or has found before it was interrupted."""
        if index == len(self.examples):
            self.examples.append(AdversarialExamples())
        return self.examples[index]

    def take(
        self, spec: str, results: SampleResults, passes: tuple[Tensor, Tensor], mine: Tensor, attacked: int
    ) -> None:
        """Add the results of the next attack.

        Args:
            passes: (n,) forward and (n,) backward ones.
            mine: bool (n,), the samples of this process; attacked: how many of them.
        """
        index, (forward, backward) = len(self.costs), passes
        won = results.draws > self.draws
        self.fooled_by = torch.where(won, index, self.fooled_by)
        self.steps = torch.where(won, results.steps, self.steps)
        self.draws = torch.where(won, results.draws, self.draws)
        self.forward = self.forward + forward
        self.backward = self.backward + backward
        survivors = int(((self.fooled_by == ROBUST) & mine).sum())
        counts = int(forward.sum()), int(backward.sum())
        self.costs.append(AttackCost(spec, attacked, survivors, *counts, self.seconds))
        self.seconds = 0.0

    # -- saving and resuming -----------------------------------------------------------------------------

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {f"run.{name}": getattr(self, name) for name in _SAMPLES}

    @property
    def facts(self) -> dict[str, Any]:
        """The rest, as JSON holds it."""
        facts = {
            "costs": [asdict(cost) for cost in self.costs],
            "stats": [asdict(stats) for stats in self.stats],
            "seconds": self.seconds,
            "nonfinite": self.nonfinite,
        }
        return json.loads(json.dumps(facts))

    def resume(self, saved: Saved) -> None:
        """Take up what `tensors` and `facts` were when they were saved."""
        facts = saved.facts
        for name in _SAMPLES:
            setattr(self, name, saved.tensors[f"run.{name}"])
        self.costs = [AttackCost(**cost) for cost in facts["costs"]]
        self.stats = [LossStats(**stats) for stats in facts["stats"]]
        self.seconds, self.nonfinite = facts["seconds"], facts["nonfinite"]
        begun = len(self.costs) + facts["playing"]
        self.examples = [AdversarialExamples(saved.found.get(index)) for index in range(begun)]
        if facts["playing"]:
            # An attempt that was given up may have left others behind.
            known = saved.tensors["loop.results.draws"].nonzero()[:, 0].tolist()
            places = saved.found.get(len(self.costs), {})
            self.examples[-1] = AdversarialExamples({i: places[i] for i in known if i in places})

    # -- sharing -----------------------------------------------------------------------------------------

    def merge(self, shards: Sequence["ShardResult"]) -> None:
        """Take what processes found, each of its share."""
        states = [shard.state for shard in shards]
        for shard in shards:
            for name in _SAMPLES:
                getattr(self, name)[shard.mine] = getattr(shard.state, name)[shard.mine]
        self.examples = [AdversarialExamples.together(x) for x in _by_attack(s.examples for s in states)]
        self.costs = [AttackCost.together(costs) for costs in _by_attack(state.costs for state in states)]
        self.stats = [LossStats.together(stats) for stats in _by_attack(state.stats for state in states)]
        self.nonfinite = sum(state.nonfinite for state in states)
        self.images = sum(state.images for state in states)


@dataclass(frozen=True)
class ShardResult:
    """What one process found of its share.

    Attributes:
        mine: bool (n,), its share; of samples outside of it the state says nothing.
        batch_size: images a call at the end.
    """

    mine: Tensor
    state: RunState
    batch_size: int


def _by_attack(lists: Any) -> Any:
    return zip(*lists, strict=True)
