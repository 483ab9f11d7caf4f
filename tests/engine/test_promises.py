"""The engine's promises: the seed decides, whatever the order, the company, the batch size or an interruption."""

import dataclasses
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from robench.attacks.build import build_attacks
from robench.catalog import find_suite
from robench.engine.attack_loop import Loop
from robench.engine.checkpoint import Saved
from robench.engine.loss_monitor import COLUMNS
from robench.threats.threat import Threat
from tests.engine.runs import run_of
from tests.models import images, small_net

SPECS = 'apgd(steps=12)+apgd(steps=12, loss="dlr", targets=4)+pgd(steps=6, restarts=2)'


def play(ids=None, lanes=8, specs=SPECS, seed=0, n=24, threat="Linf:0.006", model=None, **options):
    model, x = model or small_net(), images(n)
    # Labels are the model's own but for two images, so that some are wrong from the start.
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10
    ids = torch.arange(n) if ids is None else ids
    chosen = Threat.parse(threat)
    run = run_of(
        model,
        build_attacks(find_suite(specs).specs(chosen.norm), chosen),
        x[ids],
        y[ids],
        ids,
        chosen,
        seed,
        batch_size=lanes,
        **options,
    )
    return run.outcome()


def assert_same(one, other, rows=slice(None)):
    for field in (
        "x_adv",
        "robust",
        "clean_prediction",
        "prediction",
        "distance",
        "steps",
        "forward",
        "backward",
    ):
        assert torch.equal(getattr(one, field)[rows], getattr(other, field)), field


@pytest.fixture(scope="module")
def whole():
    outcome = play()
    # The test is worth something only where some survive, some fall late and some fall at once.
    assert 0.1 < outcome.robust_accuracy < 0.9 and len(set(outcome.fooled_by)) >= 3
    return outcome


def test_the_same_run_twice_is_the_same(whole):
    assert_same(whole, play())


def test_another_seed_is_another_run(whole):
    assert not torch.equal(whole.x_adv, play(seed=1).x_adv)


def test_an_image_alone_gets_what_it_gets_in_company(whole):
    for i in (1, 10, 20):
        assert_same(whole, play(torch.tensor([i])), rows=slice(i, i + 1))


@pytest.mark.parametrize("threat", ["Linf:0.006", "L2:0.1", "L1:1"])
def test_so_it_does_for_attacks_that_work_on_some_lanes_alone(threat):
    specs = "fab(steps=5, targets=3)+square(queries=40)"
    whole = play(specs=specs, threat=threat, n=12)
    assert whole.passes["backward"] > 0
    for i in (2, 11):
        assert_same(whole, play(torch.tensor([i]), specs=specs, threat=threat), rows=slice(i, i + 1))


@pytest.mark.parametrize(
    ("specs", "threat"),
    [
        ("fmn(steps=10, targets=2, minimise=True)+mifgsm(diversity=0.5, translation=1)", "Linf:0.006"),
        ("ddn(steps=10, minimise=True)+fab(steps=6, targets=2, minimise=True)", "L2:0.1"),
        ("hopskipjump(queries=30, samples=4, minimise=True)+spsa(steps=1, samples=4)", "L2:0.1"),
        ("nes(steps=1, samples=6)+hopskipjump(queries=25, samples=4)", "Linf:0.006"),
    ],
)
def test_so_it_does_for_black_boxes_and_least_distances_and_when_resumed(specs, threat):
    whole = play(specs=specs, threat=threat, n=8)
    assert_same(whole, play(torch.tensor([7]), specs=specs, threat=threat), rows=slice(7, 8))
    other = play(lanes=5, specs=specs, threat=threat, n=8)
    assert torch.equal(whole.robust, other.robust) and torch.equal(whole.forward, other.forward)
    assert torch.allclose(whole.distance, other.distance, atol=1e-5)
    store, stops, outcome = MemoryStore(23), 0, None
    while outcome is None:
        try:
            outcome = play(store=store, specs=specs, threat=threat, n=8)
        except KeyboardInterrupt:
            stops, store.left = stops + 1, 23
    assert stops >= 1
    assert_same(whole, outcome)


def test_the_order_of_work_does_not_matter(whole):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    shuffled = play(order)
    assert_same(whole, shuffled, rows=order)


@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_another_batch_size_draws_the_same_numbers(whole, lanes):
    other = play(lanes=lanes)
    assert (whole.robust == other.robust).float().mean() >= 0.95
    assert torch.allclose(whole.x_adv[~whole.robust][:1], other.x_adv[~whole.robust][:1], atol=1e-4)


class MemoryStore:
    """Keeps a run's state in memory, and stops the run at one question."""

    def __init__(self, stop_at):
        self.saved, self.found, self.left = None, {}, stop_at

    def due(self, held=0):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return False

    def save(self, tensors, facts, attack, found):
        places = {i: InMemory(image) for i, image in found.items()}
        self.found.setdefault(attack, {}).update(places)
        self.saved = {k: v.clone() for k, v in tensors.items()}, facts
        return places

    def claimed(self):
        return nullcontext()

    def load(self, check=lambda saved: None):
        if self.saved is None:
            return None
        check(saved := Saved(*self.saved, self.found))
        return saved

    def shares(self):
        return 0 if self.saved is None else 1

    def forget(self, reason):
        raise AssertionError(reason)


