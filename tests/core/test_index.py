"""The index says of what is built in what the code says."""

import pytest

from perf import write_index
from robench import catalog
from robench.cli import costs
from robench.core import index, registry

# Networks of fewer parameters are built in a moment.
SMALL = 3_000_000
STALE = "run python perf/write_index.py"
CARDS = catalog.cards()


def test_every_builder_is_described_as_its_code_describes_it():
    for kind, builders in write_index.builders().items():
        assert {name: vars(entry) for name, entry in index.built_in(kind).items()} == builders, STALE


def test_no_suite_or_attack_costs_anything_else():
    assert write_index.costs() == index.section("cost"), STALE
    assert costs.passes("autoattack") == {"forward": 6920, "backward": 1910}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if int(facts["parameters"].replace(",", "")) < SMALL else pytest.mark.slow
        )
        for name, facts in index.section("network").items()
    ],
)
def test_a_network_is_as_the_index_says(name):
    assert write_index.network(CARDS[name]) == index.section("network")[name], f"{STALE} --networks"


def test_every_card_with_a_shipped_checkpoint_is_there():
    shipped = {card.name for card in CARDS.values() if card.checkpoint.startswith("checkpoints/")}
    assert shipped and shipped <= index.section("network").keys(), f"{STALE} --networks"


def test_what_is_built_in_is_imported_when_it_is_asked_for():
    assert registry.attacks.describe("pgd").summary == "Projected gradient descent in Linf and L2."
    assert registry.attacks.describe("pgd").defaults["steps"] == 20
    assert registry.attacks.get("pgd").__module__ == "robench.attacks.pgd"
