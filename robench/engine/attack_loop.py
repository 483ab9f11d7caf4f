"""The loop that plays one attack: fills lanes, asks the network, lets the judge decide, drops and refills.

A sample's rows have ranks (targets x restarts). They wait in the order of their rank, so that the second
target of an image starts when every image has had its first, or when lanes would stand idle. The row of the
lowest rank that fools the judge wins, whichever came first on the clock: rows of a higher rank are dropped,
rows of a lower one play on. So a sample's result depends on nothing but the sample, and costs no more than if
its rows were played one after another.

Lanes are filled by blocks, each with a group of rows. A block is one lane, but for an attack that couples rows:
there a group starts together and keeps its lanes until none of its rows counts any more, and a row that is over
plays on as company.

An attack that minimises (`Attack.minimise`) is not over when it fools: every row plays to its end, and the nearest
image that fools is kept, of all ranks. One that transfers (`Attack.transfers`) plays to its end where the attacker
may not ask the judge, for the surrogate's verdict is not what it works for; its best point is judged then. One whose
last iterate alone counts (`Attack.judged_at_end`) plays to its end against every defense.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from robench.attacks._base import Answer, Rows, State, gather, tensors
from robench.engine.attack_context import Battle, Table
from robench.engine.batched_model import pad, wrong
from robench.engine.groups import Group, fixed_groups
from robench.engine.loss_monitor import Watch

# Rows are started in groups of one shape, so that their start does not hang on how many start together.
_GROUP = 8


class Loop:
    """One attack on some samples.

    Args:
        battle: who plays.
        samples: indices of the samples attacked, in order.
        table: results so far; it is filled in place.
    """

    def __init__(self, battle: Battle, samples: list[int], table: Table):
        self.battle = battle
        self.table = table
        self.lanes = battle.network.lanes
        self.block = battle.problem.group
        self.attacked = set(samples)
        groups = [
            g
            for g in fixed_groups(battle.ids, self.block)
            if not self.attacked.isdisjoint(g.members[: g.own])
        ]
        ranks = battle.attack.ranks(battle.problem.num_classes)
        self.queue = [(rank, group) for rank in range(ranks) for group in groups]
        self.next = 0
        self.rows: Rows | None = None
        self.state: State | None = None
        # What each lane plays, on the CPU: sample -1 is an idle lane, whose row (of the sample held) counts no more.
        self.sample = torch.full((self.lanes,), -1)
        self.held = torch.zeros(self.lanes, dtype=torch.int64)
        self.rank = torch.zeros(self.lanes, dtype=torch.int64)
        self.asked = torch.zeros((self.lanes, 2), dtype=torch.int64)
        self.kept_draws = torch.zeros(self.lanes, dtype=torch.int64)
        self.kept: dict[int, Tensor] = {}
        self.images = 0
        self.nonfinite = 0
        self.minimises = battle.attack.minimise
        self.unheard = battle.attack.judged_at_end or (
            battle.blind and (self.minimises or battle.attack.transfers)
        )
        # How far the kept image of each lane is, where that matters.
        self.kept_distance = torch.full((self.lanes,), torch.inf, dtype=torch.float64)
        self.watch = Watch(self.lanes, battle.attack.ascends, battle.attack.steps)
        self.playing = torch.zeros(self.lanes, dtype=torch.bool)
        # False while a question is under way: what is saved then would lack its verdict.
        self.whole = True
        self._plan: tuple[Tensor, Tensor, Rows] | None = None

    def play(self, between: Callable[["Loop"], None]) -> None:
        """Play to the end, calling `between` after every question (to save, to show progress)."""
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
        """Rows there are at the most."""
        return sum(group.own for _, group in self.queue)

    @property
    def remaining(self) -> int:
        """Rows not finished yet."""
        return sum(group.own for _, group in self.queue[self.next :]) + int((self.sample >= 0).sum())

    # -- filling the lanes -------------------------------------------------------------------------------

    def _dead(self, rank: int, sample: int) -> bool:
        won = int(self.table.draws[sample]) == self.battle.judge.draws and int(self.table.rank[sample]) < rank
        return won and not self.minimises

    def _counting(self, rank: int, group: Group) -> list[int]:
        """The group's samples, -1 in place of those whose row of that rank does not count."""
        own = self.attacked.intersection(group.members[: group.own])
        return [sample if sample in own and not self._dead(rank, sample) else -1 for sample in group.members]

    def _refill(self) -> bool:
        """Put waiting groups into idle blocks of lanes; False when nothing is left to play."""
        idle = (self.sample.view(-1, self.block) < 0).all(1).nonzero()[:, 0]
        blocks = self.lanes // self.block
        busy = blocks - len(idle)
        # Starting rows has a price of its own, so a few lanes are left to gather first.
        if len(idle) and self.next < len(self.queue) and (len(idle) >= blocks // 8 or not busy):
            lanes: list[Tensor] = []
            for block in idle.tolist():
                while self.next < len(self.queue) and max(self._counting(*self.queue[self.next])) < 0:
                    self.next += 1
                if self.next == len(self.queue):
                    break
                rank, group = self.queue[self.next]
                self.next += 1
                lane = torch.arange(block * self.block, (block + 1) * self.block)
                self.rank[lane], self.held[lane] = rank, torch.tensor(group.members)
                self.sample[lane] = torch.tensor(self._counting(rank, group))
                lanes.append(lane)
            if lanes:
                self._start(torch.cat(lanes))
                busy += len(lanes)
        return busy > 0

    def _start(self, lanes: Tensor) -> None:
        self.asked[lanes] = 0
        self.playing = torch.zeros(self.lanes, dtype=torch.bool)
        self.kept_draws[lanes] = 0
        self.kept_distance[lanes] = torch.inf
        self._plan = None
        started = self._rows(lanes)
        for start in range(0, len(lanes), _GROUP):
            group = lanes[start : start + _GROUP]
            picked = pad(torch.arange(start, start + len(group)), _GROUP)
            rows = gather(started, picked.to(self.battle.device))
            state = self.battle.attack.init(self.battle.problem, rows)
            if self.state is None or self.rows is None:
                fill = torch.zeros(self.lanes, dtype=torch.int64, device=self.battle.device)
                self.rows, self.state = gather(rows, fill), gather(state, fill)
            where_to = group.to(self.battle.device)
            first = torch.arange(len(group), device=self.battle.device)
            self.rows = _put(self.rows, where_to, rows, first)
            self.state = _put(self.state, where_to, state, first)

    def _rows(self, lanes: Tensor) -> Rows:
        battle = self.battle
        rows = _rows_of(battle, self.held[lanes], self.rank[lanes])
        wanted = battle.attack.references(self._run, rows)
        rows = replace(rows, **{name: tensor.to(battle.device) for name, tensor in tensors(rows).items()})
        if wanted is None:
            return rows
        layers = battle.attack.layers or "last"
        x, ids = battle.x[wanted].to(battle.device), battle.ids[wanted].to(battle.device)
        return replace(rows, reference=battle.network.features(x, ids, layers))

    @cached_property
    def _run(self) -> Rows:
        """Every image of the run, for attacks that choose among them."""
        battle, none = self.battle, torch.zeros_like(self.battle.ids)
        # Images on the disk stay there: they are indexed as a tensor is.
        x = cast(Tensor, battle.x)
        return Rows(x, battle.y, battle.clean_logits, battle.ids, none, torch.ones_like(none).bool())

    # -- one question ------------------------------------------------------------------------------------

    def _turn(self) -> None:
        assert self.rows is not None and self.state is not None
        attack, problem = self.battle.attack, self.battle.problem
        active = self.sample >= 0
        if attack.horizon > 1 and self.next == len(self.queue) and not bool(active.all()):
            self._turn_ahead(active)
            return
        if not torch.equal(active, self.playing):
            self.playing = active
            self.rows = replace(self.rows, active=active.to(self.battle.device))
        ask = attack.ask(problem, self.rows, self.state)
        asked = ask.x
        points = asked if ask.point is None else ask.point
        if self.minimises:
            # The nearest image lies on the boundary: asked as it will be kept, rounding cannot cost its verdict.
            points = problem.threat.as_recorded(self.rows.x, points)
            asked = problem.threat.image(self.rows.x, points, self.rows.sample)
        answer = self._ask(asked, ask.objective, self.rows, self.asked[:, 0])
        answer = attack.pull_back(problem, self.rows, self.state, answer)
        self.state = attack.tell(problem, self.rows, self.state, answer)
        told = torch.ones_like(active) if ask.waits is None else ~ask.waits.cpu()
        asking = active & told
        passes = torch.tensor([1, _gradients(answer)]) * attack.eot
        # Rows that are over count on: company draws a randomised surrogate's noise as if it still counted.
        self.asked += told[:, None] * passes
        first = self.asked[:, 1] == _gradients(answer) * attack.eot
        self.watch.note(asking, first, answer)
        draws = self._verdict(asked, points, answer.logits, self.rows, asking)
        self._settle(active, draws, points, attack.finished(self.state).cpu())

    def _ask(self, x: Tensor, objective: Any, rows: Rows, asked: Tensor) -> Answer:
        eot = self.battle.attack.eot
        answer = self.battle.network.answer(x, objective, rows, eot, asked.to(self.battle.device))
        self.images += self.lanes * eot
        return answer

    def _turn_ahead(self, active: Tensor) -> None:
        """A question for few rows of an attack whose next questions are known unless an answer is accepted.

        Idle lanes ask a row's later questions. The first accepted one makes those behind it void: they are
        asked again, so the row plays exactly as if it had been alone in its lane.
        """
        assert self.rows is not None and self.state is not None
        attack: Any = self.battle.attack
        battle, problem = self.battle, self.battle.problem
        homes = active.nonzero()[:, 0]
        if self._plan is None:
            lane = torch.arange(self.lanes)
            home = homes[lane % len(homes)]
            offset = (lane // len(homes)).clamp_max(attack.horizon - 1)
            rows = gather(self.rows, home.to(battle.device))
            self._plan = home.to(battle.device), offset.to(battle.device), rows
        home, offset, rows = self._plan
        begun = gather(self.state, home)
        before = attack.advance(problem, rows, begun, offset)
        # Of lanes that would look past the horizon only the first at it counts.
        lane, count = torch.arange(self.lanes), len(homes)
        valid = ~attack.finished(before).cpu() & (lane < count * attack.horizon)
        ask = attack.ask(problem, rows, before)
        asked = self.asked[home.cpu(), 0] + offset.cpu() * attack.eot
        answer = self._ask(ask.x, ask.objective, rows, asked)
        after = attack.tell(problem, rows, before, answer)
        draws = self._verdict(ask.x, ask.x, answer.logits, rows, valid)
        event = valid & (attack.moved(after).cpu() | (draws > 0))

        # For each row: its first lane with an event, else its last valid lane.
        first = _first(event, lane, count, self.lanes)
        last = _last(valid, lane, count)
        chosen = torch.where(first < self.lanes, first, last)
        self.state = _put(self.state, homes.to(battle.device), after, chosen.to(battle.device), begun)
        passes = torch.tensor([1, _gradients(answer)]) * attack.eot
        self.asked[homes] += (chosen // count + 1)[:, None] * passes
        at_home = torch.zeros(self.lanes, dtype=torch.int64)
        at_home[homes] = draws[chosen]
        points = self.rows.x
        if bool(at_home.any()):
            home, chosen = homes.to(battle.device), chosen.to(battle.device)
            points = points.index_copy(0, home, ask.x.index_select(0, chosen))
        self._settle(active, at_home, points, attack.finished(self.state).cpu())

    # -- the verdict -------------------------------------------------------------------------------------

    def _verdict(self, x: Tensor, points: Tensor, logits: Tensor, rows: Rows, active: Tensor) -> Tensor:
        """In how many draws the judge is fooled by each lane's image, int64 (lanes,) on the CPU; 0 where its point
        is not allowed.

        Blind attackers see their surrogate instead, as if it were a judge of one draw. Of an attack that minimises
        only points better than the kept one count.
        """
        battle = self.battle
        self.nonfinite += int((~torch.isfinite(logits)).any(1).cpu()[active].sum())
        suspect = (wrong(logits, rows.y).cpu() & active).nonzero()[:, 0]
        draws = torch.zeros(self.lanes, dtype=torch.int64)
        if self.unheard or not len(suspect):
            return draws
        lanes = suspect.to(battle.device)
        origins, points = rows.x.index_select(0, lanes), points.index_select(0, lanes)
        threat = battle.problem.threat
        inside = threat.contains(origins, points, threat.slack).cpu()
        nearer = inside
        if self.minimises:
            nearer = self._distance(origins, points) < self.kept_distance[suspect]
            inside &= nearer | (self.kept_draws[suspect] < battle.judge.draws)
        suspect, lanes, nearer = suspect[inside], lanes[inside.to(battle.device)], nearer[inside]
        if not len(suspect):
            return draws
        if battle.same or battle.blind:
            found = torch.ones_like(suspect)
        else:
            found = battle.judge.fooled(x[lanes], rows.y[lanes], rows.sample[lanes]).cpu()
        kept = self.kept_draws[suspect]
        better = (found > kept) | ((found == kept) & nearer) if self.minimises else found > 0
        draws[suspect] = found * better
        return draws

    def _distance(self, x: Tensor, points: Tensor) -> Tensor:
        """How far points are from their images, float64 (N,) on the CPU."""
        return self.battle.problem.threat.distance(x, points).cpu()

    def _settle(self, active: Tensor, draws: Tensor, points: Tensor, finished: Tensor) -> None:
        """Keep what fooled, end the rows that are over, and free their lanes."""
        if not bool(draws.any()) and not bool((active & finished).any()):
            return
        assert self.rows is not None and self.state is not None
        battle, full = self.battle, self.battle.judge.draws
        better = active & (draws > 0 if self.minimises else draws > self.kept_draws)
        for lane in better.nonzero()[:, 0].tolist():
            self.kept[lane] = points[lane].clone()
            self.kept_draws[lane] = draws[lane]
            if self.minimises:
                self.kept_distance[lane] = self._distance(
                    self.rows.x[lane : lane + 1], points[lane : lane + 1]
                )
        reached = self.kept_draws >= (1 if battle.blind else full)
        over = active & (finished if self.minimises else reached | finished)
        if not battle.same or battle.attack.judged_at_end:
            # What the search held for its best is judged too, where it found nothing that fools.
            hopeless = (over & (self.kept_draws == 0)).nonzero()[:, 0]
            if len(hopeless):
                best = battle.attack.best(self.state)
                for lane in hopeless.tolist():
                    self.kept[lane] = best[lane]
        candidates = [lane for lane in over.nonzero()[:, 0].tolist() if lane in self.kept]
        confirmed = self._confirm(candidates) if candidates else {}
        for lane in over.nonzero()[:, 0].tolist():
            image, count = confirmed.get(lane, (None, 0))
            if image is None and not battle.blind and not bool(finished[lane]):
                # The verdict hung on the last bit of a pixel: the row has not fooled anyone yet.
                self.kept_draws[lane] = 0
                self.kept.pop(lane)
                continue
            self._end(lane, image, count)

    def _confirm(self, lanes: list[int]) -> dict[int, tuple[Tensor, int]]:
        """Ask the judge once more at the points as a record holds them: origin plus perturbation, in whole
        grains where that fools as well.

        Returns:
            The point and the number of draws its image fools, for the lanes where it does.
        """
        threat = self.battle.problem.threat
        if self.minimises:
            # A grain more would be further away.
            return self._judged(lanes, threat.as_recorded)
        found = self._judged(lanes, threat.rounded)
        # What rounding would cost a draw is kept to the last bit.
        exact = [lane for lane in lanes if found.get(lane, (None, 0))[1] < max(1, int(self.kept_draws[lane]))]
        return found | (self._judged(exact, threat.as_recorded) if exact else {})

    def _judged(
        self, lanes: list[int], kept_as: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[int, tuple[Tensor, int]]:
        """What the judge says of the lanes' kept points, as `kept_as` writes them down."""
        assert self.rows is not None
        battle, threat = self.battle, self.battle.problem.threat
        index = torch.tensor(lanes, device=battle.device)
        x, y, sample = self.rows.x[index], self.rows.y[index], self.rows.sample[index]
        points = kept_as(x, torch.stack([self.kept[lane] for lane in lanes]))
        counts = battle.judge.fooled(threat.image(x, points, sample), y, sample).cpu()
        counts = counts * threat.contains(x, points).cpu()
        return {lane: (points[i].cpu(), int(counts[i])) for i, lane in enumerate(lanes) if int(counts[i]) > 0}

    def _end(self, lane: int, image: Tensor | None, count: int) -> None:
        """Write a row's result into the table, free its lane and those of the rows that it makes needless."""
        table, full = self.table, self.battle.judge.draws
        sample, rank = int(self.sample[lane]), int(self.rank[lane])
        if sample < 0:
            return
        table.forward[sample, rank], table.backward[sample, rank] = self.asked[lane].tolist()
        if image is None:
            self.watch.end(lane)
        standing = self._standing(
            sample, int(table.rank[sample]), int(table.draws[sample]), table.found.get(sample)
        )
        if image is not None and self._standing(sample, rank, count, image) > standing:
            table.draws[sample], table.rank[sample] = count, rank
            table.steps[sample] = self.asked[lane, 0]
            table.found[sample] = image
        self._free(lane)
        if int(table.draws[sample]) == full and not self.minimises:
            needless = (self.sample == sample) & (self.rank > table.rank[sample])
            for other in needless.nonzero()[:, 0].tolist():
                self._free(other)

    def _standing(self, sample: int, rank: int, draws: int, image: Tensor | None) -> tuple[int, float, int]:
        """What makes one row's image better than another's: draws, nearness where it counts, a low rank."""
        far = 0.0
        if self.minimises and image is not None:
            far = float(self._distance(self.battle.x[sample][None], image[None]))
        return draws, -far, -rank

    def _free(self, lane: int) -> None:
        self.sample[lane] = -1
        self.kept_draws[lane] = 0
        self.kept_distance[lane] = torch.inf
        self.kept.pop(lane, None)
        self._plan = None

    # -- saving and resuming -----------------------------------------------------------------------------

    def dump(self) -> dict[str, Tensor]:
        """Everything that `load` needs to go on as if nothing had happened."""
        saved = {
            "sample": self.sample,
            "held": self.held,
            "rank": self.rank,
            "asked": self.asked,
            "kept_draws": self.kept_draws,
            "kept_distance": self.kept_distance,
            "counters": torch.tensor([self.next, self.images, self.nonfinite]),
            **self.watch.dump(),
        }
        for name in ("draws", "rank", "steps", "forward", "backward"):
            saved[f"table.{name}"] = getattr(self.table, name)
        for lane, image in self.kept.items():
            saved[f"kept.{lane}"] = image
        if self.state is not None:
            for item in fields(self.state):
                saved[f"state.{item.name}"] = getattr(self.state, item.name)
        return saved

    def load(self, saved: dict[str, Tensor]) -> None:
        """Take up what `dump` saved; `table.found` is restored by who saved it."""
        self.sample, self.held, self.rank = saved["sample"], saved["held"], saved["rank"]
        self.asked, self.kept_draws = saved["asked"], saved["kept_draws"]
        self.kept_distance = saved["kept_distance"]
        self.next, self.images, self.nonfinite = saved["counters"].tolist()
        self.watch.load(saved)
        for name in ("draws", "rank", "steps", "forward", "backward"):
            setattr(self.table, name, saved[f"table.{name}"])
        self.kept = {
            int(name.removeprefix("kept.")): tensor.to(self.battle.device)
            for name, tensor in saved.items()
            if name.startswith("kept.")
        }
        if not any(name.startswith("state.") for name in saved):
            return
        self.rows = self._rows(torch.arange(self.lanes))
        template = self.battle.attack.init(self.battle.problem, gather(self.rows, torch.zeros(_GROUP).long()))
        state = {f.name: saved[f"state.{f.name}"].to(self.battle.device) for f in fields(template)}
        self.state = replace(template, **state)


def _rows_of(battle: Battle, samples: Tensor, ranks: Tensor) -> Rows:
    """Rows of samples (S,) of the run, where the run's images are."""
    return Rows(
        battle.x[samples],
        battle.y[samples],
        battle.clean_logits[samples],
        battle.ids[samples],
        ranks,
        torch.ones_like(samples, dtype=torch.bool),
    )


def _put(value: Any, lanes: Tensor, new: Any, rows: Tensor, begun: Any = None) -> Any:
    """A state (or Rows) with the `rows` of `new` written into `lanes`; a field that is still that of `begun`, which
    was gathered from there, stays."""
    old = tensors(begun) if begun is not None else {}
    written = {
        name: getattr(value, name).index_copy(0, lanes, tensor.index_select(0, rows))
        for name, tensor in tensors(new).items()
        if tensor is not old.get(name)
    }
    return replace(value, **written)


def _gradients(answer: Answer) -> int:
    """How many backward passes an answer took."""
    if not answer.grad.numel():
        return 0
    return answer.loss.shape[1] if answer.loss.dim() == 2 else 1


def _first(event: Tensor, lane: Tensor, count: int, never: int) -> Tensor:
    """For each of `count` rows whose lanes are row, row + count, ...: the first lane with an event."""
    marked = torch.where(event, lane, never)
    return torch.full((count,), never).scatter_reduce(0, lane % count, marked, "amin")


def _last(valid: Tensor, lane: Tensor, count: int) -> Tensor:
    """For each of `count` rows: its last valid lane (lanes of a row become invalid from the end)."""
    marked = torch.where(valid, lane, -1)
    return torch.full((count,), -1).scatter_reduce(0, lane % count, marked, "amax")