def interrupted(stride, play):
    """The outcome of `play(store=...)`, which is stopped and resumed after each `stride` queries."""
    store, stops = MemoryStore(stride), 0
    while True:
        try:
            outcome = play(store=store)
        except KeyboardInterrupt:
            stops, store.left = stops + 1, stride
        else:
            assert stops >= 1
            return outcome


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Where `MemoryStore` keeps an image."""

    image: torch.Tensor

    def read(self):
        return self.image


@pytest.mark.parametrize("stride", [pytest.param(5, marks=pytest.mark.slow), 17])
def test_interrupted_and_resumed_any_number_of_times_it_is_the_same(whole, stride):
    store, stops, outcome = MemoryStore(stride), 0, None
    while outcome is None:
        try:
            outcome = play(store=store)
        except KeyboardInterrupt:
            stops, store.left = stops + 1, stride
    assert stops > 3
    assert_same(whole, outcome)
    assert whole.fooled_by == outcome.fooled_by
    for ours, theirs in zip(whole.attacks, outcome.attacks, strict=True):
        assert dataclasses.replace(ours, seconds=0) == dataclasses.replace(theirs, seconds=0)


def test_an_interrupt_between_an_answer_and_its_verdict_loses_no_verdict(whole, monkeypatch):
    from robench.engine.verdicts import Verdicts

    store, real, left = MemoryStore(-1), Verdicts.judge, [2]
    store.due = lambda held: True

    def interrupted(self, *arguments):
        draws = real(self, *arguments)
        left[0] -= draws is not None
        if left[0] == 0:
            left[0] = -1
            raise KeyboardInterrupt
        return draws

    monkeypatch.setattr(Verdicts, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play(store=store)
    assert store.saved is not None
    assert_same(whole, play(store=store))


def test_rows_are_dropped_once_fooled_and_passes_counted():
    easy = play(specs="apgd(steps=50)", threat="Linf:0.5")
    assert not easy.robust.any()
    assert easy.passes["forward"] < 10 * 22
    assert int(easy.forward[0]) == 0 and easy.fooled_by[0] == "clean"


@pytest.mark.parametrize("steps", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_a_robust_row_costs_what_the_paper_says(steps):
    specs = f'apgd(steps={steps})+apgd(steps={steps}, loss="dlr", targets=9)'
    hard = play(specs=specs, threat="Linf:0.00001", n=5)
    alive, cost = hard.robust, 10 * (steps + 1)
    assert alive.sum() >= 2
    assert (hard.forward[alive] == cost).all() and (hard.backward[alive] == cost).all()


@pytest.mark.parametrize("specs", ["pgd(steps=3, restarts=12)", "square(queries=60)"])
def test_a_resumed_run_starts_the_same_rows_and_queries_as_far_ahead(specs, monkeypatch):
    turns, real = [], Loop._turn

    def noted(self):
        lanes = self.lanes
        turns.append((lanes.sample.tolist(), lanes.rank.tolist(), lanes.queries.tolist()))
        real(self)

    monkeypatch.setattr(Loop, "_turn", noted)
    # Few images, so that lanes are idle.
    few = partial(play, specs=specs, n=4, threat="Linf:1e-6")
    few()
    expected = turns[:]
    turns.clear()
    interrupted(8, few)
    assert turns == expected


def with_totals(tensors):
    """A state as a version saved it that counted for all rows together."""
    totals = tensors.pop("loop.results.counts").sum((0, 1)) + tensors.pop("loop.counts").sum(0)
    last = COLUMNS["nonfinite"]
    tensors["loop.watched"] = totals[:last].long()
    tensors["loop.counters"] = torch.cat([tensors["loop.counters"], totals[last : last + 1].long()])
    del tensors["loop.recent"]


def without_the_last_count(tensors):
    """A state as a version saved it that counted one thing less."""
    for name in ("loop.results.counts", "loop.counts"):
        tensors[name] = tensors[name][..., :-1]


@pytest.mark.parametrize("older", [with_totals, without_the_last_count])
@pytest.mark.parametrize("specs", ["pgd(steps=6)", "square(queries=40)"])
def test_a_state_that_an_earlier_version_saved_is_resumed(specs, older):
    class Broken(nn.Module):
        """Images whose first pixel is dark have a logit that is not finite, and no gradient."""

        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            logits, dark = self.net(x), x[:, 0, 0, 0] < 0.5
            logits = torch.where(dark[:, None], logits.detach() + logits * 0, logits)
            return logits.index_fill(1, torch.tensor([9]), -torch.inf) if dark.any() else logits

    store = MemoryStore(5)
    expected = play(specs=specs, model=Broken())
    assert expected.health
    with pytest.raises(KeyboardInterrupt):
        play(specs=specs, model=Broken(), store=store)
    tensors, _ = store.saved
    older(tensors)
    outcome = play(specs=specs, model=Broken(), store=store)
    assert_same(expected, outcome)
    assert outcome.health == expected.health
