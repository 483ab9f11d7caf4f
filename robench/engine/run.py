"""Runs of a suite: the clean pass, then each attack on the survivors of the previous one."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from robench.attacks._base import Attack, Problem
from robench.attacks._external import ForeignAttack
from robench.core.errors import UsageError
from robench.core.memory import give_back
from robench.core.rng import Stream
from robench.data._lazy_images import LazyImages
from robench.engine import result_warnings
from robench.engine.adversarial_examples import AdversarialExamples
from robench.engine.attack_context import AttackContext, SampleResults, Samples
from robench.engine.attack_loop import Loop
from robench.engine.backing_off import backing_off
from robench.engine.batched_model import Model, frozen, vote
from robench.engine.checkpoint import Saved, Store
from robench.engine.clean_pass import CleanPass, clean_pass
from robench.engine.external import run_external
from robench.engine.loss_monitor import LossStats
from robench.engine.outcome import Outcome
from robench.engine.outputs import adversarials, distances
from robench.engine.progress import Progress
from robench.engine.run_state import CLEAN, NOISE, ROBUST, RunState, ShardResult
from robench.engine.setup import Setup
from robench.engine.shares import saved_shares, split
from robench.engine.tolerances import same_margins
from robench.engine.workers import Executor, Processes, single_thread
from robench.threats.threat import Threat

# Seconds between two calls of `progress`.
_SHOW_EVERY = 0.1

T = TypeVar("T")


class Run:
    """One suite on one defense and some images.

    Args:
        setup: the defense and its attacker.
        attacks: canonical specs and attacks, in order.
        samples: the images.
        threat: threat model.
        executor: runs the shares of the samples; None for one process. A resumed run keeps its number of shares.
        store: where to save to and resume from, or None.
        progress: called after every query.
        note: called with each line for the user.

    Attributes:
        mine: samples that this process attacks, bool (n,).
    """

    def __init__(
        self,
        setup: Setup,
        attacks: list[tuple[str, Attack]],
        samples: Samples,
        threat: Threat,
        *,
        executor: Executor | None = None,
        store: Store | None = None,
        progress: Callable[[Progress], None] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.setup, self.attacks, self.samples, self.threat = setup, attacks, samples, threat
        self.declared = setup.stochastic
        self.executor, self.store, self.progress, self.note = executor or Processes(), store, progress, note
        self.mine = torch.ones(len(samples), dtype=torch.bool)
        self.state = RunState.empty(len(samples), setup.batch_size)
        self.shown = 0.0

    def play(self) -> Outcome:
        """Run all attacks; the batch size is reduced when memory is exhausted."""
        with self.prepared():
            shares = self._shares()
            if len(shares) > 1:
                self.state.merge(self.executor.play(self, shares))
            else:
                self.attack()
            return self._backing_off(self._outcome)

    def play_share(self, number: int, count: int) -> None:
        """Run one of `count` shares and save its result; a later `play` of the same run uses it.

        Raises:
            UsageError: if an attack does not support shares.
        """
        if any(isinstance(attack, ForeignAttack) for _, attack in self.attacks):
            raise UsageError("attacks of other libraries cannot run in shares: remove --share")
        with self.prepared(), single_thread(self.device):
            shares = self.split(count)
            if number < len(shares):
                self.share(number, shares).attack()

    @contextmanager
    def prepared(self, clean: CleanPass | None = None) -> Iterator[None]:
        """Freeze the model and classify the clean images, so that `attack` can be called inside the block.

        Args:
            clean: result of a clean pass in another process; None to run one.
        """
        with frozen(self.setup.model), frozen(self.setup.searched):
            self._backing_off(lambda: self._prepare(clean))
            yield

    def share(self, number: int, shares: list[Tensor]) -> "Run":
        """The part of this run that attacks one share of the samples, with a separate store."""
        part = copy.copy(self)
        part.mine, part.state = shares[number], self.state.unplayed()
        part.store = self.store.share(number, len(shares)) if self.store else None
        return part

    def finished(self) -> ShardResult | None:
        """The saved result of this run's share, if it is finished."""
        saved = self.store.load() if self.store else None
        if saved is None or len(saved.facts["costs"]) < len(self.attacks):
            return None
        self.state.resume(saved)
        return ShardResult(self.mine, self.state, self.state.batch_size)

    def keep(self, result: ShardResult) -> None:
        """Save the result of this run's share from another process."""
        if self.store is None:
            return
        self.state = result.state
        with self.store.claimed():
            *earlier, last = self.state.examples
            for index, examples in enumerate(earlier):
                examples.let_go(self.store.add(index, examples.fresh))
            self._save(None, last)

    def attack(self) -> ShardResult:
        """Run all remaining attacks on the share of this run."""
        with self.store.claimed() if self.store else nullcontext():
            self._attacks()
        return ShardResult(self.mine, self.state, self.state.batch_size)

    def split(self, count: int) -> list[Tensor]:
        """The samples of each of at most `count` shares, bool (n,) each."""
        return split(self.samples.ids, [attack for _, attack in self.attacks], count)

    def standing(self) -> Progress:
        """The progress of this run's share between two attacks."""
        return self.state.standing([spec for spec, _ in self.attacks], self.mine)

    @property
    def model(self) -> Model:
        return self.setup.model

    @property
    def device(self) -> torch.device:
        return self.setup.device

    def _backing_off(self, step: Callable[[], T]) -> T:
        """The result of `step`; it is repeated with a smaller batch size while memory runs out."""

        def attempt(size: int) -> T:
            self._resize(size)
            return step()

        return backing_off(attempt, self.setup.batch_size, self.device, self.note)

    def _resize(self, size: int) -> None:
        self.state.batch_size = min(self.state.batch_size, size)
        if size != self.setup.batch_size:
            self.setup = replace(self.setup, batch_size=size)
            self.parties = self.setup.parties()

    def _attacks(self) -> None:
        size, resumed = self.setup.batch_size, self.store.load() if self.store else None
        self.saved = self._resume(resumed) if resumed else None
        for index in range(len(self.state.costs), len(self.attacks)):
            # An attack that runs out of memory starts over with a smaller batch; the next one tries the whole size.
            self._backing_off(partial(self._attack, index))
            self._resize(size)

    def _shares(self) -> list[Tensor]:
        if any(isinstance(attack, ForeignAttack) for _, attack in self.attacks):
            return [self.mine]
        count = saved_shares(self.store, self._matches) if self.store else 0
        if count and count != self.executor.shares:
            self.note(f"resuming with {count} share{'s' * (count != 1)}, as in the interrupted run")
        return self.split(count or self.executor.shares)

    def _matches(self, saved: Saved) -> bool:
        """Whether the clean margins equal those of the interrupted run.

        On a CPU with the same batch shape they must be bit-identical, because a resumed run must give the same bytes as
        an uninterrupted one. A GPU may round differently each time, and a finished share may come from another machine.
        """
        expected, actual = saved.tensors["run.clean_margin"], self.clean.margin
        finished = len(saved.facts["costs"]) == len(self.attacks)
        same_shape = saved.facts["batch_size"] == self.setup.batch_size
        if self.device.type == "cpu" and same_shape and not finished:
            return torch.allclose(expected, actual, rtol=0, atol=0, equal_nan=True)
        return bool(same_margins(expected, actual).all())

    def _prepare(self, clean: CleanPass | None = None) -> None:
        samples = self.samples
        self.setup = self.setup.checked(samples.x, samples.ids)
        self.parties = self.setup.parties()
        # Raises an error for a defense without features, before any attack runs.
        x, ids = samples.x[:1].to(self.device), samples.ids[:1].to(self.device)
        for layers in sorted({attack.layers for _, attack in self.attacks} - {""}):
            self.parties.surrogate.features(x, ids, layers)
        self.clean = clean or clean_pass(self.setup, self.parties, samples)
        y, state = samples.y, self.state
        robust = state.fooled_by == ROBUST
        wrong = (self.clean.shown != y[:, None]).sum(1)
        state.draws = torch.where(robust, wrong, state.draws)
        state.fooled_by = torch.where((vote(self.clean.answers) != y) & robust, CLEAN, state.fooled_by)

    def _survivors(self) -> list[int]:
        """Samples to attack: those that are classified correctly in at least one draw."""
        survives = (self.state.fooled_by != CLEAN) & (self.state.draws < self.parties.judge.draws)
        return (survives & self.mine).nonzero()[:, 0].tolist()

    def _attack(self, index: int) -> None:
        spec, attack = self.attacks[index]
        saved, self.saved = self.saved, None
        state, survivors = self.state, self._survivors()
        if saved is None:
            state.examples[index:], state.seconds = [], 0.0
        ranks = 1 if isinstance(attack, ForeignAttack) else attack.ranks(self.clean.num_classes)
        results = SampleResults.empty(len(self.samples), ranks, state.begin(index))
        start_time = time.monotonic() - state.seconds
        if isinstance(attack, ForeignAttack):
            if survivors:
                run_external(
                    attack, self.setup, self.parties.judge, self.samples, self.threat, survivors, results
                )
            stats = LossStats()
        else:
            loop = Loop(self._context(spec, attack), survivors, results)
            if saved is not None:
                loop.load(saved)
            self._play(index, loop, start_time)
            stats, state.nonfinite = loop.losses.stats, state.nonfinite + loop.verdicts.nonfinite
        state.seconds = time.monotonic() - start_time
        passes = results.spent(self.parties.judge.draws, every=attack.minimise)
        state.take(spec, results, passes, self.mine, len(survivors))
        state.stats.append(stats)
        self._save(None, results.examples)

    def _context(self, spec: str, attack: Attack) -> AttackContext:
        group = min(attack.group, len(self.samples))
        parties = self.parties.for_attack(spec, group)
        return AttackContext(
            attack=attack,
            problem=Problem(self.threat, self.clean.num_classes, Stream.of(self.setup.seed, spec), group),
            network=parties.surrogate,
            judge=parties.judge,
            surrogate_is_judge=parties.surrogate_is_judge,
            no_verdict_feedback=self.setup.attacker.no_verdict_feedback,
            samples=self.samples,
            clean_logits=self.clean.logits,
            device=self.device,
        )

    def _play(self, index: int, loop: Loop, start_time: float) -> None:
        """Run a loop to its end, and save and show progress between its queries."""
        state, examples = self.state, loop.results.examples
        counted = loop.images

        def save() -> None:
            state.seconds = time.monotonic() - start_time
            self._save(loop, examples)

        def between(loop: Loop) -> None:
            nonlocal counted
            state.images += loop.images - counted
            counted = loop.images
            if self.progress and time.monotonic() >= self.shown + _SHOW_EVERY:
                self.shown = time.monotonic()
                self.progress(self._progress(loop))
            if self.store and self.store.due(examples.nbytes):
                save()

        try:
            loop.play(between)
        except KeyboardInterrupt:
            # During a query the state is incomplete, so the last save is kept.
            if self.store and loop.whole:
                save()
            raise

    def _progress(self, loop: Loop) -> Progress:
        lanes, state, total = loop.lanes, self.state, loop.total
        done = total - loop.remaining
        partial_rows = float(lanes.queries[lanes.active, 0].sum()) / loop.context.attack.num_queries
        fooled = loop.results.draws == self.parties.judge.draws
        return replace(
            self.standing(),
            rows=done,
            of_rows=total,
            survivors=int(((state.fooled_by == ROBUST) & self.mine & ~fooled).sum()),
            share=min((done + partial_rows) / max(total, 1), 1.0),
        )

    def _save(self, loop: Loop | None, examples: AdversarialExamples) -> None:
        """Save the state and the new examples of the current attack."""
        if self.store is None:
            return
        tensors = {**self.state.tensors, "run.clean_margin": self.clean.margin}
        if loop is not None:
            tensors |= {f"loop.{name}": tensor for name, tensor in loop.dump().items()}
        facts = {**self.state.facts, "playing": loop is not None, "batch_size": self.setup.batch_size}
        places = self.store.save(tensors, facts, len(self.state.examples) - 1, examples.fresh)
        # After saving, so that an image is saved again if an interrupt stops the save.
        examples.let_go(places)
        give_back()

    def _resume(self, saved: Saved) -> dict[str, Tensor] | None:
        """Restore a saved state.

        Returns:
            The state of the attack loop; None if the current attack starts over.
        """
        self.state.resume(saved)
        if not saved.facts["playing"] or saved.facts["batch_size"] > self.setup.batch_size:
            return None
        self._resize(saved.facts["batch_size"])
        return {name[5:]: tensor for name, tensor in saved.tensors.items() if name.startswith("loop.")}

    def _outcome(self) -> Outcome:
        samples, state, threat, size = self.samples, self.state, self.threat, self.setup.batch_size
        winners = state.fooled_by.tolist()
        rows = [i for i, index in enumerate(winners) if index >= 0]
        points, x_adv = adversarials(
            threat,
            samples,
            rows,
            lambda i: state.examples[winners[i]][i],
            device=self.device,
            batch_size=size,
        )
        answers, draws, fooled_by = self._verdicts(x_adv, torch.tensor(rows, dtype=torch.int64))
        names = {CLEAN: "clean", ROBUST: "", NOISE: "noise"} | dict(
            enumerate(spec for spec, _ in self.attacks)
        )
        randomised = self.parties.judge.draws > 1
        attacks, no_feedback = [attack for _, attack in self.attacks], self.setup.attacker.no_verdict_feedback
        return Outcome(
            x_adv=x_adv,
            points=points if threat.name else None,
            robust=fooled_by == ROBUST,
            fooled_by=[names[int(code)] for code in fooled_by],
            clean_prediction=vote(self.clean.answers),
            prediction=vote(answers),
            clean_margin=self.clean.margin,
            clean_draws=(self.clean.answers != samples.y[:, None]).sum(1),
            draws=draws,
            of_draws=self.parties.judge.draws,
            distance=distances(threat, samples.x, points, size),
            steps=state.steps,
            forward=state.forward,
            backward=state.backward,
            attacks=[replace(cost) for cost in state.costs],
            health=[
                *self.clean.warnings,
                *result_warnings.nonfinite_logits(self.clean.nonfinite + state.nonfinite),
                *result_warnings.randomised(self.setup.stochastic, self.declared, attacks, no_feedback),
                *result_warnings.of_attacks(attacks, state, self.clean.num_classes, threat.norm),
            ],
            precision=self.setup.precision,
            batch_size=self.state.batch_size,
            clean_answers=self.clean.answers if randomised else None,
            answers=answers if randomised else None,
            single_draw_accuracy=float((answers[:, 0] == samples.y).double().mean()) if randomised else None,
        )

    def _verdicts(self, x_adv: Tensor | LazyImages, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge the final candidates.

        Args:
            rows: samples with a candidate, (M,) int64; for the others the clean image is reported.

        Returns:
            The predictions (N, draws), the number of wrong ones (N,), and the attack that fooled each sample (N,). For
            a randomised defense these use the new draws: a candidate that fools none of them does not count.
        """
        state, answers = self.state, self.clean.answers.clone()
        answers[rows] = self.parties.judges.final.answers_of(x_adv, self.samples.ids[rows], self.device, rows)
        if self.parties.judge.draws == 1:
            return answers, state.draws, state.fooled_by
        wrong = (answers != self.samples.y[:, None]).sum(1)
        fooled_by = torch.where((state.fooled_by >= 0) & (wrong == 0), ROBUST, state.fooled_by)
        # Classified correctly in most draws but not in all, and no attack fooled more draws.
        return answers, wrong, torch.where((fooled_by == ROBUST) & (wrong > 0), NOISE, fooled_by)
