"""Rows that are coupled: who they are with is fixed, so the engine's promises hold for them too."""

import pytest
import torch
from torch import Tensor, nn

from robench.attacks.build import build_attacks
from robench.catalog import find_suite
from robench.defenses import Defense
from robench.engine.lanes import fixed_groups
from robench.threats.threat import Threat
from tests.engine.runs import run_of
from tests.engine.test_promises import MemoryStore, assert_same
from tests.models import images, small_net

MI = "pgd-mi(steps=6, weight=0.05, group=6)"
SPECS = f"{MI}+apgd-mi(steps=8, weight=-0.02, group=6, targets=2)"
SPECS += "+apgd-feature(steps=6, targets=2)+pgd-feature(steps=4)"


class Staged(nn.Module):
    """small_net in two parts, with features in between."""

    def __init__(self):
        super().__init__()
        net = small_net()
        self.body, self.head = net[:-1], net[-1:]

    def forward_features(self, x: Tensor) -> Tensor:
        return 40 * self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x) / 40)


def play(ids=None, lanes=8, specs=SPECS, n=24, eps="0.008", **options):
    model = Defense(Staged(), num_classes=10, image_size=8).eval()
    x = images(n)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10
    ids = torch.arange(n) if ids is None else ids
    threat = Threat.parse(f"Linf:{eps}")
    run = run_of(
        model,
        build_attacks(find_suite(specs).specs("Linf"), threat),
        x[ids],
        y[ids],
        ids,
        threat,
        0,
        batch_size=lanes,
        **options,
    )
    return run.outcome()


@pytest.fixture(scope="module")
def whole():
    outcome = play()
    assert 0.1 < outcome.robust_accuracy < 0.9 and len(set(outcome.fooled_by)) >= 4
    return outcome


def test_groups_are_of_rising_ids_and_filled_up_with_the_first():
    groups = fixed_groups(torch.tensor([40, 10, 30, 20, 50]), 2)
    assert [(group.members, group.size) for group in groups] == [((1, 3), 2), ((2, 0), 2), ((4, 1), 1)]
    assert [group.members for group in fixed_groups(torch.tensor([3, 1, 2]), 3)] == [(1, 2, 0)]


@pytest.mark.parametrize("lanes", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_the_batch_size_changes_no_verdict(whole, lanes):
    other = play(lanes=lanes)
    assert torch.equal(whole.robust, other.robust) and whole.fooled_by == other.fooled_by
    assert torch.equal(whole.steps, other.steps)
    assert torch.allclose(whole.x_adv, other.x_adv, atol=1e-4)


def test_nor_does_the_order_of_the_images(whole):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    assert_same(whole, play(order), rows=order)


def test_whole_groups_do_not_know_of_each_other_and_halves_do():
    whole = play(specs=MI)
    assert_same(whole, play(torch.arange(12), specs=MI), rows=slice(0, 12))
    assert_same(whole, play(torch.arange(12, 24), specs=MI), rows=slice(12, 24))
    mixed = torch.tensor([7, 8, 10, 14, 17, 18])
    fooled = ~whole.robust[mixed]
    assert fooled.sum() >= 4
    other = play(mixed, specs=MI)
    assert not torch.equal(other.x_adv[fooled], whole.x_adv[mixed][fooled])


def test_images_that_are_fooled_already_keep_company():
    """What an attack finds after another is what it finds alone: its groups are whole in any case."""
    alone, after = play(specs=MI), play(specs=f"pgd(steps=1, step_size=0.003)+{MI}")
    late = [name.startswith("pgd-mi") for name in after.fooled_by]
    assert 0 < sum(late) < sum(name.startswith("pgd-mi") for name in alone.fooled_by)
    late = torch.tensor(late)
    assert torch.equal(after.x_adv[late], alone.x_adv[late])
    assert alone.robust[after.robust].all()


@pytest.mark.parametrize("n", [4, 9])
def test_a_last_group_that_is_short_is_filled_up(n):
    outcome = play(torch.arange(n), specs="pgd-mi(steps=5, weight=0.05, group=6)", eps="0.00001")
    counted = outcome.robust.long() * 6
    # Rows that fill up are not counted, neither in verdicts nor in passes.
    assert counted.sum() == 6 * (n - 2)
    assert torch.equal(outcome.forward, counted) and torch.equal(outcome.backward, counted)


@pytest.mark.parametrize("stride", [7])
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
