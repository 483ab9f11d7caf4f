"""The state of a run: results of each sample and each attack, which are saved, resumed and merged from shares."""

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
from robench.engine.saved_kinds import check_facts, check_tensors

# Values of `fooled_by` other than the index of an attack in the suite.
CLEAN, ROBUST, NOISE = -2, -1, -3
_SAMPLES = ("fooled_by", "draws", "steps", "forward", "backward")
# The facts of a state as a run saves them, with one item in each list.
_SAVED = {
    "costs": [asdict(AttackCost("", 0, 0, 0, 0, 0.0))],
    "stats": [asdict(LossStats())],
    "seconds": 0.0,
    "nonfinite": 0,
    "smallest": 0,
    "rows": [0],
    "playing": False,
    "batch_size": 0,
}


@dataclass
class RunState:
    """The results of a run so far.

    Attributes:
        fooled_by: index of the attack that fooled each sample, or CLEAN, ROBUST, NOISE, (n,).
        draws: number of draws that the sample's candidate fools, (n,).
        steps: number of forward passes of the row that fooled it, (n,), see `Outcome.steps`.
        forward, backward: number of passes, (n,).
        examples: adversarial examples of each attack that has started.
        costs, stats: costs and loss statistics of each finished attack.
        nonfinite: number of answers with NaN or infinite logits during attacks.
        rows: number of rows sent to surrogate and judge during attacks, forward and backward.
        images: number of rows sent forward in this process.
        seconds: time spent on the current attack.
        batch_size: smallest batch size so far.
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
    rows: tuple[int, int] = (0, 0)
    images: int = 0
    seconds: float = 0.0
    batch_size: int = 0

    @classmethod
    def empty(cls, n: int, batch_size: int) -> "RunState":
        draws, steps, forward, backward = torch.zeros(4, n, dtype=torch.int64).unbind()
        return cls(torch.full((n,), ROBUST), draws, steps, forward, backward, batch_size=batch_size)

    def without_attacks(self) -> "RunState":
        """The state after the clean pass, for one share of the run."""
        return replace(self, examples=[], costs=[], stats=[])

    def progress(self, specs: Sequence[str], selected: Tensor) -> Progress:
        """The progress between two attacks.

        Args:
            specs: canonical specs of the attacks.
            selected: samples of the share, bool (n,).
        """
        finished = len(self.costs)
        index = min(finished, len(specs) - 1)
        return Progress(
            attack=specs[index],
            index=index,
            attacks=len(specs),
            rows=0,
            of_rows=0,
            survivors=int(((self.fooled_by == ROBUST) & selected).sum()),
            samples=int(selected.sum()),
            passes=self.images,
            share=float(finished == len(specs)),
        )

    def begin(self, index: int) -> AdversarialExamples:
        """The adversarial examples of an attack, with those from before an interruption."""
        if index == len(self.examples):
            self.examples.append(AdversarialExamples())
        return self.examples[index]

    def take(
        self,
        spec: str,
        results: SampleResults,
        passes: tuple[Tensor, Tensor],
        selected: Tensor,
        attacked: int,
    ) -> None:
        """Add the results of the next attack.

        Args:
            spec: canonical spec of the attack.
            passes: forward and backward passes, (n,) each.
            selected: samples of this share, bool (n,).
            attacked: number of samples attacked.
        """
        index, (forward, backward) = len(self.costs), passes
        won = results.draws > self.draws
        self.fooled_by = torch.where(won, index, self.fooled_by)
        self.steps = torch.where(won, results.steps, self.steps)
        self.draws = torch.where(won, results.draws, self.draws)
        self.forward = self.forward + forward
        self.backward = self.backward + backward
        survivors = int(((self.fooled_by == ROBUST) & selected).sum())
        counts = int(forward.sum()), int(backward.sum())
        self.costs.append(AttackCost(spec, attacked, survivors, *counts, self.seconds))
        self.seconds = 0.0

    def count_rows(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Add the rows sent to the network between two states of a counter."""
        forward, backward = (new - old for new, old in zip(after, before, strict=True))
        self.rows = self.rows[0] + forward, self.rows[1] + backward
        self.images += forward

    # -- saving and resuming -----------------------------------------------------------------------------

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {f"run.{name}": getattr(self, name) for name in _SAMPLES}

    @property
    def facts(self) -> dict[str, Any]:
        """The other fields that are saved, as JSON values."""
        facts = {
            "costs": [asdict(cost) for cost in self.costs],
            "stats": [asdict(stats) for stats in self.stats],
            "seconds": self.seconds,
            "nonfinite": self.nonfinite,
            "smallest": self.batch_size,
            "rows": self.rows,
        }
        return json.loads(json.dumps(facts))

    def check(self, saved: Saved, margin: Tensor) -> None:
        """Raise an error for a state that no run has saved.

        Args:
            margin: clean margins of all samples, (n,).
        """
        check_facts(saved.facts, _SAVED)
        check_tensors(saved.tensors, {**self.tensors, "run.clean_margin": margin})
        if not min(saved.facts["smallest"], saved.facts["batch_size"]):
            raise ValueError("a batch of no images")
        replace(self).resume(saved)

    def resume(self, saved: Saved) -> None:
        """Restore a saved state."""
        facts = saved.facts
        for name in _SAMPLES:
            setattr(self, name, saved.tensors[f"run.{name}"])
        self.costs = [AttackCost(**cost) for cost in facts["costs"]]
        self.stats = [LossStats(**stats) for stats in facts["stats"]]
        self.seconds, self.nonfinite = facts["seconds"], facts["nonfinite"]
        self.batch_size = min(self.batch_size, facts["smallest"])
        self.rows = (facts["rows"][0], facts["rows"][1])
        started = len(self.costs) + facts["playing"]
        self.examples = [AdversarialExamples(saved.found.get(index)) for index in range(started)]
        if facts["playing"]:
            # An earlier attempt at the same attack may have saved examples of other samples.
            fooled = saved.tensors["loop.results.draws"].nonzero()[:, 0].tolist()
            places = saved.found.get(len(self.costs), {})
            self.examples[-1] = AdversarialExamples({i: places[i] for i in fooled if i in places})

    # -- sharing -----------------------------------------------------------------------------------------

    def merge(self, results: Sequence["ShareResult"]) -> None:
        """Merge the results of all shares."""
        states = [result.state for result in results]
        for result in results:
            for name in _SAMPLES:
                getattr(self, name)[result.selected] = getattr(result.state, name)[result.selected]
        self.examples = [AdversarialExamples.together(x) for x in _by_attack(s.examples for s in states)]
        self.costs = [AttackCost.together(costs) for costs in _by_attack(state.costs for state in states)]
        self.stats = [LossStats.together(stats) for stats in _by_attack(state.stats for state in states)]
        self.nonfinite = sum(state.nonfinite for state in states)
        self.images = sum(state.images for state in states)
        self.batch_size = min(result.batch_size for result in results)
        forward, backward = zip(*(state.rows for state in states), strict=True)
        self.rows = sum(forward), sum(backward)


@dataclass(frozen=True)
class ShareResult:
    """The results of one share of a run.

    Attributes:
        selected: samples of the share, bool (n,); the state of other samples is meaningless.
        state: results of the share.
        batch_size: final batch size.
    """

    selected: Tensor
    state: RunState
    batch_size: int


def _by_attack(lists: Any) -> Any:
    return zip(*lists, strict=True)
