"""How samples are dealt to shares: every sample once, coupled ones together, and the robust ones evenly."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robench.attacks.build import build_attacks
from robench.engine.run_state import CLEAN
from robench.engine.shares import Deal
from robench.records.samples import read_samples
from robench.threats.threat import Threat
from tests.engine.runs import run_of
from tests.models import images, small_net

CIFAR = Path(__file__).parents[2] / "results/shipped/cifar10-linf"


def coupling(*groups):
    """Attacks that couple samples, one for each group size."""
    return [SimpleNamespace(group=group) for group in groups]


@pytest.mark.parametrize("seed", range(40))
def test_each_sample_is_in_one_share_and_groups_stay_together(seed):
    generator = torch.Generator().manual_seed(seed)
    n, count, first, second = (
        int(torch.randint(1, high, (), generator=generator)) for high in (90, 12, 5, 4)
    )
    ids = torch.randperm(1000, generator=generator)[:n]
    cost = torch.randn(n, generator=generator).exp() * (torch.rand(n, generator=generator) < 0.7)
    cost[:: max(n // 3, 1)] = torch.tensor(float("nan" if seed % 2 else "inf"))
    masks = Deal.of(ids, coupling(first, second), count, cost).masks()
    assert torch.equal(torch.stack(masks).sum(0), torch.ones(n, dtype=torch.int64))
    # Groups are of consecutive ids.
    group = torch.empty(n, dtype=torch.int64)
    size = torch.tensor([min(first, n), min(second, n)])
    group[ids.argsort()] = torch.arange(n) // int(torch.lcm(size[0], size[1]))
    in_share = [set(group[mask].tolist()) for mask in masks]
    assert sum(map(len, in_share)) == int(group.max()) + 1 and len(masks) == min(count, int(group.max()) + 1)
    assert max(map(len, in_share)) - min(map(len, in_share)) <= 1


def test_last_bits_and_the_order_of_the_samples_change_nothing():
    ids, cost = torch.arange(500), 1.05 * 2.0 ** torch.arange(500).remainder(9)
    whole = Deal.of(ids, coupling(), 7, cost)
    other = Deal.of(ids, coupling(), 7, cost * (1 + 1e-6 * torch.randn(500)))
    assert other == whole
    order = torch.randperm(500)
    assert Deal.of(ids[order], coupling(), 7, cost[order]).share == tuple(
        torch.tensor(whole.share)[order].tolist()
    )


def test_robust_images_are_dealt_more_evenly_than_by_place():
    """In the shipped records of AutoAttack on networks for CIFAR-10, 1000 images each."""
    spreads = {"place": 0, "margin": 0}
    for record in sorted(CIFAR.glob("*/autoattack")):
        rows = read_samples(record).to_pydict()
        ids, robust = torch.tensor(rows["id"]), torch.tensor([by == "" for by in rows["fooled_by"]])
        cost = torch.tensor(rows["clean_margin"]) * torch.tensor([by != "clean" for by in rows["fooled_by"]])
        for count in (2, 4, 8):
            deals = {
                "place": Deal(tuple(i % count for i in range(len(ids)))),
                "margin": Deal.of(ids, [], count, cost),
            }
            for name, deal in deals.items():
                survivors = [int(robust[mask].sum()) for mask in deal.masks()]
                spreads[name] += max(survivors) - min(survivors)
    assert 0 < spreads["margin"] < 0.7 * spreads["place"]


def test_a_run_deals_by_its_clean_margins_and_sends_the_deal_to_other_processes():
    model, x, ids = small_net(), images(40), torch.arange(40)
    y, threat = model(x).argmax(1), Threat.parse("Linf:0.01")
    y[:8] = (y[:8] + 1) % 10
    run, other = (
        run_of(model, build_attacks(["fgsm"], threat), x, y, ids, threat, 0, batch_size=8) for _ in range(2)
    )
    run.proven[8:12] = True
    run.prepare(4)
    masks = [part.selected for part in run.parts]
    # Images that are misclassified or proven cost nothing.
    for free in (run.state.fooled_by == CLEAN, run.proven):
        assert {int((mask & free).sum()) for mask in masks} == {int(free.sum()) // 4}
    other.prepare(4, run.clean)
    assert all(torch.equal(part.selected, mask) for part, mask in zip(other.parts, masks, strict=True))
