"""A suite from start to end: the clean pass, each attack on the survivors of the last, and what they leave."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from math import lcm
from typing import TypeVar

import torch
from torch import Tensor

from robench.attacks._base import Attack, Problem
from robench.attacks._external import Counted, ForeignAttack
from robench.core.errors import ResourceError, UsageError
from robench.core.memory import give_back
from robench.core.rng import Stream
from robench.data._lazy_images import Stack
from robench.engine import health
from robench.engine import workers as team
from robench.engine.adversarial_examples import Found
from robench.engine.attack_context import Battle, Table
from robench.engine.attack_loop import Loop
from robench.engine.batched_model import Judge, Model, Network, answer, frozen, out_of_memory, vote
from robench.engine.checkpoint import Saved, Store
from robench.engine.judges import Judges
from robench.engine.knowledge import Attacker
from robench.engine.loss_monitor import Counts
from robench.engine.outcome import AttackCost, Mark, Outcome
from robench.engine.outputs import adversarials, distances
from robench.engine.progress import Progress
from robench.engine.tolerances import margins, same_margins
from robench.engine.workers import Part
from robench.threats.threat import Threat

_CLEAN = -2
_ROBUST = -1
_NOISE = -3
# What is known of each sample.
_STATE = ("by", "draws", "steps", "forward", "backward")
# Seconds between two calls of `progress`.
_SHOW_EVERY = 0.1

T = TypeVar("T")


class Run:
    """One suite on one defense and some images.

    Args:
        model: the whole defense.
        attacks: canonical spec and attack, in order.
        x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64; ids: (N,) int64.
        attacker: what the attacker knows.
        stochastic: whether the defense says that it is randomised.
        lanes: rows a network call.
        precision: the surrogate's, "fp32" or "bf16".
        workers: processes that share the samples, on a CPU (see robench.engine.workers); a run that is resumed keeps
            the number it began with, or starts again where only one process can run it.
        store: where to save to and resume from, or None.
        progress: called after every question.

    Attributes:
        mine: bool (n,), the samples that this process attacks.
    """

    def __init__(
        self,
        model: Model,
        attacks: list[tuple[str, Attack]],
        x: Tensor | Stack,
        y: Tensor,
        ids: Tensor,
        threat: Threat,
        seed: int,
        *,
        device: torch.device,
        lanes: int,
        attacker: Attacker | None = None,
        stochastic: bool = False,
        precision: str = "fp32",
        workers: int = 1,
        store: Store | None = None,
        progress: Callable[[Progress], None] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.model, self.attacks, self.threat, self.seed = model, attacks, threat, seed
        self.x, self.y, self.ids = x, y, ids
        self.device, self.lanes, self.precision = device, lanes, precision
        self.attacker = attacker or Attacker()
        self.declared = self.stochastic = stochastic
        self.workers, self.store, self.progress, self.note = workers, store, progress, note
        n = len(x)
        self.mine = torch.ones(n, dtype=torch.bool)
        # For each sample: which attack fooled it (or _CLEAN, _ROBUST), in how many draws, after which steps.
        self.by = torch.full((n,), _ROBUST)
        self.draws = torch.zeros(n, dtype=torch.int64)
        self.steps = torch.zeros(n, dtype=torch.int64)
        self.forward = torch.zeros(n, dtype=torch.int64)
        self.backward = torch.zeros(n, dtype=torch.int64)
        # One an attack, of those that have begun.
        self.found: list[Found] = []
        self.costs: list[AttackCost] = []
        self.watched: list[Counts] = []
        self.marks: list[Mark] = []
        # NaN or infinite logits on clean images, and in what finished attacks were told.
        self.nonfinite = self.told_nonfinite = 0
        self.images = 0
        self.spent = 0.0
        self.shown = 0.0

    def play(self) -> Outcome:
        """Run to the end, backing off to fewer lanes when memory runs out."""
        surrogate = self.attacker.surrogate
        with frozen(self.model), frozen(surrogate if surrogate is not None else self.model):
            self._backing_off(self._prepare)
            shares = self._shares()
            if len(shares) > 1:
                team.play(self, shares)
            else:
                self.attack()
            return self._backing_off(self._outcome)

    def attack(self) -> None:
        """Play every attack on what is this process's share, or what is left of them."""
        self._backing_off(self._attacks)

    def _backing_off(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.lanes == 1:
                    raise ResourceError(
                        f"no memory on {self.device} for a single image: use another --device"
                    ) from error
                self.lanes //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            # What is finished stays; the attack in play starts anew, or from its last save.
            self.note(f"out of memory on {self.device}: going on with batches of {self.lanes}")

    def _attacks(self) -> None:
        if self.judge.network.lanes != self.lanes:
            self._prepare()
        resumed = self.store.load() if self.store else None
        saved = self._resume(resumed) if resumed else None
        for index in range(len(self.costs), len(self.attacks)):
            self._attack(index, saved)
            saved = None

    def _shares(self) -> list[Tensor]:
        """Which samples each process attacks, bool (n,) each. What is played together stays together."""
        if any(isinstance(attack, ForeignAttack) for _, attack in self.attacks):
            return [self.mine]
        begun = self._begun_with()
        group = lcm(*(min(attack.group, len(self.x)) for _, attack in self.attacks))
        return team.shares(self.ids, begun or self.workers, group)

    def _begun_with(self) -> int:
        """How many processes shared the run that is gone on with; 0 for a run that starts."""
        if self.store is None or not (begun := self.store.shares()):
            return 0
        if begun > 1 and not team.start_method(self.device, self.model):
            self.store.forget(f"{begun} processes shared the run, and here only one can run it")
            return 0
        stores = [self.store.share(i, begun) for i in range(begun)] if begun > 1 else [self.store]
        saved = [each for store in stores if (each := store.load())]
        if not all(self._answers_as(each) for each in saved):
            for store in stores:
                store.forget("the defense gives other logits here than when the run was interrupted")
            return 0
        if begun != self.workers:
            self.note(f"resuming with {begun} processes, as the interrupted run began")
        return begun

    def _answers_as(self, saved: Saved) -> bool:
        """Whether the clean images' margins are those of the run that was interrupted.

        On a CPU with the same batch shape they are the same bits, or the run would end in other bytes than an
        uninterrupted one; a GPU may round otherwise each time.
        """
        then, now = saved.tensors["run.clean_margin"], self.clean_margin
        if self.device.type == "cpu" and saved.facts["lanes"] == self.lanes:
            return torch.allclose(then, now, rtol=0, atol=0, equal_nan=True)
        return bool(same_margins(then, now).all())

    # -- the parts ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._networks()
        self.clean = self._clean()

    def _networks(self) -> None:
        probe = Network(self.model, self.lanes)
        if not self.stochastic:
            self.stochastic = health.looks_random(
                probe, self.x[: self.lanes].to(self.device), self.ids[: self.lanes].to(self.device)
            )
        self.judges = Judges.of(self.model, self.lanes, self.seed, self.stochastic)
        self.judge = self.judges.search
        own = self.attacker.surrogate is None and self.precision == "fp32"
        self.same = own and not self.stochastic
        if self.same:
            self.network = self.judge.network
        else:
            model = self.attacker.surrogate if self.attacker.surrogate is not None else self.model
            # Any surrogate may draw noise; seeding one that does not costs nothing that matters.
            noisy = self.stochastic or self.attacker.surrogate is not None
            stream = Stream.of(self.seed, "surrogate") if noisy else None
            self.network = Network(model, self.lanes, self.precision, stream)
        # Whoever offers no features is told now, and not when the attacks before have been played.
        for layers in sorted({attack.layers for _, attack in self.attacks} - {""}):
            self.network.features(self.x[:1].to(self.device), self.ids[:1].to(self.device), layers)

    def _clean(self) -> Tensor:
        """What each draw says of the clean images, (N, draws); sets what is wrong without an attack and the
        surrogate's clean logits."""
        logits = self._logits(self.judge.network)
        if int(self.y.max()) >= logits.shape[1]:
            raise UsageError(
                f"labels lie in {int(self.y.min())}..{int(self.y.max())}: the defense has {logits.shape[1]} classes"
            )
        if logits.shape[1] < 2:
            raise UsageError("the defense has one class: an attack needs at least two")
        self.nonfinite = health.count_nonfinite(logits)
        self.num_classes = logits.shape[1]
        self.marks = health.squashed_outputs(logits)
        if not self.stochastic:
            x, ids = self.x[: self.lanes].to(self.device), self.ids[: self.lanes].to(self.device)
            self.marks += health.batch_dependence(self.judge.network, x, ids, logits[: self.lanes])
        self.clean_logits = logits if self.same else self._logits(self.network)
        self.clean_margin = margins(logits)
        every = torch.arange(len(self.x))
        randomised = self.judge.draws > 1
        # What an attack must beat is counted on the draws that it is shown; what is reported is not.
        shown = self._answers(self.judge, self.x, every) if randomised else answer(logits)[:, None]
        answers = self._answers(self.judges.clean, self.x, every) if randomised else shown
        self.draws = torch.where(self.by == _ROBUST, (shown != self.y[:, None]).sum(1), self.draws)
        self.by = torch.where((vote(answers) != self.y) & (self.by == _ROBUST), _CLEAN, self.by)
        return answers

    def _answers(self, judge: Judge, x: Tensor | Stack, samples: Tensor) -> Tensor:
        """What a judge says of the images `x` of some samples, int64 (len(samples), draws)."""
        parts = [
            judge.answers(x[part].to(self.device), self.ids[part].to(self.device)).cpu()
            for part in samples.split(self.lanes)
            if len(part)
        ]
        return torch.cat([torch.zeros(0, judge.draws, dtype=torch.int64), *parts])

    def _logits(self, network: Network) -> Tensor:
        parts = zip(self.x.split(self.lanes), self.ids.split(self.lanes), strict=True)
        return torch.cat([network.logits(x.to(self.device), ids.to(self.device)).cpu() for x, ids in parts])

    def _survivors(self) -> list[int]:
        """A randomised defense is attacked until every draw fails; else being fooled once is enough."""
        standing = (self.by != _CLEAN) & (self.draws < self.judge.draws)
        return (standing & self.mine).nonzero()[:, 0].tolist()

    def _foreign(self, index: int, attack: ForeignAttack) -> None:
        """An attack that calls the model by itself: its images are judged, its passes counted in sum."""
        begun, samples = time.monotonic(), self._survivors()
        table = Table.empty(len(self.x), 1, self._found_by(index))
        if samples:
            surrogate = self.attacker.surrogate
            counted = Counted(Network(surrogate if surrogate is not None else self.model, self.lanes))
            x, y = self.x[samples].to(self.device), self.y[samples].to(self.device)
            images = self.threat.as_recorded(
                x, attack.perturb(counted, x, y, self.threat, self.seed, self.lanes).detach()
            )
            ids = self.ids[samples].to(self.device)
            draws = self.judge.fooled(images, y, ids) * self.threat.contains(x, images)
            for i, sample in enumerate(samples):
                # Which sample a pass was for is not known outside: they are shared out evenly.
                table.forward[sample, 0] = _share(counted.forward_passes, i, len(samples))
                table.backward[sample, 0] = _share(counted.backward_passes, i, len(samples))
                if int(draws[i]):
                    table.draws[sample], table.rank[sample] = int(draws[i]), 0
                    table.found[sample] = images[i].cpu()
        self._take(index, table, samples, time.monotonic() - begun)
        self.watched.append(Counts())
        self._save(index + 1, None, table.found)

    def _found_by(self, index: int) -> Found:
        """Where the images go that an attack finds, or has found before it was interrupted."""
        if index == len(self.found):
            self.found.append(Found())
        return self.found[index]

    def _attack(self, index: int, saved: dict[str, Tensor] | None) -> None:
        spec, attack = self.attacks[index]
        if isinstance(attack, ForeignAttack):
            self._foreign(index, attack)
            return
        stream = Stream.of(self.seed, spec)
        if not self.same and self.network.stream is not None:
            self.network.stream = Stream.of(self.seed, "surrogate", spec)
        group = min(attack.group, len(self.x))
        network = self._of_whole_groups(group)
        problem = Problem(self.threat, self.num_classes, stream, group)
        battle = Battle(
            attack=attack,
            problem=problem,
            network=network,
            judge=self.judge,
            same=self.same and network is self.network,
            blind=self.attacker.blind,
            x=self.x,
            y=self.y,
            ids=self.ids,
            clean_logits=self.clean_logits,
            device=self.device,
        )
        samples = self._survivors()
        if saved is None:
            self.found[index:] = []
        table = Table.empty(len(self.x), attack.ranks(self.num_classes), self._found_by(index))
        loop = Loop(battle, samples, table)
        if saved is not None:
            loop.load(saved)
        begun = time.monotonic() - (self.spent if saved is not None else 0.0)
        seen = loop.images

        def between(loop: Loop) -> None:
            nonlocal seen
            self.images += loop.images - seen
            seen = loop.images
            if self.progress and time.monotonic() >= self.shown + _SHOW_EVERY:
                self.shown = time.monotonic()
                self.progress(self._progress(index, loop))
            if self.store and self.store.due(table.found.held):
                keep()

        def keep() -> None:
            self.spent = time.monotonic() - begun
            self._save(index, loop, table.found)

        try:
            loop.play(between)
        except KeyboardInterrupt:
            # In the middle of a question there is nothing whole to save: the last save stands.
            if self.store and loop.whole:
                keep()
            raise
        self._take(index, table, samples, time.monotonic() - begun)
        self.watched.append(loop.watch.counts)
        self.told_nonfinite += loop.nonfinite
        self.spent = 0.0
        self._save(index + 1, None, table.found)

    def _of_whole_groups(self, group: int) -> Network:
        """The surrogate on as many lanes as make whole groups, one group at the least."""
        lanes = max(self.lanes // group, 1) * group
        if lanes == self.lanes:
            return self.network
        return Network(self.network.model, lanes, self.network.precision, self.network.stream)

    def _take(self, index: int, table: Table, samples: list[int], seconds: float) -> None:
        """Add an attack's results to the run's."""
        forward, backward = table.spent(self.judge.draws, every=self.attacks[index][1].minimise)
        self.forward += forward
        self.backward += backward
        won = table.draws > self.draws
        self.by = torch.where(won, index, self.by)
        self.steps = torch.where(won, table.steps, self.steps)
        self.draws = torch.where(won, table.draws, self.draws)
        survivors = int(((self.by == _ROBUST) & self.mine).sum())
        self.costs.append(
            AttackCost(
                spec=self.attacks[index][0],
                attacked=len(samples),
                survivors=survivors,
                forward=int(forward.sum()),
                backward=int(backward.sum()),
                seconds=seconds,
            )
        )

    def _progress(self, index: int, loop: Loop) -> Progress:
        held = loop.table.draws == self.judge.draws
        playing = float(loop.asked[loop.sample >= 0, 0].sum()) / self.attacks[index][1].num_queries
        total = loop.total
        done = total - loop.remaining
        return Progress(
            attack=self.attacks[index][0],
            index=index,
            attacks=len(self.attacks),
            rows=done,
            of_rows=total,
            survivors=int(((self.by == _ROBUST) & self.mine & ~held).sum()),
            samples=int(self.mine.sum()),
            passes=self.images,
            share=min((done + playing) / max(total, 1), 1.0),
        )

    # -- saving and resuming -----------------------------------------------------------------------------

    def _save(self, index: int, loop: Loop | None, found: Found) -> None:
        """Save the state, `index` attacks being over, and what the last one that has begun found."""
        if self.store is None:
            return
        tensors = {f"run.{name}": getattr(self, name) for name in (*_STATE, "clean_margin")}
        if loop is not None:
            tensors |= {f"loop.{name}": tensor for name, tensor in loop.dump().items()}
        facts = {
            "attack": index,
            "playing": loop is not None,
            "lanes": self.lanes,
            "costs": [asdict(cost) for cost in self.costs],
            "watched": [asdict(counts) for counts in self.watched],
            "seconds": self.spent,
            "nonfinite": self.told_nonfinite,
        }
        places = self.store.save(tensors, json.loads(json.dumps(facts)), len(self.found) - 1, found.fresh)
        # Only now: an interrupt in the middle of a save must not leave an image out of the next one.
        found.let_go(places)
        give_back()

    def _resume(self, saved: Saved) -> dict[str, Tensor] | None:
        tensors, facts = saved.tensors, saved.facts
        for name in _STATE:
            setattr(self, name, tensors[f"run.{name}"])
        self.costs = [AttackCost(**cost) for cost in facts["costs"]]
        self.watched = [Counts(**counts) for counts in facts["watched"]]
        self.told_nonfinite = facts["nonfinite"]
        self.spent = facts["seconds"]
        begun = facts["attack"] + facts["playing"]
        self.found = [Found(saved.found.get(index)) for index in range(begun)]
        if facts["playing"]:
            # An attempt that was given up may have left others behind.
            known = tensors["loop.table.draws"].nonzero()[:, 0].tolist()
            places = saved.found.get(facts["attack"], {})
            self.found[-1] = Found({sample: places[sample] for sample in known if sample in places})
        if not facts["playing"] or facts["lanes"] != self.lanes:
            return None
        return {k.removeprefix("loop."): v for k, v in tensors.items() if k.startswith("loop.")}

    # -- sharing -----------------------------------------------------------------------------------------

    def part(self) -> Part:
        """What this process knows of its share."""
        state = {name: getattr(self, name) for name in _STATE}
        return Part(
            self.mine,
            state,
            self.found,
            self.costs,
            self.watched,
            self.told_nonfinite,
            self.images,
            self.lanes,
        )

    def absorb(self, parts: list[Part]) -> None:
        """Take what the processes found, each of its share."""
        for part in parts:
            for name, values in part.state.items():
                getattr(self, name)[part.mine] = values[part.mine]
        self.found = [Found.together(each) for each in zip(*(part.found for part in parts), strict=True)]
        self.costs = [AttackCost.together(each) for each in zip(*(part.costs for part in parts), strict=True)]
        self.watched = [Counts.together(each) for each in zip(*(part.watched for part in parts), strict=True)]
        self.told_nonfinite = sum(part.nonfinite for part in parts)
        self.images = sum(part.images for part in parts)
        self.lanes = min(part.lanes for part in parts)

    # -- the end -----------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        won = self.by.tolist()
        rows = [i for i, index in enumerate(won) if index >= 0]
        points, x_adv = adversarials(
            self.threat,
            self.x,
            self.ids,
            rows,
            lambda i: self.found[won[i]][i],
            device=self.device,
            lanes=self.lanes,
        )
        answers, draws, by = self._verdicts(x_adv, torch.tensor(rows, dtype=torch.int64))
        names = {_CLEAN: "clean", _ROBUST: "", _NOISE: "noise"} | {
            i: spec for i, (spec, _) in enumerate(self.attacks)
        }
        attacks = [attack for _, attack in self.attacks]
        marks = [
            *self.marks,
            *health.nonfinite_logits(self.nonfinite + self.told_nonfinite),
            *health.randomised(self.stochastic, self.declared, attacks, self.attacker.blind),
            *health.few_classes(self.num_classes, attacks),
            *health.nonfinite_gradients(self.watched),
            *health.zero_gradients(self.watched),
            *health.losses(self.watched),
            *health.gradient_free_wins(attacks, self.costs, self.threat.norm, len(self.x)),
        ]
        randomised = self.judge.draws > 1
        return Outcome(
            x_adv=x_adv,
            points=points if self.threat.name else None,
            robust=by == _ROBUST,
            fooled_by=[names[int(code)] for code in by],
            clean_prediction=vote(self.clean),
            prediction=vote(answers),
            clean_margin=self.clean_margin,
            clean_draws=(self.clean != self.y[:, None]).sum(1),
            draws=draws,
            of_draws=self.judge.draws,
            distance=distances(self.threat, self.x, points, self.lanes),
            steps=self.steps,
            forward=self.forward,
            backward=self.backward,
            attacks=[replace(cost) for cost in self.costs],
            health=marks,
            precision=self.precision,
            batch_size=self.lanes,
            clean_answers=self.clean if randomised else None,
            answers=answers if randomised else None,
            single_draw_accuracy=float((answers[:, 0] == self.y).double().mean()) if randomised else None,
        )

    def _verdicts(self, x_adv: Tensor | Stack, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the final judge says of the images that the attacks leave.

        Args:
            rows: (M,) int64, the samples with a candidate; of the others the clean image is reported.

        Returns:
            answers (N, draws), how many of them are wrong (N,), and what fooled each sample (N,): of a randomised
            defense what the fresh draws say, so that a candidate that fails none of them counts for nothing.
        """
        answers = self.clean.clone()
        answers[rows] = self._answers(self.judges.final, x_adv, rows)
        if self.judge.draws == 1:
            return answers, self.draws, self.by
        wrong = (answers != self.y[:, None]).sum(1)
        by = torch.where((self.by >= 0) & (wrong == 0), _ROBUST, self.by)
        # Right in most draws without an attack, wrong in some, and no attack made it worse.
        return answers, wrong, torch.where((self.by == _ROBUST) & (wrong > 0), _NOISE, by)


def _share(total: int, i: int, n: int) -> int:
    """The i-th of n whole shares of `total`, as even as they go."""
    return total * (i + 1) // n - total * i // n
