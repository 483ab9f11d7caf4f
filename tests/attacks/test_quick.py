"""The suite `quick`: its price, any number of classes, and its place on boards."""

import pytest
import torch

import robench
from robench import catalog
from robench.attacks.build import build_attacks
from robench.engine.counts import CLASSES, shipped
from robench.records.record import SuiteFacts
from robench.reports.ranking import sections
from robench.threats.threat import Threat
from tests.fabricate import SPECS
from tests.models import Linear

THREATS = ["Linf:8/255", "L2:0.5", "L1:12"]


def price(suite: str, threat: Threat) -> int:
    """Forward and backward passes on an image that survives."""
    specs = tuple(spec for spec, _ in build_attacks(catalog.suites()[suite].specs(threat.norm), threat))
    counted = shipped(specs, threat, CLASSES)
    assert counted
    return sum(passes.forward + passes.backward for passes in counted)


@pytest.mark.parametrize("threat", THREATS)
def test_it_costs_at_most_a_twentieth_of_autoattack(threat):
    parsed = Threat.parse(threat)
    assert price("quick", parsed) <= 0.05 * price("autoattack", parsed)


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("classes", [2, 3, 4, 30])
def test_it_works_for_any_number_of_classes(classes, threat):
    model = Linear(classes, (3, 4, 4))
    x = 0.4 + 0.2 * torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    parsed = Threat.parse(threat)
    distance = model.distances(x, y, parsed.norm)
    eps = float(distance.median())
    result = robench.attack("quick", model, x, y, threat=f"{parsed.norm}:{eps}")
    # On a linear classifier the distance to the boundary is known.
    assert not result.robust[distance < 0.9 * eps].any() and result.robust[distance > eps].all()


def test_boards_rank_it_apart_from_autoattack(runs):
    records = [runs(suite=SuiteFacts(suite, SPECS)).record() for suite in ("quick", "autoattack")]
    (section,) = sections(records)
    assert [[row.record.job.suite.name for row in group] for group in section.groups] == [
        ["autoattack"],
        ["quick"],
    ]
