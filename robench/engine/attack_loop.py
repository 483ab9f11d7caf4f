"""The loop that runs one attack: it fills lanes, queries surrogate and judge, drops finished rows and refills lanes.

A sample's rows have ranks (targets x restarts) and wait in the order of their rank: the second target of an image
starts when every image has had its first target, or when lanes would be idle. The lowest rank that fools the judge
wins, regardless of which row finishes first: rows of higher rank are dropped, rows of lower rank continue. A sample's
result therefore depends on the sample alone and costs no more than if its rows ran sequentially.

Lanes are filled in blocks, one group of rows per block. A block is one lane, except for attacks that couple rows:
their groups start together and keep their lanes until no row of the group counts, and finished rows stay as padding.

There are as many lanes as rows run, up to the batch size; their number changes in steps of `START`. If the network may
be called on smaller batches, idle lanes are not sent to it, and a row waits if a lower rank may well make it
superfluous.

Rows of a minimum-norm attack (`Attack.minimise`) do not stop when they fool the judge: every row runs to its end, and
the nearest adversarial example over all ranks is kept. A transfer attack (`Attack.transfers`) runs to its end if the
attacker receives no verdicts, and then its best point is judged. If only the last iterate counts
(`Attack.judged_at_end`), rows run to their end against every defense.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Rows, State, gather
from robench.engine.ahead import Ahead
from robench.engine.attack_context import AttackContext, SampleResults
from robench.engine.exact_rows import exact
from robench.engine.host import on_host
from robench.engine.lanes import START, Lanes, in_parts, put
from robench.engine.loss_monitor import LossMonitor
from robench.engine.packing import pad
from robench.engine.run_images import RunImages
from robench.engine.several_queries import is_quiet, may_go_unread, turn_ahead, turn_unread
from robench.engine.supply import Supply
from robench.engine.verdicts import Verdicts


class Loop:
    """One attack on some samples.

    Args:
        context: the inputs of the attack.
        samples: indices of the samples to attack, in order.
        results: results so far, updated in place.

    Attributes:
        count: number of lanes.
        whole: False during a query, when a saved state would lack the verdict.
    """

    def __init__(self, context: AttackContext, samples: list[int], results: SampleResults):
        self.context, self.results = context, results
        attack, problem = context.attack, context.problem
        self.block = problem.group
        # Objectives that couple rows, or that use features, are evaluated on whole batches.
        self.divisible = problem.group == 1 and not attack.layers
        self.count = START if self.divisible else context.network.batch_size
        self.count = min(self.count, context.network.batch_size)
        self.images = RunImages(context)
        self.supply = Supply(context, samples, results, self.divisible)
        self.rows: Rows | None = None
        self.state: State | None = None
        self.lanes = Lanes.idle(self.count)
        self.verdicts = Verdicts(context, self.lanes)
        self.losses = LossMonitor(self.count, attack.ascends, attack.steps)
        self.whole = True
        # Whether no row has ended since lanes were last filled.
        self._is_filled = False
        self.ahead = Ahead()
        # Active lanes, and those to send to the network; None if they have changed.
        self._active: Tensor | None = None
        self.asking: Tensor | None = None
        # Whether rows may make several queries before the host reads the answers, see `turn_unread`.
        self.is_quiet = False
        # Number of queries for which the state holds what they need, see `Attack.advance`.
        self._prepared = 0
        # Whether a lane may wait for its first gradient.
        self._is_starting = True

    def play(self, between: Callable[["Loop"], None]) -> None:
        """Run the attack to its end; `between` is called after every query, to save or to show progress."""
        while True:
            self.whole = False
            more = self._refill()
            if more:
                self._turn()
            self.whole = True
            if not more:
                return
            between(self)

    @property
    def total(self) -> int:
        """Maximum number of rows."""
        return self.supply.queue.total

    @property
    def remaining(self) -> int:
        """Number of unfinished rows."""
        return self.supply.queue.waiting + int(self.lanes.active.sum())

    # -- filling the lanes -------------------------------------------------------------------------------

    def _refill(self) -> bool:
        """Move waiting groups into idle blocks of lanes; False when nothing is left to run."""
        if self._is_filled:
            return True
        busy = self.count // self.block - len(self.lanes.idle_blocks(self.block))
        blocks = self.context.network.batch_size // self.block
        room = blocks - busy
        # Starting rows is expensive, so wait until several blocks are idle.
        if self.supply.queue and busy and room < blocks // 8:
            return True
        started = self.supply.next(room, self.lanes.sample[self.lanes.active].tolist())
        self._is_filled = True
        self._resize(busy + len(started))
        if started:
            idle = self.lanes.idle_blocks(self.block)
            lanes = torch.tensor(
                [i * self.block + j for i in idle[: len(started)] for j in range(self.block)]
            )
            self.lanes.rank[lanes] = torch.tensor([start.rank for start in started for _ in start.counted])
            self.lanes.held[lanes] = torch.tensor([s for start in started for s in start.group.members])
            self.lanes.sample[lanes] = torch.tensor([s for start in started for s in start.counted])
            self._start(lanes)
        return busy + len(started) > 0

    def _resize(self, blocks: int) -> None:
        """Set the number of lanes for some busy blocks: copy busy lanes to the front, and fill up with copies."""
        size = min(-(-max(blocks, 1) // START) * START, self.context.network.batch_size)
        if not self.divisible or size == self.count:
            return
        lanes = self.lanes.active.nonzero()[:, 0]
        kept = torch.cat([lanes, torch.zeros(size - len(lanes), dtype=torch.int64)])
        self.lanes = self.verdicts.lanes = gather(self.lanes, kept)
        self.lanes.sample[len(lanes) :] = -1
        self.verdicts.kept = {
            new: self.verdicts.kept[old]
            for new, old in enumerate(lanes.tolist())
            if old in self.verdicts.kept
        }
        self.losses.take(kept)
        if self.state is not None:
            index = kept.to(self.context.device)
            self.rows, self.state = gather(self.rows, index), gather(self.state, index)
        self.count = size
        self._lanes_changed()

    def _lanes_changed(self) -> None:
        self.ahead.forget()
        self._active = None

    def _start(self, lanes: Tensor) -> None:
        device = self.context.device
        self.lanes.start(lanes)
        self.losses.start(lanes)
        self._lanes_changed()
        self._is_starting = True
        started = self.images.rows(self.lanes.held[lanes], self.lanes.rank[lanes])
        for start, part in in_parts(lanes, START):
            padded = pad(torch.arange(start, start + len(part)), START)
            rows = gather(started, padded.to(device))
            state = self.context.attack.init(self.context.problem, rows)
            if self.state is None or self.rows is None:
                fill = torch.zeros(self.count, dtype=torch.int64, device=device)
                self.rows, self.state = gather(rows, fill), gather(state, fill)
            first = torch.arange(len(part), device=device)
            self.rows = put(self.rows, part.to(device), rows, first)
            self.state = put(self.state, part.to(device), state, first)
        self._note_kinds()

    def _note_kinds(self) -> None:
        probes = self.context.attack.probes(self.state)
        if probes is not None:
            self.lanes.probes = probes.cpu()

    # -- one query ---------------------------------------------------------------------------------------

    def _turn(self) -> None:
        assert self.rows is not None and self.state is not None
        attack, problem = self.context.attack, self.context.problem
        active = self._active
        if active is None:
            active = self._active = self.lanes.active
            self.rows = replace(self.rows, active=active.to(self.context.device))
            is_full = not self.divisible or bool(active.all())
            self.asking = None if is_full else active.nonzero()[:, 0].to(self.context.device)
        unread = may_go_unread(self, active) if attack.horizon > 1 else 0
        if attack.horizon > 1 and not self.supply.queue:
            plan = self.ahead.choose(self.context.network, attack, active, self.rows)
            if plan is not None and (not unread or len(plan.entry) >= 2 * len(plan.lanes)):
                turn_ahead(self, active, plan)
                self._prepared = 0
                return
        self._prepare(max(unread, 1))
        if unread:
            turn_unread(self, active, unread)
            return
        ask, waits = self._ask(active)
        x = ask.x
        points = x if ask.point is None else ask.point
        if self.verdicts.minimise:
            # The nearest image lies on the decision boundary. It is queried as a record stores it, so that rounding
            # cannot change the verdict.
            points = problem.threat.as_recorded(self.rows.x, points)
            x = problem.threat.image(self.rows.x, points, self.rows.sample)
        asking_lanes = active if waits is None else active & ~waits
        asking = self.asking
        if self.divisible and waits is not None:
            asking = asking_lanes.nonzero()[:, 0].to(self.context.device)
        before, queries = self.state, self.lanes.queries[:, 0]
        first_answer = self.query(x, ask, self.rows, before, queries, self.exactly(asking_lanes), asking)
        answer = attack.pull_back(problem, self.rows, before, first_answer)
        self.state = attack.tell(problem, self.rows, before, answer)
        first = None
        if self._is_starting and answer.grad.numel():
            first = active & (self.lanes.queries[:, 1] == 0)
            self._is_starting = bool(first.any())
        facts = on_host(
            finished=attack.finished(self.state),
            moved=attack.moved(self.state) if attack.horizon > 1 else None,
            probes=attack.probes(self.state),
            **self.verdicts.facts(answer.logits, points, self.rows),
            **self.losses.facts(answer, first is not None),
        )
        passes = self.passes(answer)
        # Finished rows keep counting: padding draws a randomized surrogate's noise as if it were active.
        self.lanes.queries = self.lanes.queries + (passes if waits is None else ~waits[:, None] * passes)
        if waits is not None:
            self.lanes.waited = torch.where(waits, self.lanes.waited + 1, 0)
        self.lanes.probes = facts.get("probes", self.lanes.probes)
        self.losses.note(asking_lanes, first, facts if waits is None else {**facts, "waits": waits})
        draws = self.verdicts.judge(x, points, facts, self.rows, asking_lanes)
        if self.verdicts.outside is not None:
            self.losses.mark("outside", self.verdicts.outside)
        if "moved" in facts:
            self.ahead.note((facts["moved"] & active).sum(), active.sum())
            self.is_quiet = is_quiet(facts["wrong"], active)
        disagree = self.verdicts.disagree
        if disagree is not None and len(disagree := disagree.nonzero()[:, 0]):
            self.go_on_exactly(disagree)
            self.state = self.told_exactly(first_answer, ask, self.rows, before, queries, disagree)
            self._note_kinds()
        self.settle(active, draws, points, facts["finished"])

    def _prepare(self, queries: int) -> None:
        """Let the attack supply its state for some queries, on devices where it cannot look whether it must."""
        attack, device = self.context.attack, self.context.device
        if attack.horizon == 1 or device.type == "cpu":
            return
        if self._prepared < queries:
            assert self.rows is not None
            zeros = torch.zeros_like(self.rows.sample)
            self.state = attack.advance(self.context.problem, self.rows, self.state, zeros)
            self._prepared = attack.horizon
        self._prepared -= queries

    def _ask(self, active: Tensor) -> tuple[Ask, Tensor | None]:
        """The queries of this turn, and the lanes that wait, bool (S,) on the CPU; None if none does."""
        assert self.rows is not None and self.state is not None
        attack = self.context.attack
        ask = attack.ask(self.context.problem, self.rows, self.state)
        if attack.probes(self.state) is None:
            return ask, None if ask.waits is None else ask.waits.cpu()
        is_probing = self.lanes.is_probing(active)
        return replace(ask, objective=None) if is_probing else ask, self.lanes.probes != is_probing

    def query(
        self,
        x: Tensor,
        ask: Ask,
        rows: Rows,
        state: State,
        queries: Tensor,
        exactly: Tensor | None,
        lanes: Tensor | None = None,
    ) -> Answer:
        """The answer to a query of some lanes; lanes of `exactly`, bool (S,) on the CPU, are answered in fp32."""
        network = self.context.network
        # Only the noise of a randomized surrogate depends on the number of queries.
        passed = rows.rank if network.stream is None else queries.to(x.device)
        answer = network.answer(x, ask.objective, rows, self.context.attack.eot, passed, lanes)
        if exactly is not None:
            answer = exact(self.context, answer, ask, rows, state, queries, exactly.nonzero()[:, 0])
        return answer

    def told_exactly(
        self, answer: Answer, ask: Ask, rows: Rows, before: State, queries: Tensor, lanes: Tensor
    ) -> State:
        """The state after a query that is answered in fp32 for some lanes, so that no wrong answer stays in it."""
        attack, problem = self.context.attack, self.context.problem
        answer = exact(self.context, answer, ask, rows, before, queries, lanes)
        return attack.tell(problem, rows, before, attack.pull_back(problem, rows, before, answer))

    def exactly(self, lanes: Tensor) -> Tensor | None:
        """Which of some lanes, a mask or indices, are answered in fp32; None if no lane is."""
        if self.context.exact is None or not bool(self.lanes.exact.any()):
            return None
        return self.lanes.exact & lanes if lanes.dtype == torch.bool else self.lanes.exact[lanes]

    def go_on_exactly(self, lanes: Tensor) -> None:
        """Let rows whose search and judge disagree go on in fp32."""
        fresh = torch.zeros(self.count, dtype=torch.bool).index_fill(0, lanes, True) & ~self.lanes.exact
        self.losses.count("disagreed", fresh)
        self.lanes.exact[lanes] = True

    def passes(self, answer: Answer) -> Tensor:
        """Forward and backward passes of one answer, (2,)."""
        gradients = 0
        if answer.grad.numel():
            gradients = answer.loss.shape[1] if answer.loss.dim() == 2 else 1
        return _passes_of(gradients, self.context.attack.eot)

    # -- the end of a row --------------------------------------------------------------------------------

    def settle(self, active: Tensor, draws: Tensor | None, points: Tensor, finished: Tensor) -> None:
        """Keep the points that fool the judge, end finished rows and free their lanes; `draws` is None if no point
        fools any draw."""
        if draws is None and not (active.numpy() & finished.numpy()).any():
            return
        assert self.rows is not None and self.state is not None
        context, verdicts, kept_draws = self.context, self.verdicts, self.lanes.kept_draws
        if draws is not None:
            verdicts.keep(active, draws, points, self.rows)
        fooled = kept_draws >= (1 if context.no_verdict_feedback else context.judge.draws)
        over = active & (finished if verdicts.minimise else fooled | finished)
        if not context.surrogate_is_judge or context.attack.judged_at_end:
            # A row without a kept point is judged at its best point.
            unsuccessful = (over & (kept_draws == 0)).nonzero()[:, 0]
            if len(unsuccessful):
                best = context.attack.best(self.state)
                for lane in unsuccessful.tolist():
                    verdicts.kept[lane] = best[lane]
        ended = over.nonzero()[:, 0].tolist()
        candidates = [lane for lane in ended if lane in verdicts.kept]
        confirmed = verdicts.confirm(candidates, self.rows) if candidates else {}
        for lane in ended:
            image, count = confirmed.get(lane, (None, 0))
            if image is None and not context.no_verdict_feedback and not bool(finished[lane]):
                # The rounded point does not fool the judge, so the row continues.
                kept_draws[lane] = 0
                verdicts.kept.pop(lane)
                continue
            self._end(lane, image, count)

    def _end(self, lane: int, image: Tensor | None, count: int) -> None:
        """Record a row's result, and free its lane and those of rows that are no longer needed."""
        # Single numbers are read and written by NumPy, which takes a tenth of the time of torch.
        results, lanes = self.results, self.lanes
        sample, rank = int(lanes.sample.numpy()[lane]), int(lanes.rank.numpy()[lane])
        if sample < 0:
            return
        draws, ranks, queries = results.draws.numpy(), results.rank.numpy(), lanes.queries.numpy()[lane]
        results.forward.numpy()[sample, rank], results.backward.numpy()[sample, rank] = queries
        results.counts.numpy()[sample, rank] += self.losses.end(lane, failed=image is None)
        self.supply.wins.note(image is not None)
        if image is not None:
            best = self._sort_key(
                sample, int(ranks[sample]), int(draws[sample]), results.examples.get(sample)
            )
            if self._sort_key(sample, rank, count, image) > best:
                draws[sample], ranks[sample] = count, rank
                results.steps.numpy()[sample] = queries[0]
                results.examples[sample] = image
        self._free(lane)
        if draws[sample] == self.context.judge.draws and not self.verdicts.minimise:
            unneeded = (lanes.sample == sample) & (lanes.rank > results.rank[sample])
            for other in unneeded.nonzero()[:, 0].tolist():
                self._free(other)

    def _sort_key(self, sample: int, rank: int, draws: int, image: Tensor | None) -> tuple[int, float, int]:
        """Sort key of a row's image, largest for the best: draws, distance (of minimum-norm attacks), rank."""
        distance = 0.0
        if self.verdicts.minimise and image is not None:
            distance = float(self.verdicts.distance(self.context.samples.x[sample][None], image[None]))
        return draws, -distance, -rank

    def _free(self, lane: int) -> None:
        self.lanes.sample.numpy()[lane] = -1
        self.verdicts.forget(lane)
        self._lanes_changed()
        self._is_filled = False


@cache
def _passes_of(gradients: int, draws: int) -> Tensor:
    """Forward and backward passes of an answer with some gradients, (2,)."""
    return torch.tensor([1, gradients]) * draws
