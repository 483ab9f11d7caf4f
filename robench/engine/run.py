"""Runs of a suite: the clean pass, then each attack on the survivors of the previous one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from robench.attacks._base import Attack, Problem
from robench.attacks._external import ForeignAttack
from robench.core.errors import UsageError
from robench.core.memory import give_back, keeping_pages
from robench.core.rng import Stream
from robench.core.torch_state import deterministic
from robench.engine import saved_loop
from robench.engine.adversarial_examples import AdversarialExamples
from robench.engine.attack_context import AttackContext, SampleResults, Samples
from robench.engine.attack_loop import Loop
from robench.engine.backing_off import backing_off
from robench.engine.batched_model import frozen, vote
from robench.engine.checkpoint import Saved
from robench.engine.clean_pass import CleanPass, clean_pass
from robench.engine.external import run_external
from robench.engine.final_verdicts import final_outcome
from robench.engine.outcome import Outcome
from robench.engine.progress import Progress
from robench.engine.run_queue import Executor, single
from robench.engine.run_state import CLEAN, ROBUST, RunState, ShareResult
from robench.engine.setup import Setup
from robench.engine.shares import Deal
from robench.engine.tolerances import same_margins
from robench.engine.work import Work
from robench.engine.workers import Processes, single_thread
from robench.threats.threat import Threat

# Seconds between two calls of `progress`.
_SHOW_EVERY = 0.1

T = TypeVar("T")


class Run(Work):
    """One suite on one defense and some images.

    Args:
        setup: the defense and its attacker.
        attacks: canonical specs and attacks, in order.
        samples: the images.
        threat: threat model.
        executor: runs the shares of the samples in `outcome`; None for one process. A resumed run keeps its number of
            shares.
        **settings: `store`, `progress` and `note` of `Work`.

    Attributes:
        selected: samples that this run attacks, bool (n,); in a share of a run, those of the share.
        proven: samples that are proven to be robust and not attacked, bool (n,).
        deal: the split of the samples; None to choose one after the clean pass.
    """

    def __init__(
        self,
        setup: Setup,
        attacks: list[tuple[str, Attack]],
        samples: Samples,
        threat: Threat,
        *,
        executor: Executor | None = None,
        **settings: Any,
    ):
        super().__init__(setup, **settings)
        self.attacks, self.samples, self.threat = attacks, samples, threat
        self.declared = setup.stochastic
        self.executor = executor or Processes()
        self.selected = torch.ones(len(samples), dtype=torch.bool)
        self.proven = torch.zeros(len(samples), dtype=torch.bool)
        self.state = RunState.empty(len(samples), setup.batch_size)
        self.deal: Deal | None = None
        self.shown = 0.0

    def outcome(self) -> Outcome:
        """Run all attacks; the batch size is reduced when memory is exhausted."""
        return single(self, self.executor, self.progress)

    # The name in release 0.1.
    play = outcome

    def attack_share(self, number: int, count: int) -> None:
        """Run one of `count` shares and save its result; a later `outcome` of the same run uses it.

        Raises:
            UsageError: if an attack or the defense does not support shares.
        """
        self._prepare_frozen(None)
        if self._indivisible:
            raise UsageError(f"{self._indivisible} cannot run in shares: remove --share")
        deal = self._deal(count)
        if self.store:
            # Other shares run elsewhere, where the clean pass may round differently.
            deal = Deal(self.store.agree(deal.share))
        shares = deal.masks()
        if number < len(shares):
            with single_thread(self.device):
                self._share(number, shares).attack()

    # -- one run in a queue (`Work`) ---------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self.samples)

    def prepare(self, shares: int, clean: CleanPass | None = None) -> None:
        """Classify the clean images and split the run into shares, or as an interrupted run was split.

        Args:
            shares: maximum number of shares.
            clean: result of a clean pass in another process; None to run one.
        """
        self._prepare_frozen(clean)
        if self._indivisible:
            if shares > 1 and self.clean.noise_depends_on_batch:
                self.note(f"running in one process: {self._indivisible} cannot be split")
            shares = 1
        elif saved := self._saved_shares(self._matches, self._check):
            if saved != shares and not (self.deal and self.deal.first):
                self.note(f"resuming with {saved} share{'s' * (saved != 1)}, as in the interrupted run")
            shares = saved
        self.deal = self._deal(shares)
        self.clean = replace(self.clean, share=self.deal.share)
        split = self.deal.masks()
        self.parts = [self._share(i, split) for i in range(len(split))] if len(split) > 1 else [self]
        self.parts = self.parts[: self.deal.first]

    def attack(self) -> ShareResult:
        """Run all remaining attacks on the samples of this share."""
        with self._frozen(), self.store.claimed() if self.store else nullcontext():
            self._attacks()
        return ShareResult(self.selected, self.state, self.state.batch_size)

    def saved_result(self) -> ShareResult | None:
        saved = self._load()
        if saved is None or len(saved.facts["costs"]) < len(self.attacks):
            return None
        self.state.resume(saved)
        return ShareResult(self.selected, self.state, self.state.batch_size)

    def save_result(self, result: ShareResult) -> None:
        if self.store is None:
            return
        self.state = result.state
        with self.store.claimed():
            *earlier, last = self.state.examples
            for index, examples in enumerate(earlier):
                examples.let_go(self.store.add(index, examples.fresh))
            self._save(None, last)

    def current_progress(self) -> Progress:
        """The progress of this share between two attacks."""
        return self.state.progress([spec for spec, _ in self.attacks], self.selected)

    def conclude(self, results: list[ShareResult]) -> Outcome:
        """The outcome from the results of all shares, after the final verdicts."""
        self.state.merge(results)
        with self._frozen():
            return self._backing_off(lambda: final_outcome(self))

    # ----------------------------------------------------------------------------------------------------

    @property
    def _indivisible(self) -> str:
        """What takes all samples at once, so that the run has one share; empty if nothing does."""
        if any(isinstance(attack, ForeignAttack) for _, attack in self.attacks):
            return "attacks of other libraries"
        return "a model whose noise depends on the batch" if self.clean.noise_depends_on_batch else ""

    def _deal(self, count: int) -> Deal:
        """The split of the samples: that of `deal` or of another process if there is one, or into `count` shares."""
        if self.deal or self.clean.share:
            return self.deal or Deal(self.clean.share)
        # Robust images cost most by far, and images with large margins are most likely to be robust.
        cost, attacked = torch.zeros(len(self.samples)), self._survivors()
        cost[attacked] = self.clean.margin[attacked].float()
        return Deal.of(self.samples.ids, [attack for _, attack in self.attacks], count, cost)

    def _share(self, number: int, shares: list[Tensor]) -> "Run":
        """The part of this run that attacks one share of the samples, with a separate store."""
        part = self._part(number, len(shares))
        part.selected, part.state = shares[number], self.state.without_attacks()
        return part

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        setup = self.setup
        with (
            keeping_pages(),
            frozen(setup.model),
            frozen(setup.searched) if setup.searched is not setup.model else nullcontext(),
            deterministic(self.device, setup.deterministic),
        ):
            yield

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

    def _prepare_frozen(self, clean: CleanPass | None) -> None:
        with self._frozen():
            self._backing_off(lambda: self._prepare(clean))
            if failure := self.parties.failure:
                self.note(f"torch.compile failed ({failure}): continuing without")

    def _attacks(self) -> None:
        size, resumed = self.setup.batch_size, self._load()
        self.saved = self._resume(resumed) if resumed else None
        for index in range(len(self.state.costs), len(self.attacks)):
            # An attack that runs out of memory starts over with a smaller batch; the next one tries the whole size.
            self._backing_off(partial(self._attack, index))
            self._resize(size)

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
        """Samples to attack: those that are classified correctly in at least one draw and not proven."""
        survives = (self.state.fooled_by != CLEAN) & (self.state.draws < self.parties.judge.draws)
        return (survives & self.selected & ~self.proven).nonzero()[:, 0].tolist()

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
        else:
            loop = Loop(self._context(spec, attack), survivors, results)
            if saved is not None:
                saved_loop.load(loop, saved)
            self._run_loop(index, loop, start_time)
        state.seconds = time.monotonic() - start_time
        draws = self.parties.judge.draws
        passes = results.spent(draws, every=attack.minimise)
        state.take(spec, results, passes, self.selected, len(survivors))
        state.stats.append(stats := results.stats(draws, every=attack.minimise))
        state.nonfinite += stats.nonfinite
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
            exact=parties.exact if group == 1 else None,
        )

    def _run_loop(self, index: int, loop: Loop, start_time: float) -> None:
        """Run a loop to its end, and save and show progress between its queries."""
        state, examples, counted = self.state, loop.results.examples, loop.context.sent

        def save() -> None:
            state.seconds = time.monotonic() - start_time
            self._save(loop, examples)

        def between(loop: Loop) -> None:
            nonlocal counted
            sent = loop.context.sent
            state.count_rows(counted, sent)
            counted = sent
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
        attack = loop.context.attack
        partial_rows = float(lanes.queries[lanes.active, 0].sum()) / (attack.num_queries * attack.eot)
        fooled = loop.results.draws == self.parties.judge.draws
        return replace(
            self.current_progress(),
            rows=done,
            of_rows=total,
            survivors=int(((state.fooled_by == ROBUST) & self.selected & ~fooled).sum()),
            share=min((done + partial_rows) / max(total, 1), 1.0),
        )

    def _save(self, loop: Loop | None, examples: AdversarialExamples) -> None:
        """Save the state and the new examples of the current attack."""
        if self.store is None:
            return
        tensors = {**self.state.tensors, "run.clean_margin": self.clean.margin, "run.selected": self.selected}
        if loop is not None:
            tensors |= {f"loop.{name}": tensor for name, tensor in saved_loop.dump(loop).items()}
        facts = {**self.state.facts, "playing": loop is not None, "batch_size": self.setup.batch_size}
        places = self.store.save(tensors, facts, len(self.state.examples) - 1, examples.fresh)
        # After saving, so that an image is saved again if an interrupt stops the save.
        examples.let_go(places)
        give_back()

    def _check(self, saved: Saved) -> None:
        self.state.check(saved, self.clean.margin)

    def _load(self) -> Saved | None:
        """The saved state; one of a share with other samples is deleted with a note, and this share starts again."""
        if self.store is None or (saved := self.store.load(self._check)) is None:
            return None
        # A whole run of an earlier version does not say that it has all samples.
        selected = saved.tensors.get("run.selected", torch.ones_like(self.selected))
        if torch.equal(selected, self.selected):
            return saved
        self.store.forget("its images were dealt differently, as on another kind of processor")
        return None

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
