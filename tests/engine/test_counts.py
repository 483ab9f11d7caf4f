"""The shipped counts of passes are those that playing gives, and whoever lists attacks plays none."""

import json

import pytest

from robench import catalog
from robench.attacks.build import build_attacks
from robench.attacks.fgsm import FGSM
from robench.catalog import Suite
from robench.cli.main import main
from robench.core import registry
from robench.corruption.suite import corruptions
from robench.engine import counts, query_cost
from robench.engine.counts import FILE, cost, countable, shipped, shipped_cost
from robench.threats.threat import Threat

CONTENT = json.loads(FILE.read_text("utf-8"))
SHIPPED = [(kind, spec, found) for kind, table in CONTENT["counts"].items() for spec, found in table.items()]
# Forward and backward passes that are counted in a moment.
FEW = 110


def _threat(kind: str) -> Threat:
    return Threat.parse(f"{kind}:1")


def _few(found: list[int] | None) -> bool:
    return found is None or sum(found) <= FEW


@pytest.mark.parametrize(
    ("kind", "spec", "found"),
    [pytest.param(*entry, marks=() if _few(entry[2]) else pytest.mark.slow) for entry in SHIPPED],
    ids=lambda value: str(value)[:60],
)
def test_a_shipped_count_comes_out_again(kind, spec, found):
    played = query_cost.passes((spec,), _threat(kind), CONTENT["classes"])
    assert [[each.forward, each.backward] for each in played] == ([found] if found else [])


def test_some_are_counted_again_in_every_run():
    assert sum(_few(found) and found is not None for _, _, found in SHIPPED) >= 4


def test_what_is_shipped_is_what_can_be_counted():
    """A suite or an attack that changes wants `python perf/count_passes.py` again."""
    wanted = set()
    for attacks, threats in countable():
        known = [threat for threat in threats if shipped(attacks, threat, CONTENT["classes"]) is not None]
        assert known, f"{attacks} are not counted: run python perf/count_passes.py"
        wanted |= {(known[0].kind, spec) for spec, _ in build_attacks(list(attacks), known[0])}
    assert {(kind, spec) for kind, spec, _ in SHIPPED} == wanted


@pytest.fixture
def played(monkeypatch):
    """The specs that were counted by playing."""
    asked = []
    real = query_cost.passes

    def passes(attacks, threat, classes):
        asked.extend(attacks)
        return real(attacks, threat, classes)

    monkeypatch.setattr(counts, "passes", passes)
    return asked


@pytest.fixture
def stranger(monkeypatch):
    """An attack of another package."""
    monkeypatch.setitem(registry.attacks._builders, "strange", type("Strange", (FGSM,), {}))
    monkeypatch.setitem(registry.attacks._holders, "strange", "elsewhere")
    return "strange"


def run(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_list_plays_nothing_and_knows_every_shipped_suite(played, stranger, capsys):
    rows = {
        row["name"]: row["passes"]
        for row in json.loads(run(["list", "attacks", "--json"], capsys))["attacks"]
    }
    assert not played
    assert rows["autoattack"] == {"forward": 6920, "backward": 1910}
    assert rows["pgd"] == {"forward": 21, "backward": 21} and rows[stranger] is None
    for suite in catalog.suites().values():
        unknown = suite.rungs or corruptions(suite.attacks) or suite.name == "autoattack-reference"
        assert bool(rows[suite.name]) != bool(unknown), suite.name


def test_show_counts_a_strangers_attack_and_takes_a_shipped_one_from_the_counts(played, stranger, capsys):
    assert "strange: 2 + 2" in run(["show", stranger], capsys) and played == ["strange"]
    assert "in all: 6,920 + 1,910" in run(["show", "autoattack"], capsys) and played == ["strange"]


def test_a_suite_that_says_something_else_takes_no_others_counts(played):
    assert shipped_cost(Suite("autoattack", ["pgd(steps=3)"])) is None
    assert [p.forward for p in cost(("pgd(steps=3)",), Threat.parse("Linf:0.1"), 10)] == [4]
    assert played == ["pgd(steps=3)"]


def test_another_number_of_classes_is_counted(played):
    (found,) = cost(("apgd(steps=3, targets=9)",), Threat.parse("Linf:0.1"), 4)
    assert (found.forward, found.backward) == (12, 12) and played
